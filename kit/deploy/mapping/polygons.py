"""Turns traced pieces of a mask into polygons: simplified, squared if asked, in the scene's CRS or in degrees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from kit.deploy.mapping.longitudes import cut_at_180, needs_cut
from kit.deploy.mapping.scene import DEGREES, Frame
from kit.deploy.mapping.squares import square
from kit.deploy.mapping.terraces import shared_outlines, simple_polygons, without_pits
from kit.deploy.mapping.tracing import Footprint, Piece
from kit.deploy.mapping.windows import LEVELS

DECIMALS = 8  # of degrees: a millimetre
POLAR = 85.0  # degrees of latitude


@dataclass(frozen=True)
class Buildings:
    """Some buildings of a map, one per row."""

    polygons: NDArray[np.object_]  # valid, in pixels of the map, (n,)
    confidence: NDArray[np.float64]  # mean probability over the building's pixels in the mask, 0..1, (n,)
    # row and column of the pixel that stands for the building, and which of the building's polygons it is: 0 is the
    # largest, (n, 3)
    anchors: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.polygons)

    def __getitem__(self, places: slice | NDArray[np.bool_] | NDArray[np.int64]) -> "Buildings":
        return Buildings(self.polygons[places], self.confidence[places], self.anchors[places])

    @classmethod
    def joined(cls, parts: Sequence["Buildings"]) -> "Buildings":
        """Returns the buildings of all parts."""
        nothing = cls(np.array([], dtype=object), np.zeros(0), np.zeros((0, 3), np.int64))
        parts = [nothing, *parts]
        return cls(
            np.concatenate([part.polygons for part in parts]),
            np.concatenate([part.confidence for part in parts]),
            np.concatenate([part.anchors for part in parts]),
        )


def outlined(pieces: Sequence[Piece], frame: Frame, simplify_m: float, squared: bool = False) -> Buildings:
    """Returns the buildings of pieces of a mask.

    Args:
        pieces: of the mask. Buildings of one piece keep the walls that they share.
        frame: of the map.
        simplify_m: how far an outline may move, metres.
        squared: turns walls to right angles.
    """
    alone = [building for piece in pieces if len(piece.buildings) == 1 for building in piece.buildings.values()]
    parts = [_as_buildings(alone, *_outlines(_merged(alone), frame, simplify_m, squared))]
    for piece in pieces:
        if len(piece.buildings) > 1:
            touching = [piece.buildings[number] for number in sorted(piece.buildings)]
            touching.sort(key=lambda building: building.anchor)
            outlines, owners = shared_outlines(_merged(touching), (frame.x_m, frame.y_m), simplify_m, squared)
            parts.append(_as_buildings(touching, _scaled(outlines, 1 / frame.x_m, 1 / frame.y_m), owners))
    return Buildings.joined(parts)


def _merged(buildings: Sequence[Footprint]) -> NDArray[np.object_]:
    """Returns the outline of each building, in pixels, without the corners where bands met."""
    whole = np.array([shapely.unary_union(building.polygons) for building in buildings], dtype=object)
    merged: NDArray[np.object_] = shapely.simplify(shapely.normalize(whole), 0)  # also drops a ring's first corner
    return merged


def _outlines(
    whole: NDArray[np.object_], frame: Frame, simplify_m: float, squared: bool
) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Returns the polygons of buildings that touch no other, in pixels, and each one's place in `whole`."""
    outlines, owners = simple_polygons(_scaled(whole, frame.x_m, frame.y_m))  # in metres
    outlines = without_pits(shapely.simplify(outlines, simplify_m, preserve_topology=True))
    if squared:
        outlines = np.array([*(square(outline, simplify_m) for outline in outlines), None], dtype=object)[:-1]
    outlines, sources = simple_polygons(_scaled(outlines, 1 / frame.x_m, 1 / frame.y_m))
    kept = _no_splinters(shapely.area(outlines), sources)
    return outlines[kept], owners[sources[kept]]


