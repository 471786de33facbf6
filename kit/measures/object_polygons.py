"""Objects as polygons, compared by their areas; in parts, so that memory stays bounded."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kit.data import polygon_store
from kit.data.polygon_store import PolygonStore
from kit.measures.object_counts import BOUNDARY_M, ObjectCounts, matched_counts

__all__ = ["PolygonComparison", "compare_polygons"]

Polygons = NDArray[np.object_]
Places = NDArray[np.int64]
Numbers = NDArray[np.float64]


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


def compare_polygons(
    true: Polygons | PolygonStore, predicted: Polygons | PolygonStore, boundary_m: float = BOUNDARY_M
) -> PolygonComparison:
    """Returns how predicted polygons compare with true ones.

    Each polygon or multipolygon is one building. Area that polygons of one set share counts once in the Jaccard index.
    Of sets in a `PolygonStore`, some 20,000 polygons are in memory at once, and about 200 bytes for each other one.

    Args:
        true: valid polygons or multipolygons, (T,), in a CRS in metres.
        predicted: likewise, (P,).
        boundary_m: width of the band inside each outline; 0: do not measure it.
    """
    sides = [side if isinstance(side, PolygonStore) else PolygonStore(side) for side in (true, predicted)]
    measured = [_Measured(side, boundary_m) for side in sides]
    pairs, shared, bands = _overlaps(measured[0], measured[1], boundary_m)
    objects, _ = matched_counts(measured[0].areas, measured[1].areas, pairs, shared)
    if boundary_m:
        hit, both = float(bands.sum()), sum(float(side.bands.sum()) for side in measured)
        objects = replace(objects, boundary_hit=hit, boundary_union=both - hit)
    flat = [_dissolved(side) for side in measured]
    if flat != measured:
        shared = _overlaps(flat[0], flat[1])[1]
    both, total = float(shared.sum()), sum(float(side.areas.sum()) for side in flat)
    return PolygonComparison(objects, both, total - both)


class _Measured:
    """Polygons with what is measured of each.

    Args:
        polygons: (N,).
        boundary_m: width of the band inside each outline; 0: do not measure it.
    """

    def __init__(self, polygons: PolygonStore, boundary_m: float = 0) -> None:
        self.polygons = polygons
        areas, bounds, bands = [np.zeros(0)], [np.zeros((0, 4))], [np.zeros(0)]
        for block in polygons.blocks():
            areas.append(shapely.area(block))
            bounds.append(shapely.bounds(block))
            bands.append(areas[-1] - shapely.area(_inside(block, boundary_m)) if boundary_m else np.zeros(len(block)))
        self.areas: Numbers = np.concatenate(areas)  # m2
        self.bounds: Numbers = np.concatenate(bounds)  # m
        self.bands: Numbers = np.concatenate(bands)  # m2

    def __len__(self) -> int:
        return len(self.polygons)


def _overlaps(first: _Measured, second: _Measured, boundary_m: float = 0) -> tuple[Places, Numbers, Numbers]:
    """Returns the places of polygons that share area, (N, 2), that area, (N,), and the area that their bands share."""
    pairs, areas, bands = [np.zeros((0, 2), np.int64)], [np.zeros(0)], [np.zeros(0)]
    for these, those in _parts(first.bounds, second.bounds):
        one, other = first.polygons[these], second.polygons[those]
        a, b = shapely.STRtree(other).query(one, predicate="intersects")
        if first is second:  # each pair once
            once = these[a] < those[b]
            a, b = a[once], b[once]
        area = shapely.area(shapely.intersection(one[a], other[b]))
        a, b = a[area > 0], b[area > 0]
        pairs.append(np.stack([these[a], those[b]], axis=1))
        areas.append(area[area > 0])
        bands.append(_shared_bands((one, other), (a, b), boundary_m) if boundary_m else np.zeros(len(a)))
    all_pairs = np.concatenate(pairs)
    order = np.lexsort(all_pairs.T[::-1])  # sums do not depend on the parts
    return all_pairs[order], np.concatenate(areas)[order], np.concatenate(bands)[order]


def _parts(first: Numbers, second: Numbers) -> Iterator[tuple[Places, Places]]:
    """Yields places in two sets, such that each pair whose bounds, (N, 4), meet is in exactly one part."""
    stack = [(np.arange(len(first)), np.arange(len(second)))]
    while stack:
        sides = stack.pop()
        if not min(map(len, sides)):
            continue
        if sum(map(len, sides)) <= 2 * polygon_store.BLOCK or max(map(len, sides)) == 1:
            yield sides
            continue
        more = int(len(sides[1]) > len(sides[0]))
        many, few = sides[more], sides[1 - more]
        bounds, others = (first, second)[more][many], (first, second)[1 - more][few]
        middles = bounds[:, :2] + bounds[:, 2:]
        order = np.argsort(middles[:, np.ptp(middles, axis=0).argmax()], kind="stable")
        for half in np.array_split(order, 2):
            left, bottom = bounds[half, :2].min(axis=0)
            right, top = bounds[half, 2:].max(axis=0)
            meet = (others[:, 0] <= right) & (others[:, 2] >= left) & (others[:, 1] <= top) & (others[:, 3] >= bottom)
            part = [few[meet], few[meet]]
            part[more] = np.sort(many[half])
            stack.append((part[0], part[1]))


def _shared_bands(sides: tuple[Polygons, Polygons], pairs: tuple[Places, Places], width: float) -> Numbers:
    """Returns the area that the bands of each pair share, (N,)."""
    bands = []
    for polygons, places in zip(sides, pairs, strict=True):
        once, back = np.unique(places, return_inverse=True)
        bands.append(shapely.difference(polygons[once], _inside(polygons[once], width))[back])
    shared: Numbers = shapely.area(shapely.intersection(*bands))
    return shared


def _inside(polygons: Polygons, width: float) -> Polygons:
    inside: Polygons = shapely.buffer(polygons, -width, quad_segs=4)
    return inside


def _dissolved(side: _Measured) -> _Measured:
    """Returns polygons of which those that overlap each other are joined; the same object where none do."""
    first, second = _overlaps(side, side)[0].T
    if not len(first):
        return side
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(side), len(side)))
    group = connected_components(graph, directed=False)[1]
    alone = np.bincount(group)[group] == 1
    joined = PolygonStore()
    for places in _blocks(np.flatnonzero(alone)):
        joined.add(side.polygons[places])
    several = np.flatnonzero(~alone)
    several = several[np.argsort(group[several], kind="stable")]
    groups = np.split(several, np.flatnonzero(np.diff(group[several])) + 1)
    for some in _blocks(np.arange(len(groups))):
        unions = [shapely.union_all(side.polygons[groups[number]]) for number in some]
        joined.add(np.array([*unions, None], dtype=object)[:-1])
    return _Measured(joined)


def _blocks(places: Places) -> list[Places]:
    return np.split(places, range(polygon_store.BLOCK, len(places), polygon_store.BLOCK))
