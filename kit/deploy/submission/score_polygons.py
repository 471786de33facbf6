"""Scores predicted polygons against true ones: the Jaccard index of their area, and object measures."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from kit.data.footprints import read_footprints
from kit.data.sources.inputs import VECTOR_SUFFIXES
from kit.data.vectors import DEGREES
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
    placed: list[NDArray[np.object_]] = []
    notices: list[str] = []
    crs = ""
    for path, kind in ((truth, "true"), (predictions, "predicted")):
        if not path.is_file():
            raise ScoreError(f"no file {path}", "give two files of polygons")
        footprints = read_footprints((str(path),), DEGREES)
        if footprints.dropped and not len(footprints.polygons):
            raise FootprintError(
                f"{path}: none of its {footprints.dropped} features is a polygon on earth",
                "expected outlines of buildings in the CRS that the file names",
            )
        for count, what in ((footprints.repaired, "repaired: invalid"), (footprints.dropped, "left out: no polygons")):
            if count:
                notices.append(f"{count} {kind} footprints {what}")
        if len(footprints.polygons):
            crs = crs or _equal_area(footprints.polygons)
            placed.append(_valid(footprints.to(crs).polygons))
        else:
            placed.append(footprints.polygons)
        del footprints  # of millions of polygons, before the next file is read
    true, predicted = placed
    compared = compare_polygons(true, predicted, BOUNDARY_M)
    return PolygonScore(compared.jaccard, compared.objects, tuple(notices))


def _valid(polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    """Returns polygons of which projecting made none invalid."""
    invalid = ~shapely.is_valid(polygons)
    polygons[invalid] = shapely.buffer(polygons[invalid], 0)
    return polygons


def _equal_area(degrees: NDArray[np.object_]) -> str:
    """Returns an equal-area CRS in metres, around the median place of polygons in degrees."""
    left, bottom, right, top = np.median(shapely.bounds(degrees), axis=0)
    return f"+proj=laea +lon_0={(left + right) / 2:.4f} +lat_0={(bottom + top) / 2:.4f} +datum=WGS84 +units=m +type=crs"
