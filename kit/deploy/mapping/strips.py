"""Predicts a scene by rows of windows; finished rows are stored on disk, so that a rerun resumes."""

import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.console import meter
from kit.deploy.mapping.scene import Frame, SceneReader, SceneWindow
from kit.deploy.mapping.windows import Axis, Band
from kit.system.files import replacing

SPLITTING = (2,)  # planes of a prediction: building, and its inside
Predictor = Callable[
    [NDArray[np.uint8]], NDArray[np.float32]
]  # RGBA (h, w, 4) -> probability (h, w), 0..1; with splitting (2, h, w): of building, of its inside

KEY = "key.json"
IN_MEMORY = 2  # strips that stay loaded, to read across their border


class Strips:
    """Strips of probability and of imagery, from top to bottom, one for each row of windows.

    Args:
        folder: of their files; strips of another map are removed from it.
        key: what the map is made from, for JSON.
        level_rows: first row of each strip of probability, then the end of the last.
        valid_rows: the same for imagery, which may lie on a finer grid.
        planes: see `Band`.
    """

    def __init__(
        self,
        folder: Path,
        key: dict[str, Any],
        level_rows: Sequence[int],
        valid_rows: Sequence[int],
        planes: tuple[int, ...] = (),
    ) -> None:
        self.folder, self.level_rows, self.valid_rows, self.planes = folder, level_rows, valid_rows, planes
        key = key | ({"planes": planes} if planes else {})
        content = (json.dumps(key, indent=1) + "\n").encode()
        if not (folder / KEY).is_file() or (folder / KEY).read_bytes() != content:
            shutil.rmtree(folder, ignore_errors=True)
            with replacing(folder / KEY) as temporary:
                temporary.write_bytes(content)
        for leftover in folder.glob(".*.part.*"):
            leftover.unlink()
        self.done = self._count()
        self._load = lru_cache(IN_MEMORY)(self._read)

    def __len__(self) -> int:
        return len(self.level_rows) - 1

    def carried(self) -> NDArray[np.uint32] | None:
        """Returns the sums that the last finished strip carries to the next; None for the first strip."""
        if not 0 < self.done < len(self):
            return None
        with np.load(self._carry(self.done - 1)) as arrays:
            carry: NDArray[np.uint32] = arrays["carry"]
        return carry

    def put(self, level: NDArray[np.uint8], valid: NDArray[np.bool_], carry: NDArray[np.uint32]) -> None:
        """Writes the next strip.

        Args:
            level: probability, 0 to 255, (h, w).
            valid: imagery, (H, W).
            carry: sums for the strip below, (overlap, w).

        Raises:
            KitError: the disk is full.
        """
        packed = np.packbits(valid, axis=1)
        for path, arrays in (
            (self._carry(self.done), {"carry": carry}),
            (self._strip(self.done), {"level": level, "valid": packed, "width": valid.shape[1]}),
        ):
            with replacing(path) as temporary:
                temporary.write_bytes(_packed(arrays))
        self._carry(self.done - 1).unlink(missing_ok=True)
        self.done += 1

    def level(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Returns rows of probability, (stop - start, w), with `planes` in front."""
        parts = _parts(self.level_rows, start, stop)
        return np.concatenate([self._load(i)[0][..., first:last, :] for i, first, last in parts], axis=-2)

    def valid(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Returns rows of imagery, (stop - start, W)."""
        return np.concatenate([self._load(i)[1][first:last] for i, first, last in _parts(self.valid_rows, start, stop)])

    def _strip(self, index: int) -> Path:
        return self.folder / f"strip{index:05}.npz"

    def _carry(self, index: int) -> Path:
        return self.folder / f"carry{index:05}.npz"

    def _count(self) -> int:
        """Returns how many strips are finished; a damaged one, as a loss of power may leave it, does not count."""
        count = 0
        while count < len(self) and _is_whole(self._strip(count)):
            count += 1
        while 0 < count < len(self) and not _is_whole(self._carry(count - 1)):
            count -= 1
        return count

    def _read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        with np.load(self._strip(index)) as arrays:
            return arrays["level"], np.unpackbits(arrays["valid"], axis=1, count=int(arrays["width"])).astype(bool)


def _packed(arrays: dict[str, Any]) -> memoryview:
    """Returns the bytes of a file as of `np.savez_compressed`, in a third of the time."""
    buffer = io.BytesIO()  # numpy does not say why it cannot write
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array))
    return buffer.getbuffer()


def _is_whole(path: Path) -> bool:
    """Returns whether a file of arrays is there and its checksums hold."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False


def _parts(edges: Sequence[int], start: int, stop: int) -> list[tuple[int, int, int]]:
    """Returns the strips that hold the rows from `start` to `stop`: index, first row in the strip, and end row."""
    first = int(np.searchsorted(edges, start, side="right")) - 1
    last = int(np.searchsorted(edges, stop, side="left"))
    return [
        (i, max(start, edges[i]) - edges[i], min(stop, edges[i + 1]) - edges[i])
        for i in range(first, last)
        if edges[i] < edges[i + 1]
    ]


def predict_strips(
    reader: SceneReader, rows: Axis, columns: Axis, frame: Frame, predict: Predictor, strips: Strips
) -> int:
    """Predicts the strips that are not finished yet, and returns how many windows were predicted.

    Windows without imagery are skipped. One row of windows is in memory at a time.

    Args:
        reader: of the scene; its working frame is the one that the windows divide.
        rows: windows along the columns of that frame.
        columns: windows along its rows.
        frame: of the map, on which imagery is recorded: the scene's own, or the reader's working frame.
        predict: returns a window's probability.
        strips: finished ones; new ones are added.

    Raises:
        RasterError: the scene is broken; finished strips are kept.
        KitError: the disk is full.
    """
    predicted = 0
    with meter("map windows", len(rows) * len(columns)) as running:
        running.skip(strips.done * len(columns))
        while strips.done < len(rows):
            index = strips.done
            band = Band(rows, columns, index, strips.carried(), strips.planes)
            top, bottom = strips.valid_rows[index : index + 2]
            valid = np.zeros((bottom - top, frame.width), bool)
            for column in range(len(columns)):
                window = reader.read(rows.span(index), columns.span(column))
                if window.valid.any():
                    band.add(column, predict(window.rgba))
                    corner = rows.starts[index], columns.starts[column]
                    _copy_imagery(window, valid, top, None if frame == reader.scene else corner)
                    predicted += 1
                running.advance()
            level, carry = band.finished()
            strips.put(level, valid, carry)
    return predicted


def _copy_imagery(window: SceneWindow, valid: NDArray[np.bool_], top: int, corner: tuple[int, int] | None) -> None:
    """Copies where a window has imagery into a strip, whose first row is the frame's row `top`.

    Args:
        window: of a scene.
        valid: of the strip, (H, W).
        top: first row of the strip.
        corner: row and column of the window where the strip is on the working frame; None: it is on the scene's own.
    """
    if corner is None:
        imagery, first, left = window.valid, window.top, window.left
    else:
        imagery, (first, left) = window.rgba[..., 3] > 0, corner
    rows = slice(max(top, first), min(top + len(valid), first + len(imagery)))
    columns = slice(left, left + imagery.shape[1])
    valid[rows.start - top : rows.stop - top, columns] = imagery[rows.start - first : rows.stop - first]
