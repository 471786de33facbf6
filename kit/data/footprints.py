"""Footprint polygons: read, repaired, projected."""

from dataclasses import dataclass

import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError

from kit.data.sources.inputs import VECTOR_SUFFIXES
from kit.data.sources.remote import GDAL_WEB, gdal_path, is_remote, suffix_of
from kit.errors import FootprintError

DEGREES = "EPSG:4326"
GEOJSON_SUFFIXES = (".geojson", ".json")
POLYGON, MULTIPOLYGON, COLLECTION = 3, 6, 7  # shapely's type ids


@dataclass(frozen=True)
class Footprints:
    """The polygons of a scene with a spatial index.

    Args:
        polygons: valid Polygon or MultiPolygon geometries, in `crs`.
        crs: their CRS.
        repaired: how many were invalid and have been mended.
        dropped: how many were empty, null or not polygons.
    """

    polygons: NDArray[np.object_]
    crs: str
    repaired: int = 0
    dropped: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tree", shapely.STRtree(self.polygons))

    def to(self, crs: str) -> "Footprints":
        """Returns the same footprints in another CRS."""
        if pyproj.CRS(crs) == pyproj.CRS(self.crs):
            return self
        change = pyproj.Transformer.from_crs(self.crs, crs, always_xy=True)
        moved = shapely.transform(self.polygons, change.transform, interleaved=False)
        return Footprints(moved, crs, self.repaired, self.dropped)

    def touching(self, bounds: tuple[float, float, float, float]) -> NDArray[np.object_]:
        """Returns the polygons that intersect (left, bottom, right, top), in `crs`."""
        hits = self._tree.query(shapely.box(*bounds), predicate="intersects")  # type: ignore[attr-defined]
        found: NDArray[np.object_] = self.polygons[np.sort(hits)]
        return found

    def on(self, outline: shapely.Polygon) -> tuple["Footprints", int]:
        """Returns those that touch a scene's outline, in `crs`, and how many of them reach beyond it."""
        hits = np.sort(self._tree.query(outline, predicate="intersects"))  # type: ignore[attr-defined]
        inside = np.zeros(len(self.polygons), bool)
        inside[self._tree.query(outline, predicate="contains_properly")] = True  # type: ignore[attr-defined]
        kept = Footprints(self.polygons[hits], self.crs, self.repaired, self.dropped)
        return kept, len(hits) - int(inside[hits].sum())


def read_footprints(files: tuple[str, ...], crs: str) -> Footprints:
    """Returns the footprints of a scene's label files, paths or addresses, projected to `crs`.

    GeoJSON is EPSG:4326 (RFC 7946) wherever its numbers can be degrees: the challenge's `crs` members may be broken.

    Raises:
        FootprintError: a file cannot be read, its CRS is not known, or none holds a polygon.
    """
    raw = np.concatenate([np.array([], dtype=object), *(_read_polygons(file, crs) for file in files)])
    invalid = ~shapely.is_valid(raw) & ~shapely.is_missing(raw)
    # structure: what a ring encloses stays inside, where linework would turn overlaps into holes
    raw[invalid] = _polygonal(shapely.make_valid(raw[invalid], method="structure", keep_collapsed=False))
    side_by_side = ~shapely.is_valid(raw) & ~shapely.is_missing(raw)  # parts that share an edge are one polygon
    raw[side_by_side] = shapely.buffer(raw[side_by_side], 0)
    kept = ~shapely.is_missing(raw)
    if not kept.any():
        raise FootprintError(
            f"no polygon in {', '.join(files)} ({len(raw)} features)", "a scene without buildings cannot be trained on"
        )
    return Footprints(raw[kept], crs, int((invalid & kept).sum()), int((~kept).sum()))


