"""Divides the connected components of a finished mask into buildings, one component after the other.

A component is looked at as a whole, wherever it lies on bands and windows: the result does not depend on them.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.windows import Window

from kit.data.splitting import split_instances
from kit.deploy.mapping.tracing import WHOLE, Piece, footprints
from kit.deploy.mapping.windows import LEVELS

LARGEST_PX = 64_000_000  # of the rectangle around a component, 8,000 x 8,000: some 600 MB; a larger one stays whole


class Divider:
    """Divides pieces; a context manager.

    Args:
        probability: raster of the map.
        inside: raster of the map, see `kit.data.splitting.inside_of`.
        threshold: markers are where `inside` is above it, 0..1.
        smallest_px: smaller markers are ignored.
    """

    def __init__(self, probability: Path, inside: Path, threshold: float, smallest_px: float) -> None:
        self.files, self.threshold, self.smallest_px = (probability, inside), threshold, smallest_px
        self.undivided = 0  # components that were too large

    def __enter__(self) -> "Divider":
        self.level, self.inside = map(rasterio.open, self.files)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.level.close()
        self.inside.close()

    def divided(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Returns the pieces, each with its buildings."""
        return [self._divided(piece) for piece in pieces]

    def _divided(self, piece: Piece) -> Piece:
        left, top, right, bottom = map(int, shapely.total_bounds(piece.polygons))
        if piece.buildings[WHOLE].pixels < 2 * self.smallest_px:
            return piece
        if (right - left) * (bottom - top) > LARGEST_PX:
            self.undivided += 1
            return piece
        window = Window(left, top, right - left, bottom - top)
        markers = self._read(self.inside, window) > self.threshold * LEVELS
        mask = rasterize(piece.polygons, markers.shape, transform=Affine.translation(left, top)) > 0
        ids = split_instances(mask, markers, self.smallest_px)
        if ids.max() < 2:
            return piece
        return Piece(dict(footprints(self._read(self.level, window), ids, top, left)))

    @staticmethod
    def _read(source: rasterio.DatasetReader, window: Window) -> NDArray[np.uint8]:
        band: NDArray[np.uint8] = source.read(1, window=window)
        return band
