"""Applies an audit to the labels of a scene: which outlines stay, move, go or are added, and where masks are unsure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import rasterio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError, GeometryError
from rasterio.crs import CRS
from rasterio.errors import RasterioError, WindowError
from rasterio.features import geometry_window, shapes
from shapely.geometry import shape

from kit.data.audits import EPOCH, BuildingFinding, moved_outlines
from kit.data.grids import metres_per_unit
from kit.errors import DataError, OutputError

__all__ = [
    "LABELS",
    "MISSING",
    "LabelChange",
    "Outline",
    "Repairer",
    "apply_findings",
    "unsure_areas",
    "write_layer",
    "write_outlines",
]  # fmt: skip

LAYER = "footprints"
LABELS = "sure = 1 OR origin = 'label'"  # SQL condition of what another audit takes as labels: unsure ones, too
LEVEL = 128  # of the audit's prediction, 0..255: more is building
BESIDE_M = 2.0  # a reshaped label may reach this far beyond the label
GAP_M = 0.5  # between a reshaped label and its neighbours
SIMPLIFY_M = 0.3  # tolerance of a reshaped outline
SMALLEST_M2 = 10.0  # of a part of a reshaped label
ON_LABEL = 0.3  # share of such a part that lies on the label
LOOSE = 0.8  # Jaccard of label and prediction: below it the label's edge is unsure
MISSING = ("add", "ignore")
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
    change: str  # `moved`, `reshaped`, `removed`, `added`, `ignored`, `edge ignored`, `left out`; or two with a comma
    dx_m: float  # how far the outline moved east, metres on the ground
    dy_m: float  # north, likewise
    reason: str  # of the audit
    apply: str = "yes"  # `yes`, or `no` where the user undid it


@dataclass(frozen=True)
class Outline:
    """An outline of the repaired labels."""

    geometry: shapely.Geometry  # in the scene's CRS
    finding: BuildingFinding  # of the audit
    change: str  # as of `LabelChange`; empty where there is none
    dx_m: float  # how far it moved east, metres on the ground
    dy_m: float  # north, likewise
    sure: bool  # whether masks show it as a building; otherwise they ignore it and `edge_m` around it
    edge_m: float  # half the width of the ignored band along its edge, metres on the ground; 0: none


@dataclass(frozen=True)
class Repairer:
    """What is done to the outlines of a scene.

    Args:
        crs: of the scene.
        prediction: raster of the audit; its band 1 is the probability, 0..255.
        missing: `add` or `ignore`: what is done to predicted buildings without a label.
        edge_m: half the width of unsure edges, metres on the ground.
    """

    crs: str
    prediction: Path
    missing: str
    edge_m: float


def apply_findings(
    findings: Sequence[BuildingFinding], outlines: Outlines, repairer: Repairer, undone: Collection[str]
) -> tuple[list[Outline], list[LabelChange]]:
    """Returns the repaired outlines of a scene, and what was changed.

    Args:
        findings: of the audit, (N,).
        outlines: their geometries in the scene's CRS, (N,).
        repairer: what is done to them.
        undone: ids of buildings that stay as they were.

    Raises:
        DataError: the audit's prediction cannot be read.
    """
    if not len(outlines):
        return [], []
    left, bottom, right, top = shapely.total_bounds(outlines)
    unit_m = metres_per_unit(CRS.from_user_input(repairer.crs), (left + right) / 2, (bottom + top) / 2)
    moved = moved_outlines(findings, outlines, repairer.crs)
    neighbours = shapely.STRtree(moved[[_is_shown(finding, repairer.missing) for finding in findings]])
    repaired, changes = [], []
    for finding, geometry, place in zip(findings, outlines, moved, strict=True):
        change, new = _repair(place, finding, repairer, unit_m, neighbours)
        undo = finding.building in undone
        if undo:
            label = finding.origin == "label"
            new = [Outline(geometry, finding, "", 0.0, 0.0, sure=True, edge_m=0.0)] if label else []
        repaired += new
        if change:
            shift = (finding.dx_m, finding.dy_m) if "moved" in change else (0.0, 0.0)
            changes.append(
                LabelChange(
                    finding.building, finding.area, finding.scene, finding.block, finding.origin, change, *shift,
                    finding.reason, "no" if undo else "yes",
                )
            )  # fmt: skip
    return repaired, changes


def _is_shown(finding: BuildingFinding, missing: str) -> bool:
    """Returns whether masks show an outline as a building, moved at most."""
    return finding.verdict in ("keep", "shift") or (finding.verdict == "add" and missing == "add")


def _repair(
    moved: shapely.Geometry, finding: BuildingFinding, repairer: Repairer, unit_m: float, neighbours: shapely.STRtree
) -> tuple[str, list[Outline]]:
    """Returns what is done to an outline, and what it becomes.

    Args:
        moved: the outline where its block moves it.
        finding: of the audit.
        repairer: what is done.
        unit_m: metres on the ground per unit of the CRS.
        neighbours: outlines that masks show.
    """
    edge_m, sure = repairer.edge_m, _is_shown(finding, repairer.missing)
    if finding.origin == "prediction":
        change = "added" if sure else "ignored"
        return change, [Outline(moved, finding, change, 0.0, 0.0, sure, edge_m)]
    if finding.verdict == "drop":
        return "removed", []
    if finding.verdict == "reshape" and (parts := _reshaped(moved, repairer.prediction, unit_m, neighbours)):
        return "reshaped", [Outline(part, finding, "reshaped", 0.0, 0.0, True, edge_m) for part in parts]
    shift = finding.dx_m, finding.dy_m
    loose = sure and finding.jaccard < LOOSE
    change = ", ".join(["moved"] * any(shift) + ["edge ignored"] * loose + ["ignored"] * (not sure))
    return change, [Outline(moved, finding, change, *shift, sure, edge_m if loose or not sure else 0.0)]


def _reshaped(
    label: shapely.Geometry, prediction: Path, unit_m: float, neighbours: shapely.STRtree
) -> list[shapely.Geometry]:
    """Returns outlines in place of a label: what is predicted on it and beside it, and is no neighbour's."""
    reach = shapely.buffer(label, BESIDE_M / unit_m)
    try:
        with rasterio.open(prediction) as raster:
            window = geometry_window(raster, [reach])
            level, transform = raster.read(1, window=window), raster.window_transform(window)
    except WindowError:  # beside the raster
        return []
    except RasterioError as cause:
        raise DataError(f"{prediction} cannot be read: {cause}", "repeat kit audit") from cause
    built = (level > LEVEL).astype(np.uint8)
    pieces = np.array([shape(piece) for piece, _ in shapes(built, built > 0, transform=transform)], dtype=object)
    others = shapely.union_all(shapely.buffer(neighbours.geometries[neighbours.query(reach)], GAP_M / unit_m))
    free = shapely.difference(shapely.intersection(pieces, reach), others)
    parts = shapely.get_parts(shapely.simplify(free, SIMPLIFY_M / unit_m))
    parts = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
    areas, common = shapely.area(parts), shapely.area(shapely.intersection(parts, label))
    return list(parts[(areas * unit_m**2 >= SMALLEST_M2) & (common >= ON_LABEL * areas)])


