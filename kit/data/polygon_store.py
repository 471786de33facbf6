"""Polygons in a temporary file: of millions, a block is in memory at a time."""

import os
import tempfile
from collections.abc import Iterator

import numpy as np
import shapely
from numpy.typing import NDArray

from kit.errors import OutputError
from kit.system.files import write_remedy

__all__ = ["BLOCK", "PolygonStore"]

BLOCK = 20_000  # polygons that are decoded at once

Geometries = NDArray[np.object_]


class PolygonStore:
    """A growing sequence of geometries, or None, kept as WKB in a temporary file.

    Args:
        polygons: the first ones, (N,).

    Raises:
        OutputError: the folder of temporary files is full or read-only.
    """

    def __init__(self, polygons: Geometries | None = None) -> None:
        self.ends = np.zeros(1, np.int64)  # in the file: of nothing, then of each polygon
        try:
            self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # goes with the store
        except OSError as cause:
            raise _unwritable(cause) from cause
        if polygons is not None:
            self.add(polygons)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, places: NDArray[np.int64]) -> Geometries:
        """Returns the geometries at some places, (n,)."""
        starts, stops = self.ends[:-1][places], self.ends[1:][places]
        runs = np.flatnonzero(starts[1:] != stops[:-1]) + 1  # what lies side by side is read at once
        wkb: list[bytes | None] = []
        for own, own_stops in zip(np.split(starts, runs), np.split(stops, runs), strict=True):
            if len(own):
                content = os.pread(self.file.fileno(), int(own_stops[-1] - own[0]), int(own[0]))
                inner = zip((own - own[0]).tolist(), (own_stops - own[0]).tolist(), strict=True)
                wkb += [content[start:stop] or None for start, stop in inner]
        polygons: Geometries = shapely.from_wkb(np.array([*wkb, None], dtype=object)[:-1])
        return polygons

    def add(self, polygons: Geometries) -> None:
        """Appends geometries, (n,)."""
        wkb = [content or b"" for content in shapely.to_wkb(polygons)]
        try:
            content = memoryview(b"".join(wkb))
            while content:
                content = content[self.file.write(content) :]
        except OSError as cause:
            raise _unwritable(cause) from cause
        self.ends = np.concatenate([self.ends, self.ends[-1] + np.cumsum([len(each) for each in wkb], dtype=np.int64)])

    def blocks(self) -> Iterator[Geometries]:
        """Yields all geometries, in order, at most `BLOCK` at once."""
        for start in range(0, len(self), BLOCK):
            yield self[np.arange(start, min(start + BLOCK, len(self)))]


def _unwritable(cause: OSError) -> OutputError:
    return OutputError(
        f"cannot write temporary files: {cause.strerror}",
        f"{write_remedy(cause)}, or choose another folder for them with the environment variable TMPDIR",
    )
