"""`kit repair`: a data set with the labels that an audit corrects, and a ledger of every change.

The imagery is not read again: images are linked, and masks redrawn from the repaired outlines. The audited data set
stays as it is.
"""

import csv
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyogrio
import pyproj
import rasterio
import shapely
from numpy.typing import NDArray

from kit.console import meter
from kit.data.audits import TILES, check_audit, read_buildings
from kit.data.burning import as_mask, draw_ids, draw_layers, draw_mask, margin_px, read_width
from kit.data.grids import metres_per_unit
from kit.data.index import read_table, write_table
from kit.data.instances import ids_file
from kit.data.masks import BUILDING, IGNORE, LAYERS
from kit.data.rasters import without_notice
from kit.data.repairs import (
    LABELS,
    MISSING,
    LabelChange,
    Outline,
    Repairer,
    apply_findings,
    unsure_areas,
    write_layer,
    write_outlines,
)
from kit.data.tiles.ledger import Ledger, Record, key_of
from kit.data.tiles.options import Style
from kit.data.tiles.sheets import Sheet, draw_sheet
from kit.data.tiles.tile import MASK_FORMAT, Skipped, Tile
from kit.errors import DataError, nearest
from kit.outputs import check_apart, check_unclaimed, spreadsheet_safe
from kit.paths import Paths
from kit.system.cpu import cpu_count
from kit.system.files import locked, read_json, read_limited, replacing, sha256_of, write_json
from kit.system.workers import spread

__all__ = ["RepairOptions", "Repaired", "repair"]

CHANGES, FOOTPRINTS, REPAIR = "repairs.csv", "footprints.gpkg", "repair.json"
VERSION = 2  # of repairs: another number, and all masks are drawn again
FEW_TILES = 50  # are repaired faster than processes start
LIMIT_BYTES = 2**30  # of `repairs.csv`: some million buildings


@dataclass(frozen=True)
class RepairOptions:
    """The options of `kit repair`."""

    name: str = ""  # of the repaired data set; by default that of the audited one with `_repaired`
    missing: str = "add"  # predicted buildings without a label are added (`add`), or their pixels ignored (`ignore`)
    edge_m: float = 0.5  # half the width of the band that is ignored along unsure edges, metres on the ground
    workers: int | None = None  # processes; None: one per core

    def check(self) -> None:
        """Checks the options.

        Raises:
            DataError: one is unknown or out of range.
        """
        if self.missing not in MISSING:
            raise DataError(f"--missing {self.missing!r} is unknown", nearest(self.missing, MISSING))
        if not 0 <= self.edge_m <= 10:
            raise DataError(f"--edge-m {self.edge_m:g} is out of range", "expected 0 to 10 metres")


@dataclass(frozen=True)
class RepairRecord:
    """The content of `repair.json`."""

    data: str  # name of the audited data set
    audit_sha256: str  # of the audit's `settings.json`, `buildings.csv` and `tiles.csv`
    weights: str  # name of the weights it used
    missing: str  # see `RepairOptions`
    edge_m: float  # likewise


@dataclass(frozen=True)
class Repaired:
    """The result of `repair`."""

    folder: Path  # of the repaired data set
    tiles: int  # in its index
    changes: dict[str, int]  # how many of each kind, undone ones aside
    undone: int  # how many changes were undone