def write_outlines(file: Path, outlines: list[Outline], crs: str) -> None:
    """Writes repaired outlines, which are in `crs`, as a GeoPackage."""
    values = [
        (*(getattr(each.finding, name) for name in FIELDS[:6]),
         each.change, each.dx_m, each.dy_m, int(each.sure), each.edge_m)
        for each in outlines
    ]  # fmt: skip
    kinds = (object,) * 7 + (float, float, np.int32, float)
    columns = [np.array([row[place] for row in values], kind) for place, kind in enumerate(kinds)]
    write_layer(file, np.array([each.geometry for each in outlines], dtype=object), columns, crs)


def write_layer(
    file: Path, geometries: Outlines, columns: Sequence[NDArray[Any]], crs: str, *, append: bool = False
) -> None:
    """Writes polygons with the fields `FIELDS` as a GeoPackage, or appends them to it. Equal content, equal bytes."""
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": EPOCH})
    try:
        pyogrio.raw.write(
            file, shapely.to_wkb(geometries), list(columns), list(FIELDS), layer=LAYER, driver="GPKG",
            geometry_type="MultiPolygon", promote_to_multi=True, crs=crs, append=append,
        )  # fmt: skip
    except (DataSourceError, DataLayerError, GeometryError) as cause:
        raise OutputError(f"cannot write {file}: {cause}", "free some space and rerun to resume") from cause
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
    kept: Outlines = areas[~shapely.is_empty(areas)]
    return kept
