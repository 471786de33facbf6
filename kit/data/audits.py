"""The files of an audit, `data/NAME/audit/`: what `kit audit` writes and a repair reads.

- `settings.json`: `AuditSettings`, what was compared.
- `blocks.csv`: `BlockShift`, how far the labels of each block lie off.
- `buildings.csv`: `BuildingFinding`, a verdict for each labelled building, and each predicted one without a label.
- `tiles.csv`: `TileFinding`, a score and a verdict for each tile of the index.
- `scenes/AREA/SCENE.gpkg`: the rows of `buildings.csv` with their outlines in the scene's CRS: a label as its source
  has it, not moved; a prediction as it is to be added.
- `missing.geojson`, `invented.geojson`, `shifted.geojson`: for people, in longitude and latitude.
- `worst/`: contact sheets.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError, GeometryError
from rasterio.crs import CRS

from kit.data.grids import MERCATOR_M, metres_per_unit
from kit.errors import DataError, OutputError
from kit.system.files import read_json, replacing

__all__ = [
    "BLOCKS",
    "BUILDINGS",
    "SETTINGS",
    "TILES",
    "VERSION",
    "AuditSettings",
    "BlockShift",
    "BuildingFinding",
    "TileFinding",
    "TileVerdict",
    "Verdict",
    "check_audit",
    "data_checksum",
    "moved_outlines",
    "read_buildings",
    "write_buildings",
    "write_findings",
]

SETTINGS = "settings.json"
BLOCKS, BUILDINGS, TILES = "blocks.csv", "buildings.csv", "tiles.csv"
EPOCH = "1970-01-01T00:00:00.000Z"  # date of every GeoPackage, so that equal audits are equal files
VERSION = 1  # of the audit: another number, and all is compared again

Verdict = Literal["keep", "shift", "reshape", "ignore", "drop", "add"]
TileVerdict = Literal["train", "repair", "leave_out"]


@dataclass(frozen=True)
class BlockShift:
    """How far the labels of a block lie off. A row of `blocks.csv`."""

    block: str  # id, `AREA_SCENE_bROW_COLUMN`
    area: str  # of the scene
    scene: str  # of the block
    left: float  # of the block, in units of the CRS; likewise the others
    bottom: float  # likewise
    right: float  # likewise
    top: float  # likewise
    crs: str  # of the scene, `EPSG:...` where it has a code, else WKT
    # a label that moves east by this, and north by `dy_m`, sits right; metres on the ground. Where the block is not
    # trusted it is an estimate that nothing is moved by
    dx_m: float
    dy_m: float  # likewise
    sigma_m: float | None  # standard error of the shift along one axis, metres; None where it is not known
    buildings: int  # labelled buildings whose centre lies in the block
    trusted: bool  # whether there are enough buildings and a clear optimum
    reason: str = ""  # why it is not trusted; empty where it is


@dataclass(frozen=True)
class BuildingFinding:
    """A labelled building, or a predicted one without a label. A row of `buildings.csv`, a feature of `SCENE.gpkg`."""

    building: str  # id, `AREA_SCENE_l12` of labels, `AREA_SCENE_p7` of predictions
    area: str  # of the scene
    scene: str  # of the building
    block: str  # that its centre lies in
    origin: Literal["label", "prediction"]  # `label` or `prediction`
    area_m2: float = 0.0  # on the ground
    jaccard: float = 0.0  # with the prediction, the label moved by the shift of its block; 0 of predictions
    confidence: float = 0.0  # mean predicted probability within the outline, 0..1
    # mean standard deviation of members and views within it, 0..0.5; 0 where there is only one prediction
    spread: float = 0.0
    dx_m: float = 0.0  # how far the label moves east with its block, metres; 0 where the block is not trusted
    dy_m: float = 0.0  # north, likewise
    # of labels: `keep`; `shift`: right once it is moved; `reshape`: there is a building of another outline; `ignore`:
    # not sure; `drop`: no building. Of predictions: `add`, or `ignore` where it is not sure
    verdict: Verdict = "ignore"
    reason: str = ""  # in words


@dataclass(frozen=True)
class TileFinding:
    """How well the labels of a tile agree with the prediction. A row of `tiles.csv`."""

    tile: str  # id, as in the index
    area: str  # of the scene
    scene: str  # of the tile
    jaccard: float  # of labels and prediction
    # of the repaired labels and the prediction, unsure places left out; None of ready-made masks
    repaired: float | None
    # share of the calibration tiles that agree no better with their prediction, 0..1: right labels score as those
    # tiles do, half of them above 0.5. Without calibration, the Jaccard index
    score: float
    verdict: TileVerdict  # `train`: as it is; `repair`: with repaired labels; `leave_out`
    reason: str  # in words


@dataclass(frozen=True)
class AuditSettings:
    """What an audit compared. The content of `settings.json`."""

    data: str  # name of the data set
    data_sha256: str  # of its index without the folds, see `data_checksum`
    weights: str  # name of the weights file
    weights_sha256: str  # of it
    gsd_m: float  # ground resolution of the prediction, metres per pixel
    block_m: float  # side of a block
    calibrated_on: str = ""  # what tiles are scored against, in words; empty where nothing
    version: int = VERSION  # `VERSION`


def data_checksum(index: Path) -> str:
    """Returns a checksum of an index, in hex; other folds do not change it.

    Raises:
        DataError: it cannot be read.
    """
    try:
        table = pd.read_csv(index, dtype=str, keep_default_na=False).drop(columns="fold", errors="ignore")
    except (OSError, ValueError) as cause:
        raise DataError(f"{index} cannot be read: {cause}", "give the same kit prepare again") from cause
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def check_audit(folder: Path, index: Path) -> AuditSettings:
    """Returns the settings of a finished audit, if it compared this version of a data set.

    Args:
        folder: of the audit.
        index: of the data set.

    Raises:
        DataError: there is no finished audit, or the data set was cut again since.
    """
    settings = read_json(folder / SETTINGS, AuditSettings, error=DataError, hint="kit audit NAME --weights W writes it")
    again = f"kit audit {settings.data} --weights {settings.weights}"
    if settings.version != VERSION:
        raise DataError(
            f"{folder} is an audit of version {settings.version}, expected {VERSION}", f"repeat it: {again}"
        )
    if (now := data_checksum(index)) != settings.data_sha256:
        raise DataError(
            f"{folder} is an audit of another version of {settings.data}: its index has the checksum "
            f"{settings.data_sha256[:8]} there and {now[:8]} now",
            f"repeat it: {again}",
        )
    return settings


def write_findings(file: Path, rows: Sequence[Any], kind: type[Any]) -> None:
    """Writes rows of `BlockShift`, `BuildingFinding` or `TileFinding` as CSV."""
    columns = [field.name for field in fields(kind)]
    with replacing(file) as temporary:
        pd.DataFrame([[getattr(row, name) for name in columns] for row in rows], columns=columns).to_csv(
            temporary, index=False
        )


def write_buildings(file: Path, rows: Sequence[BuildingFinding], outlines: NDArray[np.object_], crs: str) -> None:
    """Writes buildings with their outlines, in `crs`, as a GeoPackage. Equal buildings give equal bytes.

    Raises:
        OutputError: the disk is full.
    """
    names = [field.name for field in fields(BuildingFinding)]
    numbers = {field.name for field in fields(BuildingFinding) if field.type is float}
    columns = [np.array([getattr(row, name) for row in rows], float if name in numbers else object) for name in names]
    whole = np.array([*(shapely.MultiPolygon(shapely.get_parts(each).tolist()) for each in outlines), None], object)[
        :-1
    ]
    with replacing(file) as temporary:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": EPOCH})
        try:
            pyogrio.raw.write(
                temporary, shapely.to_wkb(whole), columns, names, layer="buildings", driver="GPKG",
                geometry_type="MultiPolygon", crs=crs,
            )  # fmt: skip
        except (DataSourceError, DataLayerError, GeometryError) as cause:
            raise OutputError(f"cannot write {file}: {cause}", "free some space and rerun to resume") from cause
        finally:
            pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


def read_buildings(file: Path) -> tuple[list[BuildingFinding], NDArray[np.object_], str]:
    """Returns the buildings of a scene, their outlines, and the CRS of these.

    Raises:
        DataError: the file cannot be read.
    """
    names = [field.name for field in fields(BuildingFinding)]
    try:
        meta, _, wkb, columns = pyogrio.raw.read(file, columns=names)
    except (DataSourceError, DataLayerError, OSError) as cause:
        raise DataError(f"{file} cannot be read: {cause}", "repeat the audit: kit audit") from cause
    columns = {str(name): values.tolist() for name, values in zip(meta["fields"], columns, strict=True)}
    rows = [
        BuildingFinding(**dict(zip(names, values, strict=True)))
        for values in zip(*(columns[name] for name in names), strict=True)
    ]
    return rows, shapely.from_wkb(wkb), str(meta["crs"])


def moved_outlines(rows: Sequence[BuildingFinding], outlines: NDArray[np.object_], crs: str) -> NDArray[np.object_]:
    """Returns outlines, in `crs`, each moved by `dx_m` to the east and `dy_m` to the north."""
    if not len(rows):
        return outlines
    system = CRS.from_user_input(crs)
    centre = shapely.get_coordinates(shapely.centroid(outlines)).mean(axis=0)
    if system.is_geographic:
        unit_m = MERCATOR_M / 360 * np.array([math.cos(math.radians(centre[1])), 1.0])
    else:
        unit_m = np.full(2, metres_per_unit(system, *centre))
    shifts = np.array([(row.dx_m, row.dy_m) for row in rows]) / unit_m
    coordinates, owners = shapely.get_coordinates(outlines, return_index=True)
    moved: NDArray[np.object_] = shapely.set_coordinates(outlines.copy(), coordinates + shifts[owners])
    return moved