@dataclass(frozen=True)
class RepairJob:
    """A scene to be repaired."""

    source: Path  # folder of the audited data set
    target: Path  # folder of the repaired one
    record: Record  # of the scene in the audited data set
    left_out: frozenset[str]  # ids of its tiles that are not kept
    undone: frozenset[str]  # ids of its changes that are not applied
    options: RepairOptions
    style: Style  # of the tiles

    @property
    def findings(self) -> Path:
        """The audit's outlines of the scene."""
        return self.source / "audit" / "scenes" / self.record.area / f"{self.record.scene}.gpkg"

    @property
    def footprints(self) -> Path:
        """The repaired outlines of the scene."""
        return self.target / "footprints" / self.record.area / f"{self.record.scene}.gpkg"

    @property
    def changes(self) -> Path:
        """What was changed in the scene."""
        return self.footprints.with_suffix(".csv")

    def key(self) -> str:
        """Returns a text that differs where the repaired scene would."""
        options = self.options.missing, self.options.edge_m
        return key_of(
            VERSION, sha256_of(self.findings), self.record.key, sorted(self.left_out), sorted(self.undone), options
        )

    def outlines(self) -> tuple[list[Outline], list[LabelChange], str]:
        """Returns the repaired outlines, the changes, and the CRS of the scene."""
        findings, outlines, crs = read_buildings(self.findings)
        repairer = Repairer(crs, self.findings.with_suffix(".tif"), self.options.missing, self.options.edge_m)
        return *apply_findings(findings, outlines, repairer, self.undone), crs


def repair(paths: Paths, name: str, options: RepairOptions | None = None) -> Repaired:
    """Makes a data set with the labels that `data/NAME/audit` corrects. Rerun to resume, or to undo changes.

    A change whose column `apply` in `repairs.csv` was set to `no` is not made by the next call.

    Args:
        paths: of the working root.
        name: of the audited data set.
        options: see `RepairOptions`.

    Raises:
        DataError: the data set has no audit, or one of another version; its masks were not drawn from footprints; or
            the ledger of an earlier repair cannot be followed.
        OutputError: the target is the audited data set, or was not written by kit repair.
        KitError: another process writes the target.
    """
    options = options or RepairOptions()
    options.check()
    source = paths.data(name)
    if name not in paths.data_names():
        raise DataError(f"no data set {name!r} below {paths.data_folder}", nearest(name, paths.data_names()))
    index = read_table(source / "index.csv")
    audit = source / "audit"
    settings = check_audit(audit, source / "index.csv")
    target = paths.data(options.name or f"{name}_repaired")
    check_apart(target, [source], "--name")
    style = read_json(
        source / "settings.json", _Settings, error=DataError, hint="give the same kit prepare again"
    ).style
    record = RepairRecord(name, _audit_checksum(audit), settings.weights, options.missing, options.edge_m)
    with locked(target):
        _check_owned(target)
        undone = _undone(target, record)
        left_out = _left_out(audit)
        jobs = _jobs(source, target, set(left_out) - undone, undone, options, style)
        _mark(target, record)
        _repair_scenes(target, jobs, options.workers)
        changes = [change for job in jobs for change in _read_changes(job.changes)] + [
            replace(change, apply="no" if change.id in undone else "yes") for change in left_out.values()
        ]
        _write_changes(target / CHANGES, changes)
        _write_footprints(target / FOOTPRINTS, jobs)
        tiles = _write_index(source, target, index, [change for change in left_out.values() if change.id not in undone])
    applied = Counter(part for change in changes if change.apply == "yes" for part in change.change.split(", "))
    return Repaired(target, tiles, dict(applied), sum(change.apply == "no" for change in changes))


@dataclass(frozen=True)
class _Settings:
    """What is read of a data set's `settings.json`."""

    style: Style


def _audit_checksum(audit: Path) -> str:
    return key_of([sha256_of(audit / file) for file in ("settings.json", "buildings.csv", TILES)])


def _check_owned(target: Path) -> None:
    """Checks that a folder is missing, empty or written by kit repair.

    Raises:
        OutputError: it is not.
    """
    if not (target / REPAIR).is_file():
        check_unclaimed(target, "kit repair", "--name")


