"""Divides the connected components of a finished mask into buildings, one component after the other.

A component is looked at as a whole, wherever it lies on bands and windows: the result does not depend on them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

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

LARGEST_PX = 64_000_000  # of the rectangle around a component, 8,000 x 8,000: up to 2 GB; a larger one stays whole
# returns left, top, right, bottom of one plane of a prediction, uint8 (h, w): 0 is the probability, 1 `inside_of`
Planes = Callable[[int, tuple[int, int, int, int]], NDArray[np.uint8]]


class Divider:
    """Divides pieces.

    Args:
        planes: of the map.
        threshold: markers are where `inside_of` is above it, 0..1; see `kit.data.splitting`.
        smallest_px: smaller markers are ignored.
    """

    def __init__(self, planes: Planes, threshold: float, smallest_px: float) -> None:
        self.planes, self.threshold, self.smallest_px = planes, threshold, smallest_px
        self.undivided = 0  # components that were too large

    def divided(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Returns the pieces, each with its buildings."""
        return [self._divided(piece) for piece in pieces]

    def _divided(self, piece: Piece) -> Piece:
        left, top, right, bottom = map(int, shapely.total_bounds(piece.polygons))
        box = left, top, right, bottom
        if piece.buildings[WHOLE].pixels < 2 * self.smallest_px:
            return piece
        if (right - left) * (bottom - top) > LARGEST_PX:
            self.undivided += 1
            return piece
        markers = self.planes(1, box) > self.threshold * LEVELS
        mask = rasterize(piece.polygons, markers.shape, transform=Affine.translation(left, top)) > 0
        ids = split_instances(mask, markers, self.smallest_px)
        if ids.max() < 2:
            return piece
        return Piece(dict(footprints(self.planes(0, box), ids, top, left)))


@contextmanager
def planes_of(probability: Path, inside: Path) -> Iterator[Planes]:
    """Yields the planes of a map whose rasters are finished."""
    with rasterio.open(probability) as first, rasterio.open(inside) as second:

        def planes(plane: int, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
            left, top, right, bottom = box
            band: NDArray[np.uint8] = (first, second)[plane].read(
                1, window=Window(left, top, right - left, bottom - top)
            )
            return band

        yield planes
