"""Applies an audit to the labels of a scene: which outlines stay, move, go or are added, and where masks are unsure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from shapely.affinity import translate

from kit.data.grids import metres_per_unit
from kit.errors import DataError

LAYER = "footprints"
EPOCH = "1970-01-01T00:00:00.000Z"  # date of every GeoPackage, so that equal repairs are equal files
SURE = "sure = 1"  # SQL condition of the outlines that masks show as buildings
LOOSE = 0.8  # Jaccard of label and prediction: below it the label's edge is unsure
MISSING = ("add", "ignore")
FINDINGS = ("building", "area", "scene", "block", "origin", "jaccard", "dx_m", "dy_m", "verdict", "reason")
FIELDS = ("building", "area", "scene", "block", "origin", "verdict", "change", "dx_m", "dy_m", "sure", "edge_m")

Outlines = NDArray[np.object_]


@dataclass(frozen=True)
class LabelChange:
    """What a repair does to a building or a tile: a row of `repairs.csv`."""

    id: str  # of the building, as in `buildings.csv`, or of the tile
    area: str  # of the scene
    scene: str  # of it
    block: str  # of a building; empty for tiles
    kind: str  # `label`, `prediction` or `tile`
    change: str  # `moved`, `removed`, `added`, `ignored`, `edge ignored`, `left out`; two are joined by a comma
    dx_m: float  # how far the outline moved east, metres on the ground
    dy_m: float  # north, likewise
    reason: str  # of the audit
    apply: str = "yes"  # `yes`, or `no` where the user undid it


@dataclass(frozen=True)
class Outline:
    """An outline of the repaired labels."""

    geometry: shapely.Geometry  # in the scene's CRS
    finding: Mapping[str, Any]  # its row of the audit, with the keys `FINDINGS`
    change: str  # as of `LabelChange`; empty where there is none
    dx_m: float  # how far it moved east, metres on the ground
    dy_m: float  # north, likewise
    sure: bool  # whether masks show it as a building; otherwise they ignore it and `edge_m` around it
    edge_m: float  # half the width of the ignored band along its edge, metres on the ground; 0: none


def read_findings(file: Path) -> tuple[Outlines, list[dict[str, Any]], str]:
    """Returns the outlines that an audit looked at, their rows, and the CRS of the scene.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        meta, _, wkb, columns = pyogrio.raw.read(file)
        lost = set(FINDINGS) - set(meta["fields"])
        if lost:
            raise DataError(f"{file} lacks the fields {', '.join(sorted(lost))}", "repeat kit audit")
        table = {name: column.tolist() for name, column in zip(meta["fields"], columns, strict=True)}
        rows = [dict(zip(FINDINGS, row, strict=True)) for row in zip(*(table[name] for name in FINDINGS), strict=True)]
        return shapely.from_wkb(wkb), rows, str(meta["crs"])
    except (RuntimeError, ValueError, shapely.errors.ShapelyError) as cause:
        raise DataError(f"{file} cannot be read: {cause}", "repeat kit audit") from cause


def apply_findings(
    outlines: Outlines, findings: list[dict[str, Any]], crs: str, missing: str, edge_m: float, undone: Collection[str]
) -> tuple[list[Outline], list[LabelChange]]:
    """Returns the repaired outlines of a scene, and what was changed.

    Args:
        outlines: (N,) geometries in the scene's CRS, as `read_findings` returns them.
        findings: their rows.
        crs: of the scene.
        missing: `add` or `ignore`: what is done to predicted buildings without a label.
        edge_m: half the width of unsure edges, metres on the ground.
        undone: ids of buildings that stay as they were.
    """
    if not len(outlines):
        return [], []
    left, bottom, right, top = shapely.total_bounds(outlines)
    unit_m = metres_per_unit(CRS.from_user_input(crs), (left + right) / 2, (bottom + top) / 2)
    repaired, changes = [], []
    for geometry, finding in zip(outlines, findings, strict=True):
        change, outline = _repair(geometry, finding, unit_m, missing, edge_m)
        undo = finding["building"] in undone
        if undo:
            label = finding["origin"] == "label"
            outline = Outline(geometry, finding, "", 0.0, 0.0, sure=True, edge_m=0.0) if label else None
        if outline:
            repaired.append(outline)
        if change:
            place = finding["building"], finding["area"], finding["scene"], finding["block"]
            moved = (finding["dx_m"], finding["dy_m"]) if "moved" in change else (0.0, 0.0)
            changes.append(
                LabelChange(*place, finding["origin"], change, *moved, finding["reason"], "no" if undo else "yes")
            )
    return repaired, changes


def _repair(
    geometry: shapely.Geometry, finding: dict[str, Any], unit_m: float, missing: str, edge_m: float
) -> tuple[str, Outline | None]:
    """Returns what is done to an outline, and what it becomes; None: nothing."""
    verdict = finding["verdict"]
    if finding["origin"] == "prediction":
        if verdict == "add" and missing == "add":
            return "added", Outline(geometry, finding, "added", 0.0, 0.0, sure=True, edge_m=edge_m)
        return "ignored", Outline(geometry, finding, "ignored", 0.0, 0.0, sure=False, edge_m=edge_m)
    if verdict == "drop":
        return "removed", None
    dx_m, dy_m = finding["dx_m"], finding["dy_m"]
    done = ["moved"] if dx_m or dy_m else []
    sure = verdict in ("keep", "shift")
    loose = sure and finding["jaccard"] < LOOSE
    done += [] if sure and not loose else ["edge ignored" if sure else "ignored"]
    moved = translate(geometry, dx_m / unit_m, dy_m / unit_m)
    change = ", ".join(done)
    return change, Outline(moved, finding, change, dx_m, dy_m, sure, 0.0 if sure and not loose else edge_m)


def write_outlines(file: Path, outlines: list[Outline], crs: str, *, append: bool = False) -> None:
    """Writes repaired outlines as a GeoPackage, or appends them to it.

    Args:
        file: to write.
        outlines: their geometries are in `crs`.
        crs: of the file.
        append: whether the file exists and is continued.
    """
    values = [
        (*(each.finding[name] for name in ("building", "area", "scene", "block", "origin", "verdict")),
         each.change, each.dx_m, each.dy_m, int(each.sure), each.edge_m)
        for each in outlines
    ]  # fmt: skip
    kinds = (object,) * 7 + (float, float, np.int32, float)
    columns = [np.array([row[place] for row in values], kind) for place, kind in enumerate(kinds)]
    geometries = shapely.to_wkb(np.array([each.geometry for each in outlines], dtype=object))
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": EPOCH})
    try:
        pyogrio.raw.write(
            file, geometries, columns, list(FIELDS), layer=LAYER, driver="GPKG", geometry_type="MultiPolygon",
            promote_to_multi=True, crs=crs, append=append,
        )  # fmt: skip
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


def unsure_areas(outlines: Outlines, sure: NDArray[np.bool_], edges: NDArray[np.float64]) -> Outlines:
    """Returns what masks ignore: bands along unsure edges, and unsure outlines with a band around them.

    Args:
        outlines: (N,) geometries.
        sure: (N,) whether masks show them as buildings.
        edges: (N,) half the width of the band, in units of the outlines' CRS; 0: none.
    """
    wide = shapely.buffer(outlines, edges)
    bands = shapely.difference(wide, shapely.buffer(outlines, -edges))
    areas: Outlines = np.where(sure, bands, wide)[(edges > 0) | ~sure]
    return areas[~shapely.is_empty(areas)]