def _as_buildings(
    footprints: Sequence[Footprint], polygons: NDArray[np.object_], owners: NDArray[np.int64]
) -> Buildings:
    """Returns the polygons of footprints as buildings; `owners` are their places in `footprints`, ascending."""
    confidence = np.array([each.levels / max(1, each.pixels) / LEVELS for each in footprints], np.float64)
    anchors = np.array([(-each.anchor[1], -each.anchor[2]) for each in footprints], np.int64).reshape(-1, 2)
    order = np.lexsort((*shapely.bounds(polygons).T, -shapely.area(polygons), owners))
    polygons, owners = polygons[order], owners[order]
    rank = np.arange(len(owners)) - np.searchsorted(owners, owners)
    return Buildings(polygons, confidence[owners], np.column_stack([anchors[owners], rank]))


def _no_splinters(areas_px: NDArray[np.float64], sources: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns which polygons have at least a pixel's area, or are the largest that came of their outline."""
    largest = np.zeros(sources.max(initial=-1) + 1)
    np.maximum.at(largest, sources, areas_px)
    kept: NDArray[np.bool_] = (areas_px >= 1) | (areas_px == largest[sources])
    return kept


def _scaled(polygons: NDArray[np.object_], x: float, y: float) -> NDArray[np.object_]:
    scaled: NDArray[np.object_] = shapely.transform(polygons, lambda points: points * (x, y))
    return scaled


def in_crs(polygons: NDArray[np.object_], frame: Frame) -> NDArray[np.object_]:
    """Returns polygons in pixels of a frame in its CRS, exterior rings counterclockwise; None for those that vanish."""
    return _tidy(_in_crs(polygons, frame))


def in_degrees(polygons: NDArray[np.object_], frame: Frame) -> NDArray[np.object_]:
    """Returns polygons in pixels of a frame in EPSG:4326, cut and oriented as RFC 7946 asks.

    A polygon across the 180th meridian becomes a MultiPolygon, one that vanishes None.
    """
    degrees = _in_degrees(polygons, frame)
    cut = needs_cut(degrees)
    polar = cut & (np.abs(shapely.bounds(degrees)[:, [1, 3]]).max(axis=1, initial=0) > POLAR)
    degrees[polar] = _in_degrees(shapely.segmentize(polygons[polar], 1.0), frame)  # straight walls are arcs there
    for place in np.flatnonzero(cut):
        degrees[place] = cut_at_180(degrees[place])
    return _tidy(shapely.transform(degrees, lambda points: np.round(points, DECIMALS)))


def _in_degrees(polygons: NDArray[np.object_], frame: Frame) -> NDArray[np.object_]:
    change = pyproj.Transformer.from_crs(frame.crs, DEGREES, always_xy=True)
    degrees: NDArray[np.object_] = shapely.transform(_in_crs(polygons, frame), change.transform, interleaved=False)
    return degrees


def _in_crs(polygons: NDArray[np.object_], frame: Frame) -> NDArray[np.object_]:
    a, b, c, d, e, f = frame.transform[:6]
    placed: NDArray[np.object_] = shapely.transform(
        polygons, lambda x, y: (a * x + b * y + c, d * x + e * y + f), interleaved=False
    )
    return placed


def _tidy(polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    """Returns polygons oriented and valid: rounding may have merged two corners of a ring."""
    tidy: NDArray[np.object_] = shapely.orient_polygons(polygons, exterior_cw=False)
    for place in np.flatnonzero(~shapely.is_valid(tidy)):
        parts, _ = simple_polygons(tidy[place : place + 1])
        cut = tidy[place].geom_type == "MultiPolygon"
        tidy[place] = shapely.MultiPolygon(list(parts)) if cut else max(parts, key=shapely.area, default=None)
    return tidy


def areas_m2(degrees: NDArray[np.object_]) -> NDArray[np.float64]:
    """Returns the geodesic ground area of polygons in EPSG:4326, exterior rings counterclockwise, (n,)."""
    geod = pyproj.Geod(ellps="WGS84")
    return np.array([abs(geod.geometry_area_perimeter(polygon)[0]) for polygon in degrees], np.float64)
