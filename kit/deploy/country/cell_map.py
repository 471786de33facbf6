"""Maps one cell: predicts its windows from every scene that sees them, and traces the buildings that belong to it."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import rasterio
import shapely
import torch
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from kit import __version__
from kit.data.rasters import find_collar, gdal_options, open_scene
from kit.data.sources.remote import fingerprint, is_remote
from kit.data.tiles.warping import Imagery
from kit.deploy.country.cell_rows import CellRows, write_rows
from kit.deploy.country.cells import MOST_GROWN, Cell, Lattice, Pixels, SceneTree, outline_in
from kit.deploy.country.collection import PlacedScene
from kit.deploy.country.ownership import CellOptions, clipped, core_in, reaches_out, rows_of
from kit.deploy.country.records import EMPTY, FAILED, MAPPED, CellFiles, CellRecord, inputs_of
from kit.deploy.engine.backends import Engine, EngineOptions
from kit.deploy.engine.predict import predict_image
from kit.deploy.engine.tuning import set_up
from kit.deploy.mapping.banded_cleaning import BandedCleaning
from kit.deploy.mapping.cogs import bands, is_building
from kit.deploy.mapping.dividing import Divider
from kit.deploy.mapping.map import predict_inside, predicted
from kit.deploy.mapping.strips import SPLITTING, Predictor
from kit.deploy.mapping.tracing import Piece, Tracer
from kit.deploy.mapping.windows import Band
from kit.deploy.weights.cleaning import Cleaning
from kit.deploy.weights.load import load_weights
from kit.errors import KitError, RasterError, WeightsError

CACHE_BYTES = 128 << 20  # decoded blocks that windows of a cell share
Levels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class CellTask:
    """One cell to be mapped by any worker."""

    cell: Cell
    lattice: Lattice
    scenes: tuple[PlacedScene, ...]  # that it may see when its halo is largest, the preferred ones first
    options: CellOptions
    plan: str  # JSON of the plan's options, for the cell's checksum
    weights: str  # path of the file, on every worker
    sha256: str  # of that file
    folder: str  # of all cells
    device: str = "cpu"
    engine: Engine = "torch"
    kit: str = __version__  # that made the task


_one_at_a_time = threading.Lock()


def map_task(task: CellTask) -> CellRecord:
    """Maps a cell, writes its files and returns its record; a cell that cannot be mapped is recorded as failed.

    Raises:
        OutputError: the files cannot be written.
    """
    files = CellFiles(Path(task.folder), task.cell)
    try:
        if task.kit != __version__:
            raise KitError(f"this worker has kit {__version__}, the plan was made by kit {task.kit}")
        with _one_at_a_time:
            predict = _predictor(task.weights, task.sha256, task.device, task.engine, bool(task.options.splitting))
            if task.device == "cpu":
                torch.set_num_threads(1)  # the sums of a convolution depend on the number of threads
            rows, record = map_cell(task, predict)
    except (KitError, RasterioError, OSError, MemoryError, RuntimeError) as cause:
        reason = cause.message if isinstance(cause, KitError) else f"{type(cause).__name__}: {cause}"
        record = CellRecord(task.cell.name, FAILED, reason=reason)
        files.write(record, task.lattice, ())
        return record
    if len(rows):
        write_rows(files.buildings, [rows], with_seam=True)
    else:
        files.buildings.unlink(missing_ok=True)
    files.write(record, task.lattice, [scene for scene in task.scenes if scene.id in record.scenes])
    return record


@lru_cache(maxsize=1)
def _predictor(path: str, sha256: str, device: str, engine: Engine, splitting: bool) -> Predictor:
    """Returns what predicts a window; the networks stay in memory from cell to cell."""
    weights = load_weights(Path(path), device)
    if weights.sha256 != sha256:
        raise WeightsError(f"{path} has sha256 {weights.sha256[:12]}..., the plan was made with {sha256[:12]}...")
    ready = set_up(weights, list, EngineOptions(device, engine, tuning=False))
    return partial(predicted, ready, predict_inside if splitting else predict_image)


def map_cell(task: CellTask, predict: Predictor) -> tuple[CellRows, CellRecord]:
    """Returns the buildings of a cell, and its record.

    The halo grows while a building of the cell reaches beyond it.

    Args:
        task: see `CellTask`.
        predict: returns a window's probability.

    Raises:
        RasterError: a scene is missing, broken, or has changed since the plan.
    """
    lattice, cell, tree = task.lattice, task.cell, SceneTree(task.scenes)
    for grown in range(MOST_GROWN + 1):
        scenes = tree.near(lattice, cell, grown)
        level, valid, windows = predict_cell(lattice, cell, grown, scenes, predict, task.options)
        pieces = _pieces(level, valid, lattice, task.options.cleaning)
        if task.options.splitting:
            pieces = _divided(pieces, level, task, grown)
        if not any(reaches_out(each, lattice, cell, grown) for piece in pieces for each in piece.buildings.values()):
            break
    left, top, right, bottom = core_in(lattice, cell, grown)
    imagery = float(valid[top:bottom, left:right].mean())
    record = CellRecord(
        cell.name, MAPPED if imagery else EMPTY, inputs_of({"options": task.plan}, cell, grown, scenes), grown,
        imagery=round(imagery, 4), windows=windows, scenes=tuple(scene.id for scene in scenes),
    )  # fmt: skip
    rows, cut = rows_of(pieces, lattice, cell, grown, task.options)
    return rows, replace(record, buildings=len(rows), area_m2=round(float(rows.area_m2.sum()), 2), cut=cut)


def predict_cell(
    lattice: Lattice, cell: Cell, grown: int, scenes: Sequence[PlacedScene], predict: Predictor, options: CellOptions
) -> tuple[Levels, Mask, int]:
    """Returns the prediction of a cell and its halo, where there is imagery, and how often it predicted.

    The prediction is the probability, 0 to 255, (1, h, w); with splitting also that of the inside, (2, h, w).

    Args:
        lattice: of the map.
        cell: to be predicted.
        grown: rows of windows that are added around it.
        scenes: that its windows may see, the preferred ones first.
        predict: returns a window's probability.
        options: of the plan.
    """
    planes = SPLITTING if options.splitting else ()
    spans = lattice.spans(cell, grown)
    rows, columns = map(lattice.axis, spans)
    seen = np.zeros((rows.size_px, columns.size_px), bool)
    level = np.zeros((*planes, *seen.shape), np.uint8)
    windows, carried = 0, None
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(**gdal_options(CACHE_BYTES, any(is_remote(scene.href) for scene in scenes))))
        readers = [WindowReader(scene, lattice, cell.zone, stack) for scene in scenes]
        for index, row in enumerate(spans[0]):
            band = Band(rows, columns, index, carried, planes)
            for place, column in enumerate(spans[1]):
                window = fused((reader.read(row, column) for reader in readers), predict, options.alone)
                if window is not None:
                    probability, valid, times = window
                    band.add(place, probability)
                    seen[slice(*rows.span(index)), slice(*columns.span(place))] |= valid
                    windows += times
            done, carried = band.finished()
            level[..., rows.starts[index] : rows.starts[index] + done.shape[-2], :] = done
    inside = np.s_[lattice.overlap_px : -lattice.overlap_px, lattice.overlap_px : -lattice.overlap_px]
    return level.reshape(-1, *seen.shape)[:, *inside], seen[inside], windows


class WindowReader:
    """Reads the windows of one scene; opens it when the first one is read.

    Args:
        scene: as the plan knows it.
        lattice: of the map.
        zone: whose grid the windows lie on.
        stack: closes the scene.
    """

    def __init__(self, scene: PlacedScene, lattice: Lattice, zone: int, stack: ExitStack) -> None:
        self.scene, self.grid, self.stack = scene, lattice.grid(zone), stack
        self.outline = outline_in(scene, zone)
        shapely.prepare(self.outline)
        self.imagery: Imagery | None = None

    def read(self, row: int, column: int) -> tuple[NDArray[np.uint8], Mask] | None:
        """Returns a window's RGB, (3, side, side), and where it has imagery, (side, side); None outside of the scene.

        Raises:
            RasterError: the scene is missing or broken, or has changed since the plan.
        """
        if not self.outline.intersects(shapely.box(*self.grid.bounds(row, column))):
            return None
        if self.imagery is None:
            self.imagery = self._open()
        return self.imagery.read(row, column)

    def _open(self) -> Imagery:
        href = self.scene.href
        try:
            version = fingerprint(href)
        except KitError as cause:
            raise RasterError(f"scene {self.scene.id} is gone: {cause.message}") from cause
        if version != self.scene.version:
            raise RasterError(f"scene {self.scene.id} has changed since the plan: {href}", "plan again: --plan")
        with open_scene(href) as source:
            collar = find_collar(source)
        return self.stack.enter_context(Imagery(href, self.grid, *self.grid.span(self.outline.bounds), collar))


def fused(
    windows: Iterator[tuple[NDArray[np.uint8], Mask] | None], predict: Predictor, alone: bool
) -> tuple[NDArray[np.float32], Mask, int] | None:
    """Returns one probability of a window that several scenes see, where there is imagery, and how often it predicted.

    Args:
        windows: RGB, (3, side, side), and imagery, (side, side), of each scene, the preferred ones first.
        predict: returns a window's probability.
        alone: each pixel has the probability of the first scene that has imagery there; else the mean of all that have.

    Returns:
        None where no scene has imagery. The probability has the shape that `predict` returns, (side, side) last.
    """
    total = weight = np.zeros((), np.float32)
    times = 0
    for window in windows:
        if window is None or not window[1].any():
            continue
        rgb, valid = window
        used = valid & (weight == 0) if alone else valid
        if not used.any():
            continue
        rgba = np.dstack([*rgb, np.where(valid, 255, 0)]).astype(np.uint8)
        total, weight = total + predict(rgba) * used, weight + used
        times += 1
        if alone and weight.all():
            break
    if not times:
        return None
    mean = (total / np.maximum(weight, 1)).astype(np.float32, copy=False)
    return mean, weight > 0, times


def _pieces(planes: Levels, valid: Mask, lattice: Lattice, cleaning: Cleaning) -> list[Piece]:
    """Returns the connected components of the clean mask."""
    level, height = planes[0], len(valid)
    strips = list(bands(height))

    def masks() -> Iterator[Mask]:
        return (is_building(level[top:bottom], cleaning.threshold) for top, bottom in strips)

    cleaned, tracer, pieces = BandedCleaning(cleaning, lattice.gsd_m**2, masks), Tracer(), []
    for index, (top, bottom) in enumerate(strips):
        mask = cleaned.cleaned(index, is_building(level[top:bottom], cleaning.threshold)) & valid[top:bottom]
        pieces += tracer.add(level[top:bottom], mask, top)
    return pieces + tracer.close()


def _divided(pieces: Sequence[Piece], planes: Levels, task: CellTask, grown: int) -> list[Piece]:
    """Returns pieces, each with its buildings."""
    splitting = task.options.splitting
    assert splitting

    def part(plane: int, box: Pixels) -> Levels:
        left, top, right, bottom = box
        return planes[plane, top:bottom, left:right]

    divider = Divider(part, splitting.inside, splitting.smallest_m2 / task.lattice.gsd_m**2)
    return divider.divided([clipped(piece, task.lattice, task.cell, grown) for piece in pieces])
