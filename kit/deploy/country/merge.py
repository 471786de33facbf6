"""Merges the cells of a map: one layer of buildings, web tiles, a catalogue, and what became of every cell."""

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError

from kit.deploy.country.cell_rows import INSIDE, ROWS, SEAM_OTHER, CellRows, joined, read_cell, write_rows
from kit.deploy.country.cells import Cell, corner_degrees
from kit.deploy.country.country_plan import CellStates
from kit.deploy.country.hilbert import hilbert_keys
from kit.deploy.country.records import FAILED, PARQUET, STAC, CellFiles, CellRecord, stac_item
from kit.errors import KitError
from kit.system.files import replacing, write_bytes, write_json

SAME = 0.5  # buildings of two zones that share more of the smaller one are one building
OPEN_CELLS = 64  # that stay in memory while rows are written in the order of the curve
LAYER = "buildings"
PMTILES = "application/vnd.pmtiles"
MOST_ZOOM, LEAST_ZOOM = 16, 10  # of the web tiles


@dataclass(frozen=True)
class CountrySummary:
    """A merged map."""

    buildings: Path  # GeoParquet
    tiles: Path | None  # PMTiles; None where GDAL cannot write them
    coverage: Path  # GeoJSON of the cells
    count: int  # buildings
    area_m2: float  # their ground area
    statuses: dict[str, int]  # number of cells of each status
    failed: tuple[CellRecord, ...]  # cells that failed
    cut: int  # buildings that were cut at a cell's edge, since they reach beyond the largest halo


def check_complete(states: CellStates, parts: Path) -> dict[Cell, CellRecord]:
    """Returns the record of every cell.

    Args:
        states: of the plan.
        parts: folder that names the parts that were begun.

    Raises:
        KitError: some cells were not mapped yet; it says which parts they belong to.
    """
    records = {cell: states.record(cell) for cell in states.cells}
    missing = [place for place, cell in enumerate(states.cells) if records[cell] is None]
    if missing:
        begun = sorted(parts.glob("*of*"), key=lambda path: path.stat().st_mtime_ns)
        named = f"first {states.cells[missing[0]].name}"
        hint = "rerun without --merge, or the parts that are missing, --part i/n"
        if begun:
            count = int(begun[-1].name.partition("of")[2])
            lacking = sorted({place % count + 1 for place in missing})
            shown = ", ".join(f"{part}/{count}" for part in lacking[:8]) + (" ..." if len(lacking) > 8 else "")
            named = f"of {'parts' if len(lacking) > 1 else 'part'} {shown}"
            hint = f"run what is missing: kit map ... --part {lacking[0]}/{count}"
        raise KitError(f"{len(missing)} of {len(states.cells)} cells are not mapped yet, {named}", hint)
    return {cell: record for cell, record in records.items() if record is not None}


def merge(states: CellStates, records: dict[Cell, CellRecord]) -> CountrySummary:
    """Writes the merged files of a map.

    Args:
        states: of the plan.
        records: of every cell.

    Raises:
        KitError: a cell's file is damaged, or the disk is full.
    """
    files = states.files
    full = [cell for cell in states.cells if records[cell].buildings]
    store = CellStore(files.cells, full)
    count, area_m2 = write_rows(files.buildings, store.chunks(), with_seam=False)
    tiles = files.tiles if write_tiles(files.tiles, files.buildings) else None
    _write_coverage(files.coverage, states, records)
    _write_catalogue(states, records, tiles)
    statuses: dict[str, int] = {}
    for record in records.values():
        statuses[record.status] = statuses.get(record.status, 0) + 1
    failed = tuple(record for record in records.values() if record.status == FAILED)
    cut = sum(record.cut for record in records.values())
    return CountrySummary(files.buildings, tiles, files.coverage, count, area_m2, statuses, failed, cut)


class CellStore:
    """The rows of many cells, of which few are in memory; those near meridians are chosen once.

    Args:
        folder: of the cells' files.
        cells: with buildings.
    """

    def __init__(self, folder: Path, cells: Sequence[Cell]) -> None:
        self.folder, self.cells = folder, cells
        self.open: OrderedDict[int, CellRows] = OrderedDict()
        keys, places, rows = [], [], []
        seams: list[CellRows] = []
        for place, cell in enumerate(cells):
            part = self._read(cell)
            seams.append(part.take(np.flatnonzero(part.seam != INSIDE)))
            keys.append(hilbert_keys(part.polygons))
            places.append(np.full(len(part), place))
            rows.append(np.arange(len(part)))
        self.dropped = twice(joined(seams))
        nothing = [np.array([], np.int64)]
        self.places, self.rows = np.concatenate(places or nothing), np.concatenate(rows or nothing)
        self.order = np.argsort(np.concatenate(keys or nothing), kind="stable")

    def _read(self, cell: Cell) -> CellRows:
        return read_cell(CellFiles(self.folder, cell).buildings)

    def cell(self, place: int) -> CellRows:
        """Returns the rows of a cell."""
        if place not in self.open:
            self.open[place] = self._read(self.cells[place])
            if len(self.open) > OPEN_CELLS:
                self.open.popitem(last=False)
        self.open.move_to_end(place)
        return self.open[place]

    def chunks(self) -> Iterator[CellRows]:
        """Yields the rows in the order of the curve, `ROWS` at a time."""
        return (self._chunk(start) for start in range(0, len(self.order), ROWS))

    def _chunk(self, start: int) -> CellRows:
        chosen = self.order[start : start + ROWS]
        places, rows = self.places[chosen], self.rows[chosen]
        parts, back = [], []
        for place in np.unique(places):
            at = np.flatnonzero(places == place)
            parts.append(self.cell(int(place)).take(rows[at]))
            back.append(at)
        together = joined(parts)
        together = together.take(np.argsort(np.concatenate(back), kind="stable"))
        kept = np.array([identity not in self.dropped for identity in together.ids], bool)
        return together.take(np.flatnonzero(kept))


