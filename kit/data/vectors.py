"""Reads the polygons of a label file near a scene, in the scene's CRS."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import ProjError

from kit.data.grids import Bounds, world_width
from kit.data.polygon_store import BLOCK, PolygonStore
from kit.data.sources.inputs import VECTOR_SUFFIXES
from kit.data.sources.remote import GDAL_WEB, gdal_path, is_remote, local_path, suffix_of
from kit.errors import FootprintError

DEGREES = "EPSG:4326"
GEOJSON_SUFFIXES = (".geojson", ".json")
POLYGON, MULTIPOLYGON, COLLECTION = 3, 6, 7  # shapely's type ids
KINDS = {0: "points", 1: "lines", 2: "lines", 4: "points", 5: "lines", COLLECTION: "collections"}
SURFACES = (15, 16, 17)  # polyhedral surface, TIN, triangle in WKB
LARGE_BYTES = 64 << 20  # of a GeoJSON: from here on only what lies near the scene is kept in memory
LARGE_FEATURES = 200_000  # likewise of other formats
BATCH = 500_000  # features that are read at once of a file of any size
NEAR = 0.05  # of a scene's size: margin around its frame in which features are read
BEYOND_180 = 6.0  # degrees: longitudes of a scene across 180 degrees may exceed 180
# fields in which annotation tools and public agencies keep classes
CLASS_FIELDS = ("category", "class", "class_name", "classname", "fclass", "feature", "kind", "label", "landuse", "type")
MOST_CLASSES = 50  # a field with more values has names or numbers, not classes
SHOWN = 5  # values of a field, in a notice

# what pyogrio raises for damaged files: the last two where there is no layer, and where the CRS is no text
DAMAGED = (shapely.errors.ShapelyError, RuntimeError, ValueError, IndexError, UnboundLocalError)

Geometries = NDArray[np.object_]
Fields = dict[str, NDArray[np.object_]]


@dataclass(frozen=True)
class Labels:
    """What one label file holds near a scene."""

    polygons: Geometries  # a Polygon or MultiPolygon per feature, None where it is neither; in the scene's CRS
    far: int  # how many features lie far from the scene, and were left out
    surround: bool  # whether the extent of all features meets the scene; true of a file without features
    notices: tuple[str, ...]  # what the user should know about the file


class _Summary(NamedTuple):
    """Of a layer: how many features it has, where they lie, and its CRS as the file says."""

    features: int
    bounds: Bounds
    crs: str | None


def read_labels(file: str, crs: str, where: str = "", outline: shapely.Polygon | None = None) -> Labels:
    """Returns the polygons of a label file; the arguments are those of `kit.data.footprints.read_footprints`.

    Raises:
        FootprintError: it cannot be read, its CRS is not known or has no place on earth, `where` does not fit it, or
            all it holds are points or lines.
    """
    with _explained(file, where):
        return _read_near(file, crs, where, outline)


def read_all(file: str) -> PolygonStore:
    """Returns the polygons of a file of any size in degrees, as `read_labels` does; None where a feature is none.

    Raises:
        FootprintError: as `read_labels`.
    """
    with _explained(file, ""):
        return _read_all(file)


@contextmanager
def _explained(file: str, where: str) -> Iterator[None]:
    """Turns what GDAL and PROJ raise in the block into a FootprintError."""
    if is_remote(file):
        pyogrio.set_gdal_config_options(GDAL_WEB)  # its GDAL is not rasterio's
    try:
        yield
    except ProjError as cause:
        raise FootprintError(
            f"footprints {file} and their scene cannot be projected onto each other: {cause}",
            "one of them has no real coordinate system: assign it with ogr2ogr -a_srs EPSG:... or gdal_edit.py -a_srs",
        ) from cause
    except DAMAGED as cause:
        raise _unreadable(file, where, cause) from cause


def _read_near(file: str, crs: str, where: str, outline: shapely.Polygon | None) -> Labels:
    is_geojson = suffix_of(file) in GEOJSON_SUFFIXES
    layer = _layer(file)
    large = _large(file, layer) if outline is not None else None
    boxes: list[Bounds] = []
    if large and outline is not None:
        is_projected = bool(large.crs) and pyproj.CRS(large.crs).is_projected
        boxes = _boxes(outline, crs, DEGREES if is_geojson and not is_projected else _known(file, large.crs))
    features, fields, file_crs = _read(file, layer, where, boxes)
    geometries = polygonal(features)
    bounds = shapely.bounds(geometries)
    _check_kinds(file, _kinds(features), bounds)
    source = _known(file, _geojson_crs(file, bounds, file_crs) if is_geojson else file_crs)
    if source == DEGREES:
        beyond = _beyond_degrees(bounds)
        geometries[beyond], bounds[beyond] = None, np.nan
    if outline is not None and not boxes:
        boxes = _boxes(outline, crs, source)
    near = _meets(bounds, boxes) | shapely.is_missing(geometries)
    moved = _moved(geometries[near], source, crs, outline)
    if large:
        extents = np.array([large.bounds])
    else:
        extents = np.array([shapely.total_bounds(geometries)]) if np.isfinite(bounds).any() else bounds[:0]
    surround = not len(extents) or bool(_meets(extents, boxes)[0])
    far = max(0, large.features - int(near.sum())) if large else int((~near).sum())
    return Labels(moved, far, surround, () if where else _classes(file, fields))


def _read_all(file: str) -> PolygonStore:
    raw, kinds, boxes, file_crs = PolygonStore(), Counter[str](), [np.zeros((0, 4))], None
    layer, size = _layer(file), BATCH
    while size == BATCH:
        some = {"skip_features": len(raw), "max_features": BATCH}
        meta, _, wkb, _ = pyogrio.raw.read(gdal_path(file), layer=layer, columns=[], **some)
        size, file_crs = len(wkb), meta["crs"]
        for start in range(0, size, BLOCK):
            features = _decoded(file, wkb[start : start + BLOCK])
            kinds += _kinds(features)
            geometries = polygonal(features)
            boxes.append(shapely.bounds(geometries))
            raw.add(geometries)
    bounds = np.concatenate(boxes)
    _check_kinds(file, kinds, bounds)
    is_geojson = suffix_of(file) in GEOJSON_SUFFIXES
    source = _known(file, _geojson_crs(file, bounds, file_crs) if is_geojson else file_crs)
    beyond = _beyond_degrees(bounds) & (source == DEGREES)
    placed = PolygonStore()
    for geometries in raw.blocks():
        geometries[beyond[len(placed) : len(placed) + len(geometries)]] = None
        placed.add(_moved(geometries, source, DEGREES, None))
    return placed


def _moved(geometries: Geometries, source: str, crs: str, outline: shapely.Polygon | None) -> Geometries:
    """Returns geometries in another CRS, None outside its domain."""
    moved = _unwrapped(_projected(geometries, source, crs), crs, outline)
    coordinates, owners = shapely.get_coordinates(moved, return_index=True)
    moved[owners[~np.isfinite(coordinates).all(1)]] = None
    return moved


def _large(file: str, layer: str | None) -> _Summary | None:
    """Returns the summary of a file so large that only a part is to be read; None for others."""
    is_geojson = suffix_of(file) in GEOJSON_SUFFIXES
    if is_geojson and (is_remote(file) or local_path(file).stat().st_size < LARGE_BYTES):
        return None
    path = gdal_path(file)
    if not is_geojson and pyogrio.read_info(path, layer=layer)["features"] <= LARGE_FEATURES:
        return None
    info = pyogrio.read_info(path, layer=layer, force_feature_count=True, force_total_bounds=True)
    return _Summary(info["features"], info["total_bounds"], info["crs"])


def _read(file: str, layer: str | None, where: str, boxes: list[Bounds]) -> tuple[Geometries, Fields, str | None]:
    """Returns the geometries of the features in any box (all without boxes), class fields, and the CRS in the file."""

    def read(columns: list[str] | None) -> tuple[Geometries, Fields, str | None]:
        everywhere: list[Bounds | None] = [None]
        options = {"layer": layer, "columns": columns, "where": where or None, "return_fids": True}
        parts = [pyogrio.raw.read(gdal_path(file), bbox=box, **options) for box in (boxes or everywhere)]
        meta = parts[0][0]
        _, once = np.unique(np.concatenate([part[1] for part in parts]), return_index=True)  # some lie in two boxes
        wkb = np.concatenate([part[2] for part in parts])[once]
        fields = {
            str(name): np.concatenate([part[3][place] for part in parts])[once]
            for place, name in enumerate(meta["fields"])
        }
        return _decoded(file, wkb), fields, meta["crs"]

    try:
        if where:  # GDAL compares nothing with a field that is not read
            return read(None)
        return read([name for field in CLASS_FIELDS for name in (field, field.title(), field.upper())])
    except UnicodeDecodeError:
        if where:
            raise
        return read([])  # a Shapefile whose .cpg does not fit: its polygons are whole


def _decoded(file: str, wkb: Geometries) -> Geometries:
    """Returns geometries, in two dimensions, from WKB."""
    geometries = shapely.from_wkb(wkb, on_invalid="fix")  # rings that do not end where they began are closed
    lost = wkb[shapely.is_missing(geometries) & (wkb != None)]  # noqa: E711  # of each element
    if any(int.from_bytes(content[1:5], "little") % 1000 in SURFACES for content in lost):
        raise FootprintError(
            f"footprints {file} hold surfaces of triangles or faces", "convert them: ogr2ogr -nlt MULTIPOLYGON"
        )
    flat: Geometries = shapely.force_2d(geometries)
    return flat


def _unreadable(file: str, where: str, cause: Exception) -> FootprintError:
    if where:
        return FootprintError(
            f"{file}: --where {where!r} cannot be applied: {cause}",
            f"expected a condition such as kind = 'building' on its fields {_field_names(file)}",
        )
    reason = "it holds no layer" if isinstance(cause, IndexError) else cause
    return FootprintError(
        f"footprints {file} cannot be read: {reason}", f"expected polygons in {', '.join(VECTOR_SUFFIXES)}"
    )


def _field_names(file: str) -> str:
    try:
        return ", ".join(pyogrio.read_info(gdal_path(file), layer=_layer(file))["fields"])
    except DAMAGED:
        return "(not readable)"


def _layer(file: str) -> str | None:
    """Returns the layer of polygons of a file that may hold several; None: its only one."""
    if suffix_of(file) != ".gpkg":
        return None
    kinds = {str(name): str(kind) for name, kind in pyogrio.list_layers(gdal_path(file))}
    certain = [name for name, kind in kinds.items() if "Polygon" in kind or "Surface" in kind]
    possible = [name for name, kind in kinds.items() if kind.startswith(("Unknown", "GeometryCollection"))]
    layers = certain or possible
    if len(layers) > 1:
        raise FootprintError(
            f"footprints {file} have {len(layers)} layers of polygons: {', '.join(layers)}",
            f"keep one: ogr2ogr one.gpkg {gdal_path(file)} {layers[0]}",
        )
    return layers[0] if layers else None


def _known(file: str, crs: str | None) -> str:
    if not crs:
        raise FootprintError(
            f"footprints {file} have no coordinate system", "add its .prj file, or assign one: ogr2ogr -a_srs EPSG:..."
        )
    return crs


def _geojson_crs(file: str, bounds: NDArray[np.float64], file_crs: str | None) -> str:
    """Returns EPSG:4326 where bounds, (N, 4), can be degrees, else the CRS that the file names."""
    beyond = _beyond_degrees(bounds)
    if not beyond.any():
        return DEGREES
    if file_crs and pyproj.CRS(file_crs).is_projected:
        return file_crs
    if beyond.sum() < 0.5 * (~np.isnan(bounds[:, 0])).sum():  # a few strays, which are dropped
        return DEGREES
    extent = (*np.nanmin(bounds[:, :2], axis=0), *np.nanmax(bounds[:, 2:], axis=0))
    shown = ", ".join(f"{value:.6g}" for value in extent)
    raise FootprintError(
        f"footprints {file} are not in degrees (bounds {shown}), and their `crs` member names no projection",
        "expected longitude, latitude: ogr2ogr -s_srs EPSG:... -t_srs EPSG:4326",
    )


def _beyond_degrees(bounds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns which bounds, (N, 4), are no longitudes and latitudes, (N,)."""
    most = (180 + BEYOND_180, 90) * 2
    beyond: NDArray[np.bool_] = np.any(np.abs(bounds) > most, axis=1)
    return beyond


