"""The record of one cell: a STAC item that says whether it was mapped, and from what."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from kit.deploy.country.cells import Cell, Lattice, corner_degrees
from kit.deploy.country.collection import PlacedScene
from kit.deploy.mapping.longitudes import cut_at_180, needs_cut
from kit.errors import KitError
from kit.system.files import read_json, write_json

VERSION = 2  # raised when the same inputs give other buildings
MAPPED, EMPTY, FAILED = "mapped", "no imagery", "failed"
STAC = "1.0.0"
PARQUET = "application/vnd.apache.parquet"
LONG_AGO = "1970-01-01T00:00:00Z"  # stands for unknown dates: STAC wants one


@dataclass(frozen=True)
class CellRecord:
    """What became of a cell."""

    cell: str  # its name
    status: str  # `MAPPED`, `EMPTY` or `FAILED`
    inputs: str = ""  # checksum of what it was made from; see `inputs_of`
    grown: int = 0  # rows of windows that were added around it
    reason: str = ""  # why it failed
    buildings: int = 0
    area_m2: float = 0.0  # of the buildings
    imagery: float = 0.0  # share of the cell with imagery, 0..1
    windows: int = 0  # of its windows, those predicted; a window that two scenes see counts twice
    cut: int = 0  # buildings that reach beyond the largest halo, and were cut at the cell's edge
    scenes: tuple[str, ...] = ()  # ids of those that its windows may see


def inputs_of(options: dict[str, Any], cell: Cell, grown: int, scenes: Sequence[PlacedScene]) -> str:
    """Returns a checksum of all that a cell's buildings depend on.

    Args:
        options: of the plan, weights included.
        cell: of the map.
        grown: rows of windows that were added around it.
        scenes: that its windows may see, in the order in which they are preferred.
    """
    content = [VERSION, options, asdict(cell), grown, [(scene.id, scene.href, scene.version) for scene in scenes]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class CellFiles:
    """The files of one cell: its record and its buildings.

    Args:
        folder: of all cells.
        cell: of the map.
    """

    def __init__(self, folder: Path, cell: Cell) -> None:
        stem = folder / f"{cell.zone:02}" / cell.name[:7] / cell.name
        self.cell, self.record, self.buildings = cell, stem.with_suffix(".json"), stem.with_suffix(".parquet")

    def read(self) -> CellRecord | None:
        """Returns the record; None where there is none, or it is damaged: then the cell is mapped again."""
        try:
            record = read_json(self.record, dict[str, Any])["properties"]["kit:cell"]
            record = CellRecord(**{**record, "scenes": tuple(record["scenes"])})
        except (KitError, KeyError, TypeError):
            return None
        return record if record.status != MAPPED or not record.buildings or self.buildings.is_file() else None

    def write(self, record: CellRecord, lattice: Lattice, scenes: Sequence[PlacedScene]) -> None:
        """Writes the record; the buildings must have been written before.

        Raises:
            OutputError: the disk is full or the folder cannot be written.
        """
        assets = {}
        if record.buildings:
            assets["buildings"] = {"href": f"./{self.buildings.name}", "type": PARQUET, "roles": ["data"]}
        ring = corner_degrees(lattice, self.cell)
        write_json(self.record, stac_item(record.cell, ring, scenes, assets, {"kit:cell": asdict(record)}))


def stac_item(
    identity: str, ring: Sequence[tuple[float, float]], scenes: Sequence[PlacedScene], assets: dict[str, Any],
    properties: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Returns a STAC item.

    Args:
        identity: its id.
        ring: closed ring of longitude and latitude.
        scenes: whose dates it covers.
        assets: of the item.
        properties: more of them.
    """
    outline = shapely.Polygon(ring)
    if needs_cut(np.array([outline], dtype=object))[0]:
        outline = cut_at_180(outline)
    dates = sorted(scene.date for scene in scenes if scene.date)
    times: dict[str, Any] = {"datetime": LONG_AGO}
    if dates:
        times = {"datetime": None, "start_datetime": _utc(dates[0]), "end_datetime": _utc(dates[-1])}
    return {
        "type": "Feature", "stac_version": STAC, "stac_extensions": [], "id": identity,
        "geometry": json.loads(shapely.to_geojson(outline)), "bbox": list(outline.bounds),
        "properties": {**times, **properties}, "links": [], "assets": assets,
    }  # fmt: skip


def _utc(date: str) -> str:
    """Returns an ISO date and time with a zone, as STAC wants it."""
    moment = datetime.fromisoformat(date)
    moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
