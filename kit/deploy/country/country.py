"""`kit map` for many scenes: plan, map the cells on any number of machines, merge."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kit import __version__
from kit.console import meter, say
from kit.deploy.country.cell_map import CellTask, map_task
from kit.deploy.country.cells import CELL_M, Cell, lattice_of
from kit.deploy.country.collection import Collection, Refused, list_scenes, place_scenes
from kit.deploy.country.country_plan import CellStates, CountryFiles, CountryPlan, check_same
from kit.deploy.country.merge import CountrySummary, check_complete, merge
from kit.deploy.country.ownership import CellOptions
from kit.deploy.country.records import FAILED, CellFiles, CellRecord
from kit.deploy.engine.backends import EngineOptions
from kit.deploy.engine.predict import predict_image
from kit.deploy.mapping.map import MapOptions, chosen_splitting
from kit.deploy.mapping.scene import COARSEST
from kit.deploy.weights.load import load_weights, read_card
from kit.errors import KitError
from kit.outputs import check_name
from kit.system.cpu import cpu_count
from kit.system.files import check_writable, locked, remove_leftovers, sha256_of, write_bytes
from kit.system.workers import spread, uses_cluster

TRIAL_PX = 256  # window that the time of a plan's windows is estimated from
BUILDINGS_PER_KM2, BUILDING_BYTES, CELL_BYTES = 1500, 200, 4096  # for the estimate of disk space


@dataclass(frozen=True)
class CountryRequest:
    """What to map, with which weights, and where to write it."""

    places: tuple[str, ...]  # see `list_scenes`
    weights: Path
    folder: Path  # of the map's files
    name: str  # that the merged files begin with
    options: MapOptions  # `grid` and `format` are not used
    engine: EngineOptions = EngineOptions()  # without tuning and `adaptive`, so that all machines compute alike
    prefer: str = ""  # order of the scenes; see `place_scenes`
    cell_m: float = CELL_M  # side of a cell, metres
    bbox: str = ""  # of a STAC API search
    time: str = ""  # likewise


@dataclass(frozen=True)
class PlanCost:
    """What a plan will take."""

    scenes: int
    cells: int
    windows: int
    gigapixels: float  # to predict
    disk_gb: float
    hours: float  # on this machine
    workers: int  # on this machine


@dataclass(frozen=True)
class PartSummary:
    """A finished part of a map."""

    cells: int  # of the part
    mapped: int  # by this call
    failed: tuple[CellRecord, ...]


def make_plan(request: CountryRequest) -> CellStates:
    """Writes the plan of a map, and returns its cells. An earlier plan of the folder is replaced.

    Raises:
        CatalogError: the collection cannot be read, or holds no scene that can be mapped.
        OutputError: the folder holds other files, or cannot be written.
        WeightsError: the weights are missing or not kit's.
        KitError: an option is impossible.
    """
    plan, files = _empty_plan(request), CountryFiles(request.folder, request.name)
    files.check()
    check_writable(request.folder)
    old = files.read()
    listed = list_scenes(request.places, request.bbox, request.time)
    known = old.scenes if old else ()
    collection = place_scenes(listed, request.prefer, known, request.options.allow_outside)
    collection = _fine_enough(collection, plan.lattice.gsd_m)
    plan = replace(plan, scenes=collection.scenes, refused=collection.refused)
    for scene in collection.refused:
        say(f"left out: {scene.id}: {scene.reason}")
    if undated := sum(not scene.date for scene in plan.scenes) if request.prefer == "newest" else 0:
        say(f"{undated} of {len(plan.scenes)} scenes have no date: they come last")
    with locked(files.plan):
        files.write(plan)
    return CellStates(plan, files)


def read_plan(request: CountryRequest) -> CellStates:
    """Returns the cells of a plan that was made before.

    Raises:
        KitError: there is none, or it was made with other weights or options.
    """
    files = CountryFiles(request.folder, request.name)
    plan = check_same(files.read(), _empty_plan(request), request.folder)
    return CellStates(plan, CountryFiles(request.folder, plan.name))


def _empty_plan(request: CountryRequest) -> CountryPlan:
    options = request.options
    options.check()
    check_name(request.name)
    card = read_card(request.weights)
    gsd_m = options.gsd_m or card.resolution_m("kit map")
    lattice = lattice_of(gsd_m, options.window_px, options.overlap_px, card.pad_multiple, request.cell_m)
    splitting = chosen_splitting(card, request.weights.stem, options.splitting)
    chosen = CellOptions(options.cleaning, bool(request.prefer), options.square, options.simplify_m, splitting)
    return CountryPlan(
        __version__, request.name, sha256_of(request.weights), request.engine.engine, lattice, chosen, ()
    )


def _fine_enough(collection: Collection, gsd_m: float) -> Collection:
    """Returns a collection without scenes that are much coarser than the weights were trained at."""
    coarse = [scene for scene in collection.scenes if scene.gsd_m > COARSEST * gsd_m]
    reasons = tuple(
        Refused(scene.id, f"{scene.gsd_m:.3g} m per pixel, the weights were trained at {gsd_m:.3g} m")
        for scene in coarse
    )
    if len(coarse) == len(collection.scenes):
        raise KitError(f"all scenes are too coarse, first {reasons[0].id}: {reasons[0].reason}", "finer ones, or --gsd")
    kept = tuple(scene for scene in collection.scenes if scene not in coarse)
    return Collection(kept, collection.refused + reasons)


def estimate(states: CellStates, request: CountryRequest, workers: int) -> PlanCost:
    """Returns what a plan will take; it predicts one small window to measure this machine.

    Args:
        states: of the plan.
        request: of the plan.
        workers: processes of this machine.
    """
    lattice, plan = states.plan.lattice, states.plan
    windows = states.windows(states.cells)
    weights = load_weights(request.weights, request.engine.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as workers do; and a pool of threads would not survive the fork of processes
    image = np.random.default_rng(0).integers(0, 256, (TRIAL_PX, TRIAL_PX, 3), dtype=np.uint8)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        predict_image(weights, image)
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    hours = windows * min(seconds) * (lattice.side_px / TRIAL_PX) ** 2 / 3600
    km2 = len(states.cells) * (lattice.cell_px * lattice.gsd_m / 1000) ** 2
    disk = 2 * km2 * BUILDINGS_PER_KM2 * BUILDING_BYTES + len(states.cells) * CELL_BYTES
    pixels = windows * lattice.side_px**2
    return PlanCost(len(plan.scenes), len(states.cells), windows, pixels / 1e9, disk / 1e9, hours / workers, workers)


def map_cells(
    states: CellStates, cells: Sequence[Cell], request: CountryRequest, processes: int | None = None
) -> PartSummary:
    """Maps the cells that are not mapped yet.

    Args:
        states: of the plan.
        cells: of the plan, or of one part of it.
        request: of the plan.
        processes: of this machine; None: one per CPU core. Of a cluster it does not count.

    Raises:
        KitError: a process was killed, or the cluster cannot be used; finished cells are kept.
        OutputError: the disk is full.
    """
    device = request.engine.device
    if device != "cpu" and not uses_cluster():
        processes = 1  # one process holds the GPU
    weights = request.weights.resolve()
    tasks = states.tasks(cells, weights, device)
    failed, mapped = [], 0
    with meter("map cells", len(cells)) as running:
        check = partial(
            worker_problem, __version__, str(weights), states.plan.weights, str(states.files.folder.resolve())
        )
        lost = partial(_lost, states=states)
        tasks = (replace(task, folder=str(states.files.cells.resolve())) for task in tasks)
        for task, record in spread(map_task, tasks, processes or cpu_count(), "mapping cells", check, lost):
            mapped += 1
            running.advance()
            if record.status == FAILED:
                failed.append(record)
                running.line(f"failed: cell {task.cell.name}: {record.reason}")
        running.skip(len(cells) - mapped)
    return PartSummary(len(cells), mapped, tuple(sorted(failed, key=lambda record: record.cell)))


def _lost(task: CellTask, states: CellStates) -> CellRecord:
    """Returns, and writes, the record of a cell whose workers were lost one after the other."""
    record = CellRecord(task.cell.name, FAILED, reason="several workers were lost with it, perhaps short of memory")
    CellFiles(states.files.cells, task.cell).write(record, task.lattice, ())
    return record


def worker_problem(kit: str, weights: str, sha256: str, folder: str) -> str:
    """Returns why a worker cannot map cells; empty if it can.

    Args:
        kit: version of the plan.
        weights: path of the file.
        sha256: of that file.
        folder: of the map.
    """
    path = Path(weights)
    if kit != __version__:
        return f"it has kit {__version__}, the plan was made by kit {kit}"
    if not path.is_file():
        return f"it has no weights {weights}"
    if sha256_of(path) != sha256:
        return f"its weights {weights} are another file"
    return "" if Path(folder).is_dir() else f"it has no folder {folder}"


def mark_part(files: CountryFiles, index: int, count: int) -> None:
    """Writes that a part was begun, so that a merge can say which parts are missing."""
    write_bytes(files.parts / f"{index}of{count}", b"")


def merge_map(states: CellStates) -> CountrySummary:
    """Merges the cells of a plan, once all are mapped or failed.

    Raises:
        KitError: some are not mapped yet, a file is damaged, or the disk is full.
    """
    records = check_complete(states, states.files.parts)
    with locked(states.files.plan):
        remove_leftovers(states.files.folder)
        return merge(states, records)


def check_failed(failed: Sequence[CellRecord], cells: int) -> None:
    """Raises KitError if cells failed."""
    if failed:
        raise KitError(
            f"{len(failed)} of {cells} cells failed, first {failed[0].cell}: {failed[0].reason}",
            "rerun to try them again; the others are mapped",
        )