def _boxes(outline: shapely.Polygon, crs: str, source: str) -> list[Bounds]:
    """Returns (left, bottom, right, top) of a scene in the CRS of a label file; two or more across 180 degrees."""
    left, bottom, right, top = outline.bounds
    reach = NEAR * max(right - left, top - bottom)
    moved = _projected(shapely.segmentize(shapely.buffer(outline, reach), reach), crs, source)
    moved = _unwrapped(np.array([moved]), source, None)[0]
    left, bottom, right, top = moved.bounds
    if not all(map(math.isfinite, (left, bottom, right, top))):
        return []
    world = world_width(source)
    edge = world / 2 + BEYOND_180 / 360 * world
    shifts = [shift for shift in (-world, 0.0, world) if left + shift <= edge and right + shift >= -edge]
    return [(left + shift, bottom, right + shift, top) for shift in shifts] if world else [(left, bottom, right, top)]


def _meets(bounds: NDArray[np.float64], boxes: list[Bounds]) -> NDArray[np.bool_]:
    """Returns which bounds, (N, 4), overlap any of the boxes; all do where there are no boxes."""
    if not boxes:
        return np.ones(len(bounds), bool)
    left, bottom, right, top = bounds.T
    hits = [(left <= e) & (right >= w) & (bottom <= n) & (top >= s) for w, s, e, n in boxes]
    meets: NDArray[np.bool_] = np.any(hits, axis=0)
    return meets


