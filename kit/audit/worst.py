"""Contact sheets of the worst tiles: labels, where the audit moves them, and predictions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kit.audit.tile_scores import image_of, mask_of
from kit.data.audits import TileFinding
from kit.data.masks import BUILDING, IGNORE
from kit.system.files import write_bytes

__all__ = ["MOST", "draw_worst"]

COLUMNS, ROWS = 3, 2
VIEW_PX = 440  # of a tile: three and two of them fit on the screen of a laptop
GAP_PX, TITLE_PX, LEGEND_PX = 6, 40, 26
MOST = 4 * COLUMNS * ROWS  # tiles in all sheets
LABEL, PREDICTION, PAPER, INK = (255, 225, 0), (0, 225, 255), (24, 24, 24), (230, 230, 230)  # RGB
FONT = cv2.FONT_HERSHEY_SIMPLEX

Predict = Callable[[Any], NDArray[np.floating]]  # row of the index -> probability (H, W), 0..1


def draw_worst(
    folder: Path, tiles: Sequence[tuple[TileFinding, Any]], predict: Predict, threshold: float
) -> list[Path]:
    """Writes contact sheets `worst_1.png` and so on, and returns their paths.

    Each tile is shown at full size where labels and prediction differ most.

    Args:
        folder: of the sheets; earlier ones are removed.
        tiles: findings with their rows of the index, the worst first.
        predict: returns the probability on a tile.
        threshold: building is where the probability is above it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("worst_*.png"):
        earlier.unlink()
    files = []
    for number, start in enumerate(range(0, len(tiles), COLUMNS * ROWS), 1):
        some = tiles[start : start + COLUMNS * ROWS]
        views = [_view(row, predict(row) > threshold) for _, row in some]
        _, png = cv2.imencode(".png", _sheet([finding for finding, _ in some], views)[..., ::-1])
        files.append(folder / f"worst_{number}.png")
        write_bytes(files[-1], png.tobytes())
    return files


def _sheet(findings: Sequence[TileFinding], views: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    columns = min(COLUMNS, len(views))
    rows = -(-len(views) // columns)
    cell = VIEW_PX + GAP_PX
    canvas = np.full((LEGEND_PX + rows * (cell + TITLE_PX), columns * cell + GAP_PX, 3), PAPER, np.uint8)
    _write(canvas, "labels", GAP_PX, 18, LABEL)
    _write(canvas, "prediction", GAP_PX + 80, 18, PREDICTION)
    for number, (finding, view) in enumerate(zip(findings, views, strict=True)):
        row, column = divmod(number, columns)
        left, top = GAP_PX + column * cell, LEGEND_PX + row * (cell + TITLE_PX)
        _write(canvas, finding.tile[-52:], left, top + 14, INK)
        repaired = "" if finding.repaired is None else f", repaired {finding.repaired:.2f}"
        numbers = f"Jaccard {finding.jaccard:.2f}{repaired}, score {finding.score:.2f}: {finding.verdict}"
        _write(canvas, numbers, left, top + 32, INK)
        canvas[top + TITLE_PX : top + TITLE_PX + view.shape[0], left : left + view.shape[1]] = view
    return canvas


def _write(canvas: NDArray[np.uint8], text: str, left: int, bottom: int, colour: tuple[int, int, int]) -> None:
    cv2.putText(canvas, text, (left, bottom), FONT, 0.45, colour, 1, cv2.LINE_AA)


def _view(row: Any, predicted: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Returns a part of a tile at full size with outlines of labels and prediction, (h, w, 3) uint8 RGB."""
    image, mask = image_of(row), mask_of(row)
    label = mask == BUILDING
    top, left = _busiest((label != predicted) & (mask != IGNORE))
    at = np.s_[top : top + VIEW_PX, left : left + VIEW_PX]
    larger = max(1, VIEW_PX // max(label[at].shape))  # of small tiles
    view = np.ascontiguousarray(image[at].repeat(larger, axis=0).repeat(larger, axis=1))
    for part, colour in ((label, LABEL), (predicted, PREDICTION)):
        drawn = part[at].repeat(larger, axis=0).repeat(larger, axis=1).astype(np.uint8)
        lines, _ = cv2.findContours(drawn, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(view, lines, -1, PAPER, 3)
        cv2.drawContours(view, lines, -1, colour, 1)
    return view


def _busiest(differing: NDArray[np.bool_]) -> tuple[int, int]:
    """Returns top and left of the window with most pixels that differ."""
    height, width = (min(VIEW_PX, side) for side in differing.shape)
    sums = cv2.boxFilter(differing.astype(np.float32), -1, (width, height), anchor=(0, 0), normalize=False)
    inside = sums[: differing.shape[0] - height + 1, : differing.shape[1] - width + 1]
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(row), int(column)