def _undone(target: Path, record: RepairRecord) -> set[str]:
    """Returns the ids of the changes that the user undid in the ledger of an earlier call.

    Raises:
        DataError: the ledger is damaged, or it undoes changes of another audit.
    """
    file = target / CHANGES
    if not file.exists():
        return set()
    text = read_limited(file, LIMIT_BYTES, DataError).decode("utf-8-sig", "replace")
    rows = csv.DictReader(text.splitlines())
    if not {"id", "apply"} <= set(rows.fieldnames or ()):
        raise DataError(f"{file} lacks the columns id and apply", "remove the file, and give the same command again")
    undone = set()
    for row in rows:
        if row["apply"] not in ("yes", "no"):
            raise DataError(f"{file} line {rows.line_num}: apply is {row['apply']!r}", "expected yes or no")
        if row["apply"] == "no":
            undone.add(row["id"].removeprefix("'"))
    earlier = read_json(target / REPAIR, RepairRecord, error=DataError, hint="choose another --name")
    if undone and (earlier.data, earlier.audit_sha256) != (record.data, record.audit_sha256):
        raise DataError(
            f"{file} undoes {len(undone)} changes of another audit than that of {record.data} now",
            f"remove {file.name} to apply all changes, or choose another --name",
        )
    return undone


def _left_out(audit: Path) -> dict[str, LabelChange]:
    """Returns the tiles that an audit leaves out, by id."""
    try:
        table = pd.read_csv(audit / TILES, dtype=str, keep_default_na=False)
        rows = table[table["verdict"] == "leave_out"].to_dict("records")
        return {
            str(row["tile"]): LabelChange(
                row["tile"], row["area"], row["scene"], "", "tile", "left out", 0.0, 0.0, row["reason"]
            )
            for row in rows
        }
    except (OSError, ValueError, KeyError) as cause:
        raise DataError(f"{audit / TILES} cannot be read: {cause}", "repeat kit audit") from cause


def _jobs(
    source: Path, target: Path, left_out: set[str], undone: set[str], options: RepairOptions, style: Style
) -> list[RepairJob]:
    """Returns a job for each scene.

    Raises:
        DataError: a scene has no footprints, or the audit did not look at it.
    """
    ledger, jobs = Ledger(source), []
    for names in ledger.known():
        record = ledger.read(*names)
        if record is None or not record.cut.tiles:
            continue
        own = {tile.tile for tile in record.cut.tiles}
        prefix = record.name.replace("/", "_") + "_"
        job = RepairJob(
            source, target, record, frozenset(own & left_out),
            frozenset(name for name in undone if name.startswith(prefix)), options, style,
        )  # fmt: skip
        if not job.findings.is_file():
            raise DataError(
                f"{record.name} has no footprints in the audit: its masks were not drawn from label files",
                f"only data sets of scenes with footprints can be repaired; {source / 'audit' / TILES} rates the tiles",
            )
        jobs.append(job)
    return jobs


def _mark(target: Path, record: RepairRecord) -> None:
    """Records whose repair the folder holds; the index goes until it matches the masks again."""
    target.mkdir(parents=True, exist_ok=True)
    (target / "index.csv").unlink(missing_ok=True)
    write_json(target / REPAIR, asdict(record))


def _repair_scenes(target: Path, jobs: Sequence[RepairJob], workers: int | None) -> None:
    """Repairs the scenes that are not done yet, and removes those that are gone."""
    ledger = Ledger(target)
    known = {(job.record.area, job.record.scene) for job in jobs}
    for names in ledger.known():
        if names not in known:
            ledger.remove(*names)
    todo = [job for job in jobs if not ledger.done(job.record.area, job.record.scene, job.key())]
    for job in todo:
        ledger.begin(job.record.area, job.record.scene, job.key())
    n_tiles = sum(len(job.record.cut.tiles) for job in todo)
    processes = 1 if n_tiles < FEW_TILES else min(workers or cpu_count(), max(len(todo), 1))
    with meter("repaired tiles", n_tiles) as progress:
        for job, record in spread(repair_scene, todo, processes, "repairing tiles"):
            ledger.write(record)
            progress.advance(len(job.record.cut.tiles))


