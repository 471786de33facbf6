"""A scene to strips of probability: windows read, predicted and blended, a row of them in memory at a time."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kit.console import meter
from kit.deploy.mapping.blending import Band
from kit.deploy.mapping.reader import Reader, Seen
from kit.deploy.mapping.scene import Frame
from kit.deploy.mapping.strips import Strips
from kit.deploy.mapping.windows import Axis

Predictor = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # (h, w, 4) -> (h, w), 0..1


def edges_on(axis: Axis, work_px: int, target_px: int) -> tuple[int, ...]:
    """Returns the edges of windows in pixels of another frame of the same scene, ascending, 0 to `target_px`."""
    return tuple(round(edge * target_px / work_px) for edge in axis.edges)


def predict_strips(reader: Reader, rows: Axis, columns: Axis, target: Frame, predict: Predictor, strips: Strips) -> int:
    """Predicts the strips that are not finished yet, and returns how many windows that took.

    Windows without imagery are not predicted.

    Args:
        reader: of the scene, looking at the frame that the windows divide.
        rows: windows along its columns.
        columns: windows along its rows.
        target: frame of the map, on which imagery is kept: the scene's own, or the reader's.
        predict: a window's probability.
        strips: finished ones, and where new ones go.

    Raises:
        RasterError: the scene is broken; finished strips are kept.
        KitError: the disk is full.
    """
    predicted = 0
    with meter("map windows", len(rows) * len(columns)) as running:
        running.skip(strips.done * len(columns))
        while strips.done < len(rows):
            index = strips.done
            band = Band(rows, columns, index, strips.carried())
            top, bottom = strips.valid_rows[index : index + 2]
            valid = np.zeros((bottom - top, target.width), bool)
            for column in range(len(columns)):
                seen = reader.read(rows.span(index), columns.span(column))
                if seen.valid.any():
                    band.add(column, predict(seen.rgba))
                    _keep(valid, top, seen, target == reader.scene, (rows.starts[index], columns.starts[column]))
                    predicted += 1
                running.advance()
            level, carry = band.finished()
            strips.put(level, valid, carry)
    return predicted


def _keep(valid: NDArray[np.bool_], top: int, seen: Seen, is_scenes: bool, corner: tuple[int, int]) -> None:
    """Writes a window's imagery into a strip that begins with the row `top`."""
    found, (first, left) = (seen.valid, (seen.top, seen.left)) if is_scenes else (seen.rgba[..., 3] > 0, corner)
    rows = slice(max(top, first), min(top + len(valid), first + len(found)))
    columns = slice(left, left + found.shape[1])
    valid[rows.start - top : rows.stop - top, columns] = found[rows.start - first : rows.stop - first]