def _read_polygons(file: str, crs: str) -> NDArray[np.object_]:
    """Returns a geometry per feature of a file, in `crs`: Polygon or MultiPolygon; None where there is none."""
    if is_remote(file):
        pyogrio.set_gdal_config_options(GDAL_WEB)  # its GDAL is not rasterio's
    try:
        meta, _, wkb, _ = pyogrio.raw.read(gdal_path(file), layer=_layer(file), columns=[])
    except (DataSourceError, DataLayerError, ValueError) as cause:
        raise FootprintError(
            f"footprints {file} cannot be read: {cause}", f"expected polygons in {', '.join(VECTOR_SUFFIXES)}"
        ) from cause
    # fix: rings that do not end where they began are closed
    found = _polygonal(shapely.force_2d(shapely.from_wkb(wkb, on_invalid="fix")))
    is_geojson = suffix_of(file) in GEOJSON_SUFFIXES
    source = _geojson_crs(file, found, meta["crs"]) if is_geojson else meta["crs"]
    if not source:
        raise FootprintError(
            f"footprints {file} have no coordinate system", "add its .prj file, or assign one: ogr2ogr -a_srs EPSG:..."
        )
    if source == DEGREES:
        found[_beyond_degrees(found)] = None
    if pyproj.CRS(source) != pyproj.CRS(crs):
        change = pyproj.Transformer.from_crs(source, crs, always_xy=True)
        found = shapely.transform(found, change.transform, interleaved=False)
    coordinates, owners = shapely.get_coordinates(found, return_index=True)
    found[owners[~np.isfinite(coordinates).all(1)]] = None  # outside the domain of `crs`
    return found


def _layer(file: str) -> str | None:
    """Returns the layer of polygons of a file that may hold several; None: its only one.

    Raises:
        FootprintError: several layers hold polygons.
    """
    if suffix_of(file) != ".gpkg":
        return None
    kinds = {str(name): str(kind) for name, kind in pyogrio.list_layers(gdal_path(file))}
    certain = [name for name, kind in kinds.items() if "Polygon" in kind or "Surface" in kind]
    possible = [name for name, kind in kinds.items() if kind.startswith(("Unknown", "GeometryCollection"))]
    found = certain or possible
    if len(found) > 1:
        raise FootprintError(
            f"footprints {file} have {len(found)} layers of polygons: {', '.join(found)}",
            "keep one: ogr2ogr one.gpkg FILE LAYER",
        )
    return found[0] if found else None


def _geojson_crs(file: str, found: NDArray[np.object_], told: str | None) -> str:
    """Returns EPSG:4326 where the numbers can be degrees, else the CRS that the file tells of.

    Raises:
        FootprintError: they cannot be degrees, and no other CRS is told.
    """
    beyond = _beyond_degrees(found)
    if not beyond.any():
        return DEGREES
    if told and pyproj.CRS(told).is_projected:
        return told
    if beyond.sum() < 0.5 * (~shapely.is_missing(found)).sum():  # a few strays, which are dropped
        return DEGREES
    bounds = ", ".join(f"{value:.6g}" for value in shapely.total_bounds(found))
    raise FootprintError(
        f"footprints {file} are not in degrees (bounds {bounds}), and their `crs` member names no projection",
        "expected longitude, latitude: ogr2ogr -s_srs EPSG:... -t_srs EPSG:4326",
    )


def _beyond_degrees(geometries: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Returns which geometries have coordinates that are no longitude and latitude. (N,) bool."""
    beyond: NDArray[np.bool_] = (np.abs(shapely.bounds(geometries)) > (180, 90, 180, 90)).any(1)
    return beyond


def _polygonal(geometries: NDArray[np.object_]) -> NDArray[np.object_]:
    """Returns the geometries with their polygons alone: Polygon or MultiPolygon, None where there is none."""
    kinds = shapely.get_type_id(geometries)
    kept = geometries.copy()
    kept[~np.isin(kinds, (POLYGON, MULTIPOLYGON)) | shapely.is_empty(geometries)] = None
    for at in np.nonzero(kinds == COLLECTION)[0]:
        parts = geometries[at : at + 1]
        while np.isin(shapely.get_type_id(parts), (MULTIPOLYGON, COLLECTION)).any():  # collections in collections
            parts = shapely.get_parts(parts)
        parts = parts[(shapely.get_type_id(parts) == POLYGON) & ~shapely.is_empty(parts)]
        kept[at] = (parts[0] if len(parts) == 1 else shapely.multipolygons(parts)) if len(parts) else None
    return kept
