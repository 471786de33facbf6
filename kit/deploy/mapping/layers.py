"""Writes buildings as a layer: GeoPackage, FlatGeobuf or GeoParquet in the scene's CRS, GeoJSON in degrees."""

import hashlib
import json
from collections.abc import Callable
from glob import escape
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError, GeometryError
from rasterio.crs import CRS

from kit.deploy.mapping.polygons import Buildings, areas_m2, in_crs, in_degrees
from kit.deploy.mapping.scene import Frame
from kit.errors import KitError, nearest

FIELDS = ("id", "area_m2", "confidence")
LAYER = "buildings"  # name of a GeoPackage's layer
BATCH = 5000  # polygons in memory before they are written
SIDES = ("xmin", "ymin", "xmax", "ymax")
EPOCH = "1970-01-01T00:00:00.000Z"  # date of every GeoPackage, so that equal maps are equal files
REMEDY = "free some space and rerun to resume"

Polygons = NDArray[np.object_]
Numbers = NDArray[np.float64]
Texts = NDArray[np.object_]


class GeoPackage:
    """A GeoPackage with one layer, in the scene's CRS, written in batches."""

    suffix, degrees = ".gpkg", False  # of the file; whether polygons are in EPSG:4326

    def begin(self, path: Path, crs: str, about: dict[str, str]) -> None:
        """Creates an empty file with metadata."""
        self.path, self.crs, self.about, self.append = path, crs, about, False
        path.unlink(missing_ok=True)
        nothing, numbers = np.array([], dtype=object), np.array([], np.float64)
        self.put(nothing, nothing, numbers, numbers)
        self.append = True

    def put(self, polygons: Polygons, ids: Texts, areas_m2: Numbers, confidence: Numbers) -> None:
        """Writes a batch."""
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": EPOCH})
        try:
            pyogrio.raw.write(
                self.path, shapely.to_wkb(polygons), [ids, areas_m2, confidence], list(FIELDS), layer=LAYER,
                driver="GPKG", geometry_type="Polygon", crs=self.crs, append=self.append,
                layer_metadata=None if self.append else self.about,
            )  # fmt: skip
        finally:
            pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})

    def end(self) -> None:
        """Completes the file."""


class GeoJson:
    """GeoJSON as in RFC 7946: longitude and latitude, one feature per line, written in batches."""

    suffix, degrees = ".geojson", True

    def begin(self, path: Path, crs: str, about: dict[str, str]) -> None:
        """Creates an empty file with metadata."""
        self.file: IO[str] = path.open("w")
        self.file.write(f'{{"type": "FeatureCollection", "metadata": {json.dumps(about)}, "features": [')
        self.between = "\n"

    def put(self, polygons: Polygons, ids: Texts, areas_m2: Numbers, confidence: Numbers) -> None:
        """Writes a batch."""
        for polygon, *values in zip(polygons, ids, areas_m2.tolist(), confidence.tolist(), strict=True):
            fields = json.dumps(dict(zip(FIELDS, values, strict=True)))
            geometry = shapely.to_geojson(polygon)
            self.file.write(f'{self.between}{{"type": "Feature", "properties": {fields}, "geometry": {geometry}}}')
            self.between = ",\n"

    def end(self) -> None:
        """Completes the file."""
        self.file.write("\n]}\n")
        self.file.close()


class FlatGeobuf(GeoPackage):
    """A FlatGeobuf file, which web maps read in parts; it cannot be appended to, so a GeoPackage comes first."""

    suffix = ".fgb"

    def begin(self, path: Path, crs: str, about: dict[str, str]) -> None:
        """Creates an empty file with metadata."""
        self.final = path
        super().begin(path.with_name(f"{path.name}.gpkg"), crs, about)

    def end(self) -> None:
        """Completes the file."""
        self.final.unlink(missing_ok=True)
        with pyogrio.raw.open_arrow(self.path, layer=LAYER, use_pyarrow=False) as (meta, stream):
            pyogrio.raw.write_arrow(
                stream, self.final, layer=LAYER, driver="FlatGeobuf", geometry_name=meta["geometry_name"],
                geometry_type="Polygon", crs=self.crs, layer_metadata=self.about,
            )  # fmt: skip


