"""Footprint polygons of a scene: read, repaired, searchable by place."""

from dataclasses import dataclass

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from kit.data.grids import Bounds
from kit.data.vectors import polygonal, read_labels


@dataclass(frozen=True)
class Footprints:
    """The polygons of a scene with a spatial index."""

    polygons: NDArray[np.object_]  # valid Polygon or MultiPolygon geometries, in `crs`
    crs: str  # their CRS
    repaired: int = 0  # number of invalid ones that were repaired
    dropped: int = 0  # number of features that were empty, null or not polygons
    far: int = 0  # number of features far from the scene, which are left out
    # whether the extent of all labels, far ones included, meets the scene: then a scene without footprints is
    # background
    surround: bool = True
    notices: tuple[str, ...] = ()  # what the user should know about the label files

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tree", shapely.STRtree(self.polygons))

    def to(self, crs: str) -> "Footprints":
        """Returns the same footprints in another CRS."""
        if pyproj.CRS(crs) == pyproj.CRS(self.crs):
            return self
        change = pyproj.Transformer.from_crs(self.crs, crs, always_xy=True)
        moved = shapely.transform(self.polygons, change.transform, interleaved=False)
        return Footprints(moved, crs, self.repaired, self.dropped)

    def touching(self, bounds: Bounds) -> NDArray[np.object_]:
        """Returns the polygons that intersect (left, bottom, right, top), in `crs`."""
        hits = self._tree.query(shapely.box(*bounds), predicate="intersects")  # type: ignore[attr-defined]
        touching: NDArray[np.object_] = self.polygons[np.sort(hits)]
        return touching

    def on(self, outline: shapely.Polygon) -> tuple["Footprints", int]:
        """Returns those that touch a scene's outline, in `crs`, and how many of them reach beyond it."""
        hits = np.sort(self._tree.query(outline, predicate="intersects"))  # type: ignore[attr-defined]
        inside = np.zeros(len(self.polygons), bool)
        inside[self._tree.query(outline, predicate="contains_properly")] = True  # type: ignore[attr-defined]
        kept = Footprints(self.polygons[hits], self.crs, self.repaired, self.dropped)
        return kept, len(hits) - int(inside[hits].sum())


def read_footprints(
    files: tuple[str, ...], crs: str, where: str = "", outline: shapely.Polygon | None = None
) -> Footprints:
    """Returns the footprints of a scene's label files, projected to `crs`; none where the files hold no features.

    GeoJSON is EPSG:4326 (RFC 7946) wherever its numbers can be degrees: the challenge's `crs` members may be broken.

    Args:
        files: paths or addresses.
        crs: of the result.
        where: SQL condition that chooses features, for example `kind = 'building'`; empty: all.
        outline: of the scene, in `crs`: features far from it are left out, and of large files not even read.

    Raises:
        FootprintError: see `kit.data.vectors.read_labels`.
    """
    labels = [read_labels(file, crs, where, outline) for file in files]
    raw = np.concatenate([np.array([], dtype=object), *(part.polygons for part in labels)])
    polygons, repaired = repaired_polygons(raw)
    return Footprints(
        polygons,
        crs,
        repaired=repaired,
        dropped=len(raw) - len(polygons),
        far=sum(part.far for part in labels),
        surround=any(part.surround for part in labels),
        notices=tuple(notice for part in labels for notice in part.notices),
    )


def repaired_polygons(polygons: NDArray[np.object_]) -> tuple[NDArray[np.object_], int]:
    """Returns valid polygons, without those that are None or vanish, and how many of them were invalid."""
    raw = polygons.copy()
    invalid = ~shapely.is_valid(raw) & ~shapely.is_missing(raw)
    # structure: what a ring encloses stays inside, where linework would turn overlaps into holes
    raw[invalid] = polygonal(shapely.make_valid(raw[invalid], method="structure", keep_collapsed=False))
    side_by_side = ~shapely.is_valid(raw) & ~shapely.is_missing(raw)  # parts that share an edge are one polygon
    raw[side_by_side] = shapely.buffer(raw[side_by_side], 0)
    kept = ~shapely.is_missing(raw)
    return raw[kept], int((invalid & kept).sum())
