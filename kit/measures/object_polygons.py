"""Objects as polygons, compared by their areas; in blocks, so that memory stays bounded."""

from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from kit.measures.object_counts import BOUNDARY_M, ObjectCounts, matched_counts

__all__ = ["PolygonComparison", "compare_polygons"]

BLOCK = 20_000  # polygons whose overlaps are computed at once

Polygons = NDArray[np.object_]


@dataclass(frozen=True)
class PolygonComparison:
    """How two sets of polygons compare."""

    objects: ObjectCounts  # counts of polygons
    shared_m2: float  # area that both sets cover
    union_m2: float  # area that either covers

    @property
    def jaccard(self) -> float:
        """Shared area by area of the union; 1 where both sets are empty."""
        return self.shared_m2 / self.union_m2 if self.union_m2 else 1.0


def compare_polygons(true: Polygons, predicted: Polygons, boundary_m: float = BOUNDARY_M) -> PolygonComparison:
    """Returns how predicted polygons compare with true ones.

    Each polygon or multipolygon is one building. Area that polygons of one set share counts once in the Jaccard index.

    Args:
        true: valid polygons or multipolygons, (T,), in a CRS in metres.
        predicted: likewise, (P,).
        boundary_m: width of the band inside each outline; 0: do not measure it.
    """
    true_area, predicted_area = shapely.area(true), shapely.area(predicted)
    pairs, shared = _overlaps(true, predicted)
    objects, _ = matched_counts(true_area, predicted_area, pairs, shared)
    if boundary_m:
        hit = _shared_bands(true, predicted, pairs, boundary_m)
        bands = sum(_band_area(side, boundary_m) for side in (true, predicted))
        objects = replace(objects, boundary_hit=hit, boundary_union=bands - hit)
    flat = [_dissolved(side) for side in (true, predicted)]
    total = sum(float(shapely.area(side).sum()) for side in flat)
    if flat[0] is not true or flat[1] is not predicted:
        shared = _overlaps(flat[0], flat[1])[1]
    both = float(shared.sum())
    return PolygonComparison(objects, both, total - both)


def _overlaps(first: Polygons, second: Polygons) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the places of polygons that share area, (N, 2), and that area, (N,)."""
    tree = shapely.STRtree(second)
    pairs, areas = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for start in range(0, len(first), BLOCK):
        one, other = tree.query(first[start : start + BLOCK], predicate="intersects")
        one += start
        area = shapely.area(shapely.intersection(first[one], second[other]))
        pairs.append(np.stack([one, other], axis=1)[area > 0])
        areas.append(area[area > 0])
    return np.concatenate(pairs), np.concatenate(areas)


def _shared_bands(true: Polygons, predicted: Polygons, pairs: NDArray[np.int64], width: float) -> float:
    """Returns the area that the bands of overlapping polygons share."""
    total = 0.0
    for start in range(0, len(pairs), BLOCK):
        bands = []
        for side, places in zip((true, predicted), pairs[start : start + BLOCK].T, strict=True):
            once, back = np.unique(places, return_inverse=True)
            bands.append(shapely.difference(side[once], _inside(side[once], width))[back])
        total += float(shapely.area(shapely.intersection(*bands)).sum())
    return total


def _band_area(polygons: Polygons, width: float) -> float:
    blocks = (polygons[start : start + BLOCK] for start in range(0, len(polygons), BLOCK))
    return sum(float((shapely.area(block) - shapely.area(_inside(block, width))).sum()) for block in blocks)


def _inside(polygons: Polygons, width: float) -> Polygons:
    inside: Polygons = shapely.buffer(polygons, -width, quad_segs=4)
    return inside


def _dissolved(polygons: Polygons) -> Polygons:
    """Returns the polygons, those that overlap each other joined; the same array where none do."""
    pairs, _ = _overlaps(polygons, polygons)
    overlapping = np.unique(pairs[pairs[:, 0] != pairs[:, 1]])
    if not len(overlapping):
        return polygons
    joined = shapely.get_parts(shapely.disjoint_subset_union_all(polygons[overlapping]))
    return np.concatenate([np.delete(polygons, overlapping), joined])
