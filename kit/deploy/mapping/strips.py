"""Finished strips of a map, kept in a folder until it is whole: a command that was stopped goes on behind them."""

import io
import json
import shutil
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.system.files import replacing

KEY = "key.json"
AT_HAND = 2  # strips in memory, for reading across their border


class Strips:
    """Strips of probability and of imagery, from top to bottom, one a row of windows.

    Args:
        folder: of their files; what another map has left there is removed.
        key: what the map is made of, for JSON.
        level_rows: where each strip of probability begins, and where the last ends.
        valid_rows: likewise of imagery, which may lie on a finer grid.
    """

    def __init__(self, folder: Path, key: dict[str, Any], level_rows: Sequence[int], valid_rows: Sequence[int]) -> None:
        self.folder, self.level_rows, self.valid_rows = folder, level_rows, valid_rows
        text = json.dumps(key, indent=1) + "\n"
        if not (folder / KEY).is_file() or (folder / KEY).read_text() != text:
            shutil.rmtree(folder, ignore_errors=True)
            with replacing(folder / KEY) as temporary:
                temporary.write_text(text)
        for leftover in folder.glob(".*.part.*"):
            leftover.unlink()
        self.done = self._count()
        self._load = lru_cache(AT_HAND)(self._read)

    def __len__(self) -> int:
        return len(self.level_rows) - 1

    def carried(self) -> NDArray[np.uint32] | None:
        """Returns what the last finished strip has left for the next."""
        if not 0 < self.done < len(self):
            return None
        with np.load(self._carry(self.done - 1)) as kept:
            carry: NDArray[np.uint32] = kept["carry"]
        return carry

    def put(self, level: NDArray[np.uint8], valid: NDArray[np.bool_], carry: NDArray[np.uint32]) -> None:
        """Keeps the next strip.

        Args:
            level: probability, 0 to 255, (h, w).
            valid: imagery, (H, W).
            carry: sums for the strip below, (shared, w).

        Raises:
            KitError: the disk is full.
        """
        packed = np.packbits(valid, axis=1)
        for path, arrays in (
            (self._carry(self.done), {"carry": carry}),
            (self._strip(self.done), {"level": level, "valid": packed, "width": valid.shape[1]}),
        ):
            buffer = io.BytesIO()  # numpy does not tell why it cannot write
            np.savez_compressed(buffer, **arrays)
            with replacing(path) as temporary:
                temporary.write_bytes(buffer.getbuffer())
        self._carry(self.done - 1).unlink(missing_ok=True)
        self.done += 1

    def level(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Returns rows of probability, (stop - start, w)."""
        return np.concatenate([self._load(i)[0][first:last] for i, first, last in _parts(self.level_rows, start, stop)])

    def valid(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Returns rows of imagery, (stop - start, W)."""
        return np.concatenate([self._load(i)[1][first:last] for i, first, last in _parts(self.valid_rows, start, stop)])

    def _strip(self, index: int) -> Path:
        return self.folder / f"strip{index:05}.npz"

    def _carry(self, index: int) -> Path:
        return self.folder / f"carry{index:05}.npz"

    def _count(self) -> int:
        """Returns how many strips are finished."""
        count = 0
        # a machine that lost power may leave a name without content
        while count < len(self) and self._strip(count).is_file() and zipfile.is_zipfile(self._strip(count)):
            count += 1
        while 0 < count < len(self) and not self._carry(count - 1).is_file():
            count -= 1
        return count

    def _read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        with np.load(self._strip(index)) as kept:
            return kept["level"], np.unpackbits(kept["valid"], axis=1, count=int(kept["width"])).astype(bool)


def _parts(edges: Sequence[int], start: int, stop: int) -> list[tuple[int, int, int]]:
    """Returns which strips hold the rows from `start` to `stop`, each with the rows of its own that do."""
    first = int(np.searchsorted(edges, start, side="right")) - 1
    last = int(np.searchsorted(edges, stop, side="left"))
    return [
        (i, max(start, edges[i]) - edges[i], min(stop, edges[i + 1]) - edges[i])
        for i in range(first, last)
        if edges[i] < edges[i + 1]
    ]