def repair_scene(job: RepairJob) -> Record:
    """Writes the repaired outlines, masks and images of a scene, and returns its record."""
    outlines, changes, crs = job.outlines()
    job.footprints.parent.mkdir(parents=True, exist_ok=True)
    with replacing(job.footprints) as temporary:
        write_outlines(temporary, outlines, crs)
    _write_changes(job.changes, changes)
    drawer: _Drawer | None = None
    record = replace(
        job.record, key=job.key(), labels=[str(job.footprints.absolute())], where=LABELS, done=True,
        counts={"used": sum(each.sure for each in outlines)}, notices=[],
    )  # fmt: skip
    record.cut = replace(job.record.cut, tiles=[], failed=[])
    for tile in job.record.cut.tiles:
        if tile.tile in job.left_out:
            continue
        if drawer is None or drawer.crs != tile.crs:
            drawer = _Drawer(outlines, crs, tile.crs, job.style)
        record.cut.tiles.append(_redraw(job, tile, drawer))
    if record.cut.tiles:
        draw_sheet(Sheet(job.target, record.area, record.scene), record.cut.tiles)
    return record


class _Drawer:
    """Repaired outlines in the CRS of tiles, to be drawn as masks."""

    def __init__(self, outlines: Sequence[Outline], crs: str, tile_crs: str, style: Style) -> None:
        self.crs, self.style = tile_crs, style
        geometries = np.array([each.geometry for each in outlines], dtype=object)
        change = pyproj.Transformer.from_crs(crs, tile_crs, always_xy=True)
        moved = shapely.transform(geometries, change.transform, interleaved=False)
        sure = np.array([each.sure for each in outlines], bool)
        edges = np.array([each.edge_m for each in outlines])
        if len(moved):
            left, bottom, right, top = shapely.total_bounds(moved)
            at = (left + right) / 2, (bottom + top) / 2
            edges = edges / metres_per_unit(rasterio.crs.CRS.from_user_input(tile_crs), *at)
        self.sure = moved[sure]
        self.unsure = unsure_areas(moved, sure, edges)
        self.trees = shapely.STRtree(self.sure), shapely.STRtree(self.unsure)

    def draw(
        self, before: NDArray[np.uint8], tile: Tile, transform: rasterio.Affine
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16], int]:
        """Returns a tile's mask, (1 or 3, H, W), the ids of its buildings, (1, H, W), and how many buildings touch it.

        Args:
            before: the mask as it was, (H, W) uint8; 255 where the image holds no data.
            tile: its row of the index.
            transform: pixel to CRS.
        """
        valid, frame = before != IGNORE, shapely.box(tile.left, tile.bottom, tile.right, tile.top)
        touching = self.sure[np.sort(self.trees[0].query(frame, "intersects"))]
        unsure = self.unsure[np.sort(self.trees[1].query(frame, "intersects"))]
        ids = draw_ids(touching, transform, before.shape)
        if self.style.layers:
            boundary_px = read_width(self.style.boundary).odd_px(tile.gsd_m)
            contact_m = read_width(self.style.contact).m(tile.gsd_m)
            reach = (margin_px(tile.gsd_m, boundary_px, contact_m) + 1) * transform.a
            around = self.sure[np.sort(self.trees[0].query(frame.buffer(reach), "intersects"))]
            mask = draw_layers(around, transform, before.shape, valid, tile.gsd_m, boundary_px, contact_m)
        else:
            mask = as_mask(ids, valid)[None]
        everywhere = np.ones(before.shape, bool)
        mask[:, draw_mask(unsure, transform, before.shape, everywhere) == BUILDING] = IGNORE
        return mask, ids[None], len(touching)


