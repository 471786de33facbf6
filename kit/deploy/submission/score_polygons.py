"""Scores predicted polygons against true ones: the Jaccard index of their area, and object measures."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from kit.data.footprints import repaired_polygons
from kit.data.polygon_store import PolygonStore
from kit.data.sources.inputs import VECTOR_SUFFIXES
from kit.data.vectors import DEGREES, read_all
from kit.errors import FootprintError, ScoreError
from kit.measures.object_counts import BOUNDARY_M, ObjectCounts
from kit.measures.object_polygons import compare_polygons


@dataclass(frozen=True)
class PolygonScore:
    """How predicted polygons compare with true ones."""

    pooled: float  # Jaccard index of the area, 0 to 1
    objects: ObjectCounts  # counts of buildings
    notices: tuple[str, ...]  # what the user should know about the files

    def lines(self) -> list[str]:
        """Returns the text to print beside the table of objects: `pooled 0.8123`."""
        return [f"pooled {self.pooled:.4f}"]

    def object_rows(self) -> dict[str, ObjectCounts]:
        """Returns the counts by the name of their row."""
        return {"pooled": self.objects}

    def to_json(self) -> str:
        """Returns the scores as JSON text."""
        return json.dumps({"pooled": self.pooled, "objects": self.objects.measures()}, indent=2)


def are_polygons(predictions: Path, truth: Path) -> bool:
    """Returns whether both are files of polygons, by their suffix.

    Raises:
        ScoreError: one of them is, the other is not.
    """
    first, second = (path.suffix.lower() in VECTOR_SUFFIXES for path in (predictions, truth))
    if first != second:
        polygons, other = (predictions, truth) if first else (truth, predictions)
        raise ScoreError(
            f"{polygons} holds polygons, and {other} does not",
            f"give two files of polygons ({', '.join(VECTOR_SUFFIXES)}), or masks twice",
        )
    return first


def score_polygons(predictions: Path, truth: Path) -> PolygonScore:
    """Returns the score of predicted polygons, compared in an equal-area CRS around them.

    Args:
        predictions: a file of polygons in any CRS: one feature is one building.
        truth: likewise.

    Raises:
        ScoreError: a file is missing.
        FootprintError: it cannot be read, holds no polygons, or has no CRS.
    """
    for path in (truth, predictions):
        if not path.is_file():
            raise ScoreError(f"no file {path}", "give two files of polygons")
    (true, notices), (predicted, more) = _read(truth, "true"), _read(predictions, "predicted")
    crs = _equal_area(true if len(true) else predicted)
    compared = compare_polygons(_projected(true, crs), _projected(predicted, crs), BOUNDARY_M)
    return PolygonScore(compared.jaccard, compared.objects, (*notices, *more))


def _read(path: Path, kind: str) -> tuple[PolygonStore, list[str]]:
    """Returns the valid polygons of a file, in degrees, and what the user should know about it."""
    features, polygons, repaired = read_all(str(path)), PolygonStore(), 0
    for block in features.blocks():
        valid, invalid = repaired_polygons(block)
        polygons.add(valid)
        repaired += invalid
    dropped = len(features) - len(polygons)
    if dropped and not len(polygons):
        raise FootprintError(
            f"{path}: none of its {dropped} features is a polygon on earth",
            "expected outlines of buildings in the CRS that the file names",
        )
    notices = [f"{repaired} {kind} footprints repaired: invalid"] * bool(repaired)
    return polygons, [*notices, *[f"{dropped} {kind} footprints left out: no polygons"] * bool(dropped)]


def _projected(degrees: PolygonStore, crs: str) -> PolygonStore:
    """Returns polygons in another CRS, valid ones."""
    change, placed = pyproj.Transformer.from_crs(DEGREES, crs, always_xy=True), PolygonStore()
    for block in degrees.blocks():
        placed.add(_valid(shapely.transform(block, change.transform, interleaved=False)))
    return placed


def _valid(polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    """Returns polygons of which projecting made none invalid."""
    invalid = ~shapely.is_valid(polygons)
    polygons[invalid] = shapely.buffer(polygons[invalid], 0)
    return polygons


def _equal_area(degrees: PolygonStore) -> str:
    """Returns an equal-area CRS in metres, around the median place of polygons in degrees."""
    bounds = [np.zeros((1, 4))] if not len(degrees) else [shapely.bounds(block) for block in degrees.blocks()]
    left, bottom, right, top = np.median(np.concatenate(bounds), axis=0)
    return f"+proj=laea +lon_0={(left + right) / 2:.4f} +lat_0={(bottom + top) / 2:.4f} +datum=WGS84 +units=m +type=crs"