def twice(seams: CellRows) -> set[str]:
    """Returns the ids of buildings that another zone has too.

    A building near a meridian between zones is seen on both grids. Of two that cover each other, the one whose own zone
    it lies in stays; of two such the one of the first zone.
    """
    order = sorted(range(len(seams)), key=lambda row: (seams.seam[row] == SEAM_OTHER, seams.ids[row]))
    polygons: NDArray[np.object_] = seams.polygons
    tree, dropped, accepted = shapely.STRtree(polygons), set(), set()
    for row in order:
        near = [other for other in tree.query(polygons[row], predicate="intersects") if other in accepted]
        small = [min(polygons[row].area, polygons[other].area) for other in near]
        shared = shapely.area(shapely.intersection(polygons[row], polygons[near])) if near else []
        if any(part > SAME * area for part, area in zip(shared, small, strict=True)):
            dropped.add(seams.ids[row])
        else:
            accepted.add(row)
    return dropped


def write_tiles(path: Path, buildings: Path) -> bool:
    """Writes the buildings as PMTiles for web maps; returns whether GDAL can."""
    if "w" not in pyogrio.list_drivers(write=True).get("PMTiles", ""):
        return False
    source = pq.ParquetFile(buildings)
    if not source.metadata.num_rows:
        path.unlink(missing_ok=True)
        return False
    schema = source.schema_arrow
    columns = ["id", "area_m2", "confidence", "geometry"]
    fields = [schema.field(name) for name in columns]
    at = fields[-1].with_metadata({b"ARROW:extension:name": b"geoarrow.wkb"})
    schema = pa.schema([*fields[:-1], at])
    batches = (batch.cast(schema) for batch in source.iter_batches(ROWS, columns=columns))
    pyogrio.set_gdal_config_options({"GDAL_NUM_THREADS": "1"})
    try:
        with replacing(path) as temporary:
            pyogrio.raw.write_arrow(
                pa.RecordBatchReader.from_batches(schema, batches), temporary, driver="PMTiles", layer=LAYER,
                geometry_name="geometry", geometry_type="Unknown", crs="EPSG:4326",
                dataset_options={"NAME": path.stem, "MINZOOM": str(LEAST_ZOOM), "MAXZOOM": str(MOST_ZOOM)},
            )  # fmt: skip
    except (DataSourceError, DataLayerError) as cause:
        raise KitError(f"cannot write {path}: {cause}", "free some space and rerun to resume") from cause
    finally:
        pyogrio.set_gdal_config_options({"GDAL_NUM_THREADS": None})
    return True


def _write_coverage(path: Path, states: CellStates, records: dict[Cell, CellRecord]) -> None:
    """Writes what became of every cell, as GeoJSON, one cell per line."""
    lines = []
    for cell in states.cells:
        record = records[cell]
        item = stac_item(record.cell, corner_degrees(states.plan.lattice, cell), (), {}, {})
        about = {
            "cell": record.cell, "status": record.status, "reason": record.reason, "buildings": record.buildings,
            "area_m2": record.area_m2, "imagery": record.imagery, "scenes": len(record.scenes), "cut": record.cut,
        }  # fmt: skip
        lines.append(json.dumps({"type": "Feature", "properties": about, "geometry": item["geometry"]}))
    refused = [{"scene": scene.id, "reason": scene.reason} for scene in states.plan.refused]
    head = f'{{"type": "FeatureCollection", "refused": {json.dumps(refused)}, "features": [\n'
    write_bytes(path, (head + ",\n".join(lines) + "\n]}\n").encode())


def _write_catalogue(states: CellStates, records: dict[Cell, CellRecord], tiles: Path | None) -> None:
    """Writes a STAC item of the whole map, and a collection of it and of the cells."""
    files, plan = states.files, states.plan
    rings = [corner_degrees(plan.lattice, cell) for cell in states.cells]
    points = np.array([point for ring in rings for point in ring])
    west, south, east, north = (float(at) for at in (*points.min(axis=0), *points.max(axis=0)))
    box = [(west, south), (east, south), (east, north), (west, north), (west, south)]
    assets = {
        "buildings": {"href": f"./{files.buildings.name}", "type": PARQUET, "roles": ["data"]},
        "coverage": {"href": f"./{files.coverage.name}", "type": "application/geo+json", "roles": ["metadata"]},
    }
    if tiles:
        assets["tiles"] = {"href": f"./{tiles.name}", "type": PMTILES, "roles": ["visual"]}
    about = {"kit:weights_sha256": plan.weights, "kit:cells": len(records), "kit:scenes": len(plan.scenes)}
    item = stac_item(plan.name, box, plan.scenes, assets, about)
    write_json(files.item, item)
    times = item["properties"]
    interval = [times.get("start_datetime"), times.get("end_datetime")]
    hrefs = [CellFiles(files.cells, cell).record.relative_to(files.folder).as_posix() for cell in states.cells]
    links = [{"rel": "item", "href": f"./{href}", "type": "application/geo+json"} for href in (files.item.name, *hrefs)]
    write_json(
        files.collection,
        {
            "type": "Collection", "stac_version": STAC, "id": plan.name, "license": "other",
            "description": f"Buildings of {len(plan.scenes)} scenes",
            "extent": {"spatial": {"bbox": [[west, south, east, north]]}, "temporal": {"interval": [interval]}},
            "links": links, "assets": assets,
        },
    )  # fmt: skip
