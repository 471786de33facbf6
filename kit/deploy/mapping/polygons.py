"""Traced pieces to clean polygons: whole, without small holes, simplified, with right angles if wanted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from kit.deploy.mapping.blending import LEVELS
from kit.deploy.mapping.scene import DEGREES, Frame
from kit.deploy.mapping.squares import square
from kit.deploy.mapping.tracing import Piece

POLYGON = 3  # shapely's type id
DECIMALS = 8  # of degrees: a millimetre


@dataclass(frozen=True)
class Rules:
    """How polygons are cleaned.

    Args:
        simplify_m: how far an outline may move, metres.
        square: right angles.
        min_area_m2: smaller objects are left out.
        min_hole_m2: smaller holes are filled.
    """

    simplify_m: float
    square: bool = False
    min_area_m2: float = 2.0
    min_hole_m2: float = 2.0


@dataclass(frozen=True)
class Buildings:
    """Some buildings of a map, a row each.

    Args:
        polygons: valid, in pixels of the map, (n,).
        confidence: mean probability of building over the mask's pixels, 0..1, (n,).
    """

    polygons: NDArray[np.object_]
    confidence: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.polygons)


def clean(pieces: Sequence[Piece], frame: Frame, rules: Rules) -> Buildings:
    """Returns the buildings that pieces of a map are, in pixels of its frame."""
    whole = np.array([shapely.unary_union(piece.polygons) for piece in pieces], dtype=object)
    confidence = np.array([piece.levels / max(1, piece.pixels) / LEVELS for piece in pieces], np.float64)
    whole = shapely.simplify(shapely.normalize(whole), 0)  # no corners where bands met, also none to begin with
    outlines, owners = _simple(_scaled(whole, frame.x_m, frame.y_m))  # in metres
    outlines = _filled(outlines, rules.min_hole_m2)
    outlines = shapely.simplify(outlines, rules.simplify_m, preserve_topology=True)
    if rules.square:
        squared = [square(outline, rules.simplify_m) for outline in outlines]
        outlines = np.array([*squared, None], dtype=object)[:-1]
    outlines, again = _simple(_scaled(outlines, 1 / frame.x_m, 1 / frame.y_m))
    smallest_px = max(1.0, rules.min_area_m2 / (frame.x_m * frame.y_m))  # less than a pixel is a splinter
    large = shapely.area(outlines) >= smallest_px
    return Buildings(outlines[large], confidence[owners[again[large]]])


def _scaled(polygons: NDArray[np.object_], x: float, y: float) -> NDArray[np.object_]:
    scaled: NDArray[np.object_] = shapely.transform(polygons, lambda points: points * (x, y))
    return scaled


def _simple(shapes: NDArray[np.object_]) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Returns shapes as valid polygons, and which shape each is of: parts that only touch at corners are apart."""
    broken = ~shapely.is_valid(shapes)
    mended = shapes.copy()
    mended[broken] = shapely.make_valid(shapes[broken], method="structure", keep_collapsed=False)
    parts, owners = shapely.get_parts(mended, return_index=True)
    kept = (shapely.get_type_id(parts) == POLYGON) & ~shapely.is_empty(parts)
    return parts[kept], owners[kept]


def _filled(polygons: NDArray[np.object_], smallest: float) -> NDArray[np.object_]:
    """Returns polygons without the holes that are smaller."""
    filled = polygons.copy()
    for at in np.flatnonzero(shapely.get_num_interior_rings(polygons)):
        rings = polygons[at].interiors
        holes = [ring for ring in rings if shapely.Polygon(ring).area >= smallest]
        if len(holes) < len(rings):
            filled[at] = shapely.Polygon(polygons[at].exterior, holes)
    return filled


def placed(polygons: NDArray[np.object_], frame: Frame, degrees: bool) -> NDArray[np.object_]:
    """Returns polygons in pixels of a frame in its CRS, or in EPSG:4326; None for what vanishes there.

    Rings turn as RFC 7946 wants them to.
    """
    a, b, c, d, e, f = frame.transform[:6]
    found: NDArray[np.object_] = shapely.transform(
        polygons, lambda x, y: (a * x + b * y + c, d * x + e * y + f), interleaved=False
    )
    if degrees:
        change = pyproj.Transformer.from_crs(frame.crs, DEGREES, always_xy=True)
        found = shapely.transform(found, change.transform, interleaved=False)
        found = shapely.transform(found, lambda points: np.round(points, DECIMALS))
    found = shapely.orient_polygons(found, exterior_cw=False)
    for at in np.flatnonzero(~shapely.is_valid(found)):  # two points of a ring have become one
        parts, _ = _simple(found[at : at + 1])
        found[at] = max(parts, key=shapely.area, default=None)
    return found


def areas_m2(degrees: NDArray[np.object_]) -> NDArray[np.float64]:
    """Returns the area on the ground of polygons in EPSG:4326, exterior rings counterclockwise: geodesic, (n,)."""
    geod = pyproj.Geod(ellps="WGS84")
    return np.array([abs(geod.geometry_area_perimeter(polygon)[0]) for polygon in degrees], np.float64)