def _projected(geometries: Geometries, source: str, crs: str) -> Geometries:
    """Returns geometries in another CRS; an array, or one geometry for one."""
    change = pyproj.Transformer.from_crs(source, crs, always_xy=True)
    if pyproj.CRS(source) == pyproj.CRS(crs):
        return geometries
    moved: Geometries = shapely.transform(geometries, change.transform, interleaved=False)
    return moved


def _unwrapped(geometries: Geometries, crs: str, outline: shapely.Polygon | None) -> Geometries:
    """Returns geometries that do not reach around the world where they cross 180 degrees, next to a scene."""
    world = world_width(crs)
    if not world or not len(geometries):
        return geometries
    left, _, right, _ = shapely.bounds(geometries).T
    torn = right - left > world / 2  # one of its ends was counted from the other side
    coordinates, owners = shapely.get_coordinates(geometries, return_index=True)
    coordinates[torn[owners] & (coordinates[:, 0] < 0), 0] += world
    moved: Geometries = shapely.set_coordinates(geometries.copy(), coordinates)
    if outline is not None:
        left, _, right, _ = shapely.bounds(moved).T
        turns = np.nan_to_num(np.round((outline.centroid.x - (left + right) / 2) / world))
        coordinates[:, 0] += world * turns[owners]
        moved = shapely.set_coordinates(moved, coordinates)
    return moved


