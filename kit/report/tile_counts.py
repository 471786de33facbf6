"""What the report counts on a validation tile."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from kit.data.masks import BACKGROUND, BUILDING, IGNORE
from kit.measures.object_counts import ObjectCounts
from kit.measures.object_masks import compare_tile
from kit.pipeline.postprocess import ValidationTile, read_inside, read_votes

SIZES_M2 = (20, 50, 100, 200, 500)  # between classes of building size
EDGES_PX = (16, 32, 64, 128, 256)  # between classes of distance from the tile's edge

Pixels = NDArray[np.int64]  # (classes, 3): tp, fp, fn


@dataclass(frozen=True)
class TileCounts:
    """The counts of a tile at a threshold of 0.5."""

    objects: ObjectCounts
    levels: NDArray[np.int64]  # (2, 256): pixels of background, of building by probability x 255
    sizes: Pixels  # by the size of the nearest true building; 0 without one, or where the resolution is unknown
    edges: Pixels  # by distance from the tile's edge

    @property
    def pixels(self) -> NDArray[np.int64]:
        """Building pixels predicted rightly, wrongly, and missed, (3,)."""
        (_, fn), (fp, tp) = self.levels[:, :128].sum(axis=1), self.levels[:, 128:].sum(axis=1)
        return np.array([tp, fp, fn])


def count_tile(tile: ValidationTile) -> TileCounts:
    """Returns the counts of a tile with one prediction.

    Raises:
        RunError: a file cannot be read, or the tile was cut again after the run.
    """
    (values,), truth = read_votes(tile)
    inside = read_inside(tile)
    predicted = (values > 127) & (truth != IGNORE)
    levels = np.stack([np.bincount(values[truth == kind], minlength=256) for kind in (BACKGROUND, BUILDING)])
    return TileCounts(
        compare_tile(values > 127, inside, tile.mask, truth, tile.gsd_m),
        levels,
        _by_class(predicted, truth, _size_classes(truth, tile.gsd_m), len(SIZES_M2) + 1),
        _by_class(predicted, truth, _edge_classes(*truth.shape), len(EDGES_PX) + 1),
    )


def _size_classes(truth: NDArray[np.uint8], gsd_m: float) -> NDArray[np.int64]:
    """Returns the class of the nearest true building's size, (H, W); -1 where there is none."""
    building = truth == BUILDING
    if gsd_m <= 0 or not building.any():
        return np.full(truth.shape, -1)
    _, nearest = cv2.distanceTransformWithLabels(
        (~building).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP
    )
    areas = np.bincount(nearest[building]) * gsd_m**2
    classes: NDArray[np.int64] = np.searchsorted(SIZES_M2, areas, side="right")[nearest]
    return classes


def _edge_classes(height: int, width: int) -> NDArray[np.int64]:
    """Returns the class of each pixel's distance from the edge, (H, W)."""
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in (height, width))
    distance = np.minimum(rows[:, None], columns[None, :])
    return np.searchsorted(EDGES_PX, distance, side="right")


def _by_class(
    predicted: NDArray[np.bool_], truth: NDArray[np.uint8], classes: NDArray[np.int64], number: int
) -> Pixels:
    building = truth == BUILDING
    parts = (predicted & building, predicted & ~building, ~predicted & building)
    return np.stack([np.bincount(classes[part & (classes >= 0)], minlength=number) for part in parts], axis=1)