def _redraw(job: RepairJob, tile: Tile, drawer: _Drawer) -> Tile:
    """Writes a tile's repaired mask and the ids of its buildings, links its image, and returns its row."""
    with without_notice, rasterio.open(job.source / tile.mask) as old:
        before, profile = old.read(1), old.profile
    mask, ids, touching = drawer.draw(before, tile, profile["transform"])
    place = {key: profile[key] for key in ("driver", "height", "width", "crs", "transform")}
    image, file = job.target / tile.image, job.target / tile.mask
    image.parent.mkdir(parents=True, exist_ok=True)
    _link(job.source / tile.image, image)
    _write_bands(ids_file(file), ids, **place)
    _write_bands(file, mask, nodata=IGNORE, **place)
    valid, buildings = int(np.count_nonzero(mask[0] != IGNORE)), int(np.count_nonzero(mask[0] == BUILDING))
    return replace(
        tile, valid_fraction=round(valid / mask[0].size, 6), building_fraction=round(buildings / max(valid, 1), 6),
        n_footprints=touching,
    )  # fmt: skip


def _write_bands(file: Path, bands: NDArray[np.uint8] | NDArray[np.uint16], **place: Any) -> None:
    """Writes a GeoTIFF of (C, H, W)."""
    shared = {"count": len(bands), "dtype": bands.dtype.name, **place, **MASK_FORMAT}
    with replacing(file) as temporary, without_notice, rasterio.open(temporary, "w", **shared) as raster:
        raster.write(bands)
        if len(bands) == len(LAYERS):
            raster.descriptions = LAYERS


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name, or copies it where the disk cannot."""
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _write_changes(file: Path, changes: Sequence[LabelChange]) -> None:
    columns = [field.name for field in fields(LabelChange)]
    rows = [[getattr(change, name) for name in columns] for change in changes]
    with replacing(file) as temporary:
        pd.DataFrame(rows, columns=columns).map(spreadsheet_safe).to_csv(temporary, index=False)


def _read_changes(file: Path) -> list[LabelChange]:
    numbers = {"dx_m": float, "dy_m": float}
    table = pd.read_csv(file, dtype={field.name: str for field in fields(LabelChange)} | numbers, keep_default_na=False)
    return [LabelChange(**row) for row in table.to_dict("records")]  # type: ignore[misc]


def _write_footprints(file: Path, jobs: Sequence[RepairJob]) -> None:
    """Writes the repaired outlines of all scenes in one GeoPackage, in longitude and latitude."""
    with replacing(file) as temporary:
        for number, job in enumerate(jobs):
            meta, _, wkb, columns = pyogrio.raw.read(job.footprints)
            change = pyproj.Transformer.from_crs(meta["crs"], "EPSG:4326", always_xy=True)
            placed = shapely.transform(shapely.from_wkb(wkb), change.transform, interleaved=False)
            write_layer(temporary, placed, columns, "EPSG:4326", append=number > 0)


def _write_index(source: Path, target: Path, index: pd.DataFrame, left_out: Sequence[LabelChange]) -> int:
    """Writes the repaired index with the folds of the audited one, and the tables beside it; returns its rows."""
    ledger = Ledger(target)
    tiles = [tile for names in ledger.known() for tile in _record(ledger, names).cut.tiles]
    if not tiles:
        raise DataError(f"the audit leaves out every tile of {source.name}", "its weights do not fit these labels")
    table = pd.DataFrame([asdict(tile) for tile in tiles])
    folds = dict(zip(index["tile"], index["fold"], strict=True))
    table.insert(4, "fold", [folds[tile] for tile in table["tile"]])
    skipped = pd.DataFrame(
        [asdict(Skipped(c.id, c.area, c.scene, f"audit: {c.reason}", 0.0)) for c in left_out],
        columns=[field.name for field in fields(Skipped)],
    )
    with replacing(target / "skipped.csv") as temporary:
        skipped.map(spreadsheet_safe).to_csv(temporary, index=False)
    with replacing(target / "settings.json") as temporary:
        shutil.copyfile(source / "settings.json", temporary)
    write_table(target / "index.csv", table)
    return len(table)


def _record(ledger: Ledger, names: tuple[str, str]) -> Record:
    record = ledger.read(*names)
    if record is None:
        raise DataError(f"the record of {'/'.join(names)} is damaged", "give the same command again")
    return record