def _kinds(features: Geometries) -> Counter[str]:
    """Returns how many features are points, lines or collections; "" are the others."""
    filled = features[~shapely.is_missing(features) & ~shapely.is_empty(features)]
    return Counter(KINDS.get(int(kind), "") for kind in shapely.get_type_id(filled))


def _check_kinds(file: str, kinds: Counter[str], bounds: NDArray[np.float64]) -> None:
    """Checks that a file does not hold points and lines alone; `bounds`, (N, 4), are those of its polygons."""
    if kinds and not kinds[""] and np.isnan(bounds).all():
        counts = " and ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()) if count)
        raise FootprintError(
            f"footprints {file} hold {counts}, no polygons", "expected outlines of buildings: polygonize or buffer them"
        )


def _classes(file: str, fields: Fields) -> tuple[str, ...]:
    """Returns a notice where a field seems to hold classes: one of them may be buildings."""
    for name, values in fields.items():
        counts = Counter(str(value) for value in values if value is not None and value == value)  # NaN
        if 2 <= len(counts) <= MOST_CLASSES:
            shown = [f"{value} ({count})" for value, count in counts.most_common(SHOWN)]
            more = [f"{len(counts) - SHOWN} more"] if len(counts) > SHOWN else []
            building = next((value for value in counts if "building" in value.casefold()), "...")
            return (
                f"{file}: all features are taken as buildings, but its field {name} holds {', '.join(shown + more)}: "
                f"choose with --where \"{name} = '{building}'\"",
            )
    return ()


def polygonal(geometries: Geometries) -> Geometries:
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