class GeoParquet:
    """GeoParquet 1.1 with the bounds of each polygon, written in batches by pyarrow.

    Args:
        more: names of further columns of small integers.
    """

    suffix, degrees = ".parquet", False

    def __init__(self, *more: str) -> None:
        self.more = more

    def begin(self, path: Path, crs: str, about: dict[str, str]) -> None:
        """Creates an empty file with metadata."""
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        number = pyarrow.float64()
        columns = {"id": pyarrow.string(), "area_m2": number, "confidence": number, "geometry": pyarrow.binary()}
        self.bounds = pyarrow.struct([(side, number) for side in SIDES])
        self.schema = pyarrow.schema({**columns, "bbox": self.bounds, **dict.fromkeys(self.more, pyarrow.int8())})
        self.crs, self.about, self.box = pyproj.CRS(crs).to_json_dict(), about, np.full(4, np.nan)
        self.kinds: set[str] = set()
        self.writer = ParquetWriter(path, self.schema, compression="zstd")

    def put(
        self, polygons: Polygons, ids: Texts, areas_m2: Numbers, confidence: Numbers, *more: NDArray[np.int8]
    ) -> None:
        """Writes a batch."""
        import pyarrow

        if not len(polygons):
            return
        sides = shapely.bounds(polygons)
        boxes = pyarrow.StructArray.from_arrays([pyarrow.array(side) for side in sides.T], fields=list(self.bounds))
        cells = [pyarrow.array(ids, pyarrow.string()), areas_m2, confidence, shapely.to_wkb(polygons), boxes, *more]
        self.writer.write_table(pyarrow.table(cells, schema=self.schema))
        box = np.vstack([self.box, sides])
        self.box = np.concatenate([np.nanmin(box[:, :2], axis=0), np.nanmax(box[:, 2:], axis=0)])
        self.kinds.update(polygon.geom_type for polygon in polygons)

    def end(self) -> None:
        """Completes the file with the metadata that its standard asks for."""
        column = {
            "encoding": "WKB", "geometry_types": sorted(self.kinds) or ["Polygon"], "crs": self.crs,
            "orientation": "counterclockwise",
            "covering": {"bbox": {side: ["bbox", side] for side in SIDES}},
        }  # fmt: skip
        if np.isfinite(self.box).all():
            column["bbox"] = [float(side) for side in self.box]
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        self.writer.add_key_value_metadata({**self.about, "geo": json.dumps(geo)})
        self.writer.close()


Format = GeoPackage | GeoJson | GeoParquet
FORMATS: dict[str, type[Format]] = {
    "gpkg": GeoPackage, "geojson": GeoJson, "fgb": FlatGeobuf, "parquet": GeoParquet,
}  # fmt: skip


def check_format(name: str) -> type[Format]:
    """Returns the format of that name.

    Raises:
        KitError: there is none, or it needs a package that is not installed.
    """
    if name not in FORMATS:
        raise KitError(f"no format {name!r}, expected {', '.join(FORMATS)}", nearest(name, FORMATS))
    if FORMATS[name] is GeoParquet and find_spec("pyarrow") is None:
        raise KitError("GeoParquet needs pyarrow, which is not installed", "pip install pyarrow, or --format gpkg")
    return FORMATS[name]


def scene_code(frame: Frame) -> str:
    """Returns eight characters that stand for a grid: equal for equal CRS, transform and size."""
    crs = CRS.from_wkt(frame.crs).to_string()
    grid = [crs, *(float(number) for number in frame.transform[:6]), frame.width, frame.height]
    return hashlib.sha256(json.dumps(grid).encode()).hexdigest()[:8]


class Layer:
    """A file of buildings that gets its final name when it is complete; a context manager.

    Args:
        stem: of its path; the format adds the suffix.
        format_: one of `FORMATS`.
        frame: of the map.
        about: metadata of the file.

    Attributes:
        count: buildings written so far.
        area_m2: their ground area.
    """

    def __init__(self, stem: Path, format_: type[Format], frame: Frame, about: dict[str, str]) -> None:
        self.format, self.frame, self.about = format_(), frame, about
        self.path = stem.with_name(stem.name + self.format.suffix)
        self.temporary = stem.with_name(f".{stem.name}.part{self.format.suffix}")
        self.waiting: list[Buildings] = []
        self.count, self.area_m2 = 0, 0.0
        self.scene = scene_code(frame)

    def __enter__(self) -> "Layer":
        self._try(lambda: self.format.begin(self.temporary, self.frame.crs, self.about))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._write()
                self._try(self.format.end)
                self._try(lambda: self.temporary.replace(self.path))
        finally:
            for leftover in self.temporary.parent.glob(f"{escape(self.temporary.name)}*"):  # SQLite's journal, too
                leftover.unlink()

    def add(self, buildings: Buildings) -> None:
        """Adds buildings, given in pixels of the map."""
        self.waiting.append(buildings)
        if sum(map(len, self.waiting)) >= BATCH:
            self._write()

    def _write(self) -> None:
        buildings = Buildings.joined(self.waiting)
        self.waiting = []
        degrees = in_degrees(buildings.polygons, self.frame)
        written = degrees if self.format.degrees else in_crs(buildings.polygons, self.frame)
        kept = ~shapely.is_missing(degrees) & ~shapely.is_missing(written)
        areas = np.round(areas_m2(degrees[kept]), 2)
        ids = np.array(
            [
                f"{self.scene}-{row}-{column}" + (f"-{part + 1}" if part else "")
                for row, column, part in buildings.anchors[kept].tolist()
            ],
            dtype=object,
        )
        confidence = np.round(buildings.confidence[kept], 4)
        self._try(lambda: self.format.put(written[kept], ids, areas, confidence))
        self.count, self.area_m2 = self.count + len(areas), self.area_m2 + float(areas.sum())

    def _try(self, write: Callable[[], object]) -> None:
        """Writes; a full disk or a folder that cannot be written is a KitError."""
        try:
            write()
        except (OSError, DataSourceError, DataLayerError, GeometryError) as cause:
            reason = getattr(cause, "strerror", None) or cause
            raise KitError(f"cannot write {self.path}: {reason}", REMEDY) from cause
