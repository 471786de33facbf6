"""Buildings as a layer of polygons: GeoPackage in the scene's CRS, or GeoJSON in EPSG:4326, written in batches."""

import json
from collections.abc import Callable
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError, GeometryError

from kit.deploy.mapping.polygons import Buildings, areas_m2, placed
from kit.deploy.mapping.scene import Frame
from kit.errors import KitError, nearest

FIELDS = ("area_m2", "confidence")
LAYER = "buildings"  # of a GeoPackage
BATCH = 5000  # polygons in memory before they are written
EPOCH = "1970-01-01T00:00:00.000Z"  # GeoPackages tell when they were changed: equal maps are equal files
REMEDY = "free some space, and give the same command again: it goes on"

Polygons = NDArray[np.object_]
Numbers = NDArray[np.float64]


class Format(Protocol):
    """A file of polygons that is written in batches."""

    suffix: str
    degrees: bool

    def begin(self, path: Path, crs: str) -> None:
        """Makes an empty file."""

    def put(self, polygons: Polygons, areas_m2: Numbers, confidence: Numbers) -> None:
        """Writes a batch."""

    def end(self) -> None:
        """Makes the file whole."""


class GeoPackage:
    """A GeoPackage with one layer."""

    suffix, degrees = ".gpkg", False

    def begin(self, path: Path, crs: str) -> None:
        """Makes an empty file."""
        self.path, self.crs, self.append = path, crs, False
        path.unlink(missing_ok=True)
        nothing = np.array([], np.float64)
        self.put(np.array([], dtype=object), nothing, nothing)
        self.append = True

    def put(self, polygons: Polygons, areas_m2: Numbers, confidence: Numbers) -> None:
        """Writes a batch."""
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": EPOCH})
        try:
            pyogrio.raw.write(
                self.path, shapely.to_wkb(polygons), [areas_m2, confidence], list(FIELDS), layer=LAYER, driver="GPKG",
                geometry_type="Polygon", crs=self.crs, append=self.append,
            )  # fmt: skip
        finally:
            pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})

    def end(self) -> None:
        """Makes the file whole."""


class GeoJson:
    """GeoJSON as RFC 7946 wants it: longitude and latitude, a feature a line."""

    suffix, degrees = ".geojson", True

    def begin(self, path: Path, crs: str) -> None:
        """Makes an empty file."""
        self.file: IO[str] = path.open("w")
        self.file.write('{"type": "FeatureCollection", "features": [')
        self.between = "\n"

    def put(self, polygons: Polygons, areas_m2: Numbers, confidence: Numbers) -> None:
        """Writes a batch."""
        for polygon, *values in zip(polygons, areas_m2.tolist(), confidence.tolist(), strict=True):
            told = json.dumps(dict(zip(FIELDS, values, strict=True)))
            geometry = shapely.to_geojson(polygon)
            self.file.write(f'{self.between}{{"type": "Feature", "properties": {told}, "geometry": {geometry}}}')
            self.between = ",\n"

    def end(self) -> None:
        """Makes the file whole."""
        self.file.write("\n]}\n")
        self.file.close()


FORMATS: dict[str, type[Format]] = {"gpkg": GeoPackage, "geojson": GeoJson}


def check_format(name: str) -> type[Format]:
    """Returns the format of that name.

    Raises:
        KitError: there is none.
    """
    if name not in FORMATS:
        raise KitError(f"no format {name!r}, expected {' or '.join(FORMATS)}", nearest(name, FORMATS))
    return FORMATS[name]


class Layer:
    """A file of buildings that gets its name when it is whole; to be used as a context.

    Args:
        stem: of its path, to which the format adds its suffix.
        format_: of `FORMATS`.
        frame: of the map.
    """

    def __init__(self, stem: Path, format_: type[Format], frame: Frame) -> None:
        self.format, self.frame = format_(), frame
        self.path = stem.with_name(stem.name + self.format.suffix)
        self.temporary = stem.with_name(f".{stem.name}.part{self.format.suffix}")
        self.waiting: list[Buildings] = []
        self.count, self.area_m2 = 0, 0.0

    def __enter__(self) -> "Layer":
        self._try(lambda: self.format.begin(self.temporary, self.frame.crs))
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
        """Takes buildings over."""
        self.waiting.append(buildings)
        if sum(map(len, self.waiting)) >= BATCH:
            self._write()

    def _write(self) -> None:
        polygons = np.concatenate([np.array([], dtype=object), *(part.polygons for part in self.waiting)])
        confidence = np.concatenate([np.array([]), *(part.confidence for part in self.waiting)])
        self.waiting = []
        on_earth = placed(polygons, self.frame, degrees=True)
        shown = on_earth if self.format.degrees else placed(polygons, self.frame, degrees=False)
        there = ~shapely.is_missing(on_earth) & ~shapely.is_missing(shown)
        areas = np.round(areas_m2(on_earth[there]), 2)
        self._try(lambda: self.format.put(shown[there], areas, np.round(confidence[there], 4)))
        self.count, self.area_m2 = self.count + len(areas), self.area_m2 + float(areas.sum())

    def _try(self, write: Callable[[], object]) -> None:
        """Does what may find the disk full."""
        try:
            write()
        except (OSError, DataSourceError, DataLayerError, GeometryError) as cause:
            reason = getattr(cause, "strerror", None) or cause
            raise KitError(f"cannot write {self.path}: {reason}", REMEDY) from cause
