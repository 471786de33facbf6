"""Polygons across the 180th meridian or around a pole, cut as RFC 7946 (GeoJSON) asks."""

import math

import numpy as np
import shapely
from numpy.typing import NDArray

TURN = 360.0
POLYGON = 3  # shapely's type id


def needs_cut(polygons: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Returns which polygons in degrees cross the 180th meridian, surround a pole or lie beyond 180 degrees, (n,)."""
    left, _, right, _ = shapely.bounds(polygons).T
    needed: NDArray[np.bool_] = np.isfinite(right - left)
    needed &= (right - left > TURN / 2) | (left < -TURN / 2) | (right > TURN / 2)
    return needed


def cut_at_180(polygon: shapely.Polygon) -> shapely.Polygon | shapely.MultiPolygon:
    """Returns a polygon in degrees whose longitudes jump at 180 as parts that lie within -180 to 180.

    Neighbouring corners of a ring must be less than 180 degrees of longitude apart, which holds for a building's.
    """
    whole = _unwrapped(polygon.exterior)
    for hole in map(_unwrapped, polygon.interiors):
        for turn in (-TURN, 0, TURN):
            whole = whole.difference(_moved(hole, turn))
    left, _, right, _ = whole.bounds
    parts: list[shapely.Polygon] = []
    for turn in range(math.floor((left + 180) / TURN), math.ceil((right + 180) / TURN)):
        inside = whole.intersection(shapely.box(TURN * turn - 180, -90, TURN * turn + 180, 90))
        pieces = shapely.get_parts(_moved(inside, -TURN * turn))
        parts += [part for part in pieces if shapely.get_type_id(part) == POLYGON and not part.is_empty]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _unwrapped(ring: shapely.LinearRing) -> shapely.Geometry:
    """Returns the area within a ring, its longitudes continuous: they may exceed 180 degrees."""
    points = shapely.get_coordinates(ring)
    points[:, 0] = np.unwrap(points[:, 0], period=TURN)
    if abs(points[-1, 0] - points[0, 0]) > TURN / 2:  # around a pole
        pole = math.copysign(90, points[:, 1].mean())
        points = np.concatenate([points, [(points[-1, 0], pole), (points[0, 0], pole)]])
    else:
        points[-1] = points[0]  # they may differ by the unwrapping's rounding
    return shapely.make_valid(shapely.Polygon(points), method="structure", keep_collapsed=False)


def _moved(shape: shapely.Geometry, degrees: float) -> shapely.Geometry:
    return shapely.transform(shape, lambda points: points + np.array([degrees, 0]))
