"""`kit map`: a scene's probability and mask as rasters on the scene's own grid, and its buildings as polygons."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray

from kit.console import meter, say
from kit.data.rasters import gdal_options
from kit.data.sources.remote import fingerprint, is_remote
from kit.data.splitting import INSIDE as INSIDE_ABOVE
from kit.data.splitting import SMALLEST_M2, inside_of
from kit.deploy.adaptive.calibrate import LOOK_PX, end_early
from kit.deploy.engine.backends import EngineOptions
from kit.deploy.engine.predict import has_ground, predict_channels, predict_image
from kit.deploy.engine.tuning import TILES, set_up
from kit.deploy.mapping.apart import Apart
from kit.deploy.mapping.banded_cleaning import BandedCleaning, Mask
from kit.deploy.mapping.cogs import (
    BLOCK_PX,
    NO_DATA,
    is_building,
    read_bands,
    write_mask_band,
    write_probability,
    writing,
)
from kit.deploy.mapping.dividing import Divider, planes_of
from kit.deploy.mapping.layers import FORMATS, Layer, check_format
from kit.deploy.mapping.map_files import INSIDE, MapFiles, PredictionKey, scene_file
from kit.deploy.mapping.overlay import Overlay
from kit.deploy.mapping.polygons import outlined
from kit.deploy.mapping.scene import Frame, SceneReader, check_source
from kit.deploy.mapping.strips import SPLITTING, Predictor, Strips, predict_strips
from kit.deploy.mapping.tracing import Tracer
from kit.deploy.mapping.windows import Axis, along, check_window
from kit.deploy.weights.card import Card, Splitting
from kit.deploy.weights.cleaning import Cleaning
from kit.deploy.weights.load import Weights, load_weights
from kit.errors import KitError, RasterError
from kit.outputs import check_name
from kit.system.files import check_writable, locked

CACHE_BYTES = 256 << 20  # decoded blocks of the scene that two rows of windows share
MOST_BYTES = 8 << 30  # memory for one row of windows
GRIDS = ("scene", "training")
SAMPLE_PX, SAMPLES = 512, 4  # pieces of the scene to tune on: their side, and candidate positions along each direction
LOOKS = 8  # pieces that the adaptive vote is calibrated on
SIMPLIFIED_PX = 2.0  # default tolerance, in pixels of the coarser of map and weights: smooths the steps of pixels
Prediction = Callable[[Weights, NDArray[np.uint8]], NDArray[np.float32]]
CLEANING = Cleaning(smallest_m2=2.0, holes_m2=2.0)


@dataclass(frozen=True)
class MapOptions:
    """Options of a map."""

    # threshold, smallest object and smallest hole of the mask; the polygons are traced from it
    cleaning: Cleaning = CLEANING
    # how weights with channels divide the mask into buildings; None: each connected component is one building
    splitting: Splitting | None = None
    # ground resolution to predict at, metres per pixel; None: that of the weights' training
    gsd_m: float | None = None
    grid: str = "scene"  # of the rasters: `scene`, or `training` for the resolution predicted at
    window_px: int = 1024  # largest side of a window, px at that resolution
    overlap_px: int = 128  # least overlap of neighbouring windows
    format: str = "gpkg"  # of the polygons, a key of `FORMATS`
    square: bool = False  # turns walls to right angles
    simplify_m: float | None = None  # how far an outline may move, metres; None: two pixels
    allow_outside: bool = False  # lets a scene that is a VRT read files outside its folder, and addresses

    def check(self) -> None:
        """Checks the values before anything is read.

        Raises:
            KitError: a value is unknown or impossible.
        """
        check_window(self.window_px, self.overlap_px)
        check_format(self.format)
        if self.grid not in GRIDS:
            raise KitError(f"no grid {self.grid!r}", f"expected {' or '.join(GRIDS)}")
        if not 0 <= self.cleaning.threshold < 1:
            raise KitError(f"a threshold of {self.cleaning.threshold:g}", "expected 0 to below 1")
        lengths = {
            "--gsd": self.gsd_m, "--simplify": self.simplify_m,
            "--smallest": self.cleaning.smallest_m2, "--holes": self.cleaning.holes_m2,
        }  # fmt: skip
        for option, value in lengths.items():
            if value is not None and not 0 <= value < float("inf"):
                raise KitError(f"{option} is {value:g}", "expected 0 or more")


@dataclass(frozen=True)
class MapSummary:
    """A finished map."""

    probability: Path  # raster, 0 to 255
    mask: Path  # raster, 0 and 1, 255 without imagery
    polygons: Path  # layer of buildings
    overlay: Path  # small picture
    buildings: int  # their number
    area_m2: float  # their ground area
    gsd_m: float  # ground resolution predicted at, metres per pixel
    windows: int  # number of windows predicted by this call


def map_scene(
    href: str,
    weights_path: Path,
    out_dir: Path,
    name: str,
    options: MapOptions = MapOptions(),
    engine: EngineOptions = EngineOptions(),
) -> MapSummary:
    """Maps the buildings of a scene into files `NAME_probability.tif` and so on.

    A rerun predicts only the rows of windows that are missing, and none of a finished map; the files come out byte for
    byte as from one call.

    Args:
        href: path or address of a GeoTIFF, uint8 RGB or RGBA.
        weights_path: a file that `kit export` wrote.
        out_dir: folder of the files.
        name: that the files begin with.
        options: see `MapOptions`.
        engine: see `EngineOptions`.

    Raises:
        OutputError: the folder cannot be written, or a file exists that kit did not write.
        RasterError: the scene cannot be read, or has no place on the earth; finished rows of windows are kept.
        WeightsError: the weights are missing or not kit's.
        KitError: an option is impossible, or the disk or the device's memory is full.
    """
    options.check()
    files = MapFiles(out_dir / check_name(name))
    files.check(href)
    check_source(href, options.allow_outside)
    check_writable(out_dir)
    shipped = load_weights(weights_path, engine.device)
    with rasterio.Env(**gdal_options(CACHE_BYTES, is_remote(href))), SceneReader(href) as reader:
        reader.set_resolution(options.gsd_m or shipped.card.resolution_m("kit map"))
        rows, columns = windows_of(reader.work, options, shipped.card.pad_multiple)
        _check_memory(rows, columns, reader.scene)
        options = replace(options, splitting=chosen_splitting(shipped.card, shipped.path.stem, options.splitting))
        predict = predict_inside if options.splitting else predict_image
        ready, version = set_up(shipped, partial(_samples, reader, TILES, SAMPLE_PX), engine), fingerprint(href)
        if engine.adaptive and options.splitting:
            say("--adaptive is left out: it computes no channels, which tell neighbours apart")
        elif engine.adaptive:
            ready = end_early(ready, partial(_samples, reader, LOOKS, LOOK_PX), f"{href} {version} {reader.work}")
        key = PredictionKey(href, version, ready.sha256, ready.plan, (rows, columns))
        with locked(files.stem):
            return draw_map(reader, partial(predicted, ready, predict), key, files, options)


def chosen_splitting(card: Card, name: str, splitting: Splitting | None = None) -> Splitting | None:
    """Returns how weights divide a mask into buildings, and says so; None for weights without channels.

    Args:
        card: of the weights.
        name: of the weights.
        splitting: to be used instead of the card's.
    """
    if not card.channels:
        say(f"{name} does not tell neighbours apart: buildings that touch are one polygon")
        return None
    splitting = splitting or card.splitting or Splitting(INSIDE_ABOVE, SMALLEST_M2, 0, 0)
    say(f"buildings that touch are split: markers above {splitting.inside:g}, from {splitting.smallest_m2:g} m2")
    return splitting


def predict_inside(weights: Weights, rgba: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the probability of building and of its inside, (2, h, w)."""
    channels = predict_channels(weights, rgba)
    return np.stack([channels[0], inside_of(channels)])


def windows_of(work: Frame, options: MapOptions, stride_px: int = 1) -> tuple[Axis, Axis]:
    """Returns the windows along the columns and along the rows of a frame; see `along`."""
    down, across = (along(size, options.window_px, options.overlap_px, stride_px) for size in (work.height, work.width))
    return down, across


def draw_map(
    reader: SceneReader, predict: Predictor, key: PredictionKey, files: MapFiles, options: MapOptions
) -> MapSummary:
    """Maps a scene with any predictor; see `map_scene`.

    Args:
        reader: of the scene, set to the resolution of the predictor.
        predict: returns a window's probability.
        key: scene, predictor and windows, without the raster's size.
        files: of the map.
        options: see `MapOptions`.
    """
    frame = reader.scene if options.grid == "scene" else reader.work
    rows, columns = key.windows
    key, windows = replace(key, size=(frame.width, frame.height)), 0
    old, written = files.read(), files.written()
    predicted = ["probability", INSIDE] if options.splitting else ["probability"]
    now = {files[kind].name for kind in ("mask", "overlay", options.format, *predicted)}
    if old.prediction != key or not all(files[kind].is_file() for kind in predicted):
        files.write(written | now, None)
        planes = SPLITTING if options.splitting else ()
        strips = Strips(files.strips, asdict(key), rows.edges, rows.edges_on(frame.height), planes)
        windows = predict_strips(reader, rows, columns, frame, predict, strips)
        for plane, kind in enumerate(predicted):
            write_probability(files[kind], frame, reader.work, strips, plane)
        files.write(written | now, key)
        shutil.rmtree(strips.folder)
    files.write(written | now, key)  # without the counts of an earlier mask
    for kind in (*FORMATS, INSIDE):
        if files[kind].name in written - now:
            files[kind].unlink(missing_ok=True)
    about = {"SOURCE": scene_file(key.scene), "WEIGHTS_SHA256": key.weights, "IMAGERY_DATE": reader.taken}
    layer = _trace(reader, frame, files, options, {name: text for name, text in about.items() if text})
    summary = MapSummary(
        files["probability"], files["mask"], layer.path, files["overlay"],
        layer.count, layer.area_m2, reader.work.gsd_m, windows,
    )  # fmt: skip
    counts = {"buildings": layer.count, "area_m2": round(layer.area_m2, 2), "gsd_m": round(summary.gsd_m, 6)}
    files.write(now, key, **counts, options=asdict(options))
    return summary


def _trace(reader: SceneReader, frame: Frame, files: MapFiles, options: MapOptions, about: dict[str, str]) -> Layer:
    """Writes mask, polygons and picture from a finished probability raster, and returns the layer of polygons."""

    def masks() -> Iterator[Mask]:
        return (is_building(level, options.cleaning.threshold) for level, _ in read_bands(files["probability"]))

    cleaning = BandedCleaning(options.cleaning, frame.pixel_m2, masks)
    simplify_m = options.simplify_m or SIMPLIFIED_PX * max(frame.gsd_m, reader.work.gsd_m)
    divider = None
    tracer, apart, overlay, top = Tracer(), Apart(frame.gsd_m), Overlay(reader.source, frame), 0
    layer = Layer(files.stem, FORMATS[options.format], frame, about)
    with (
        ExitStack() as stack,
        layer,
        writing(files["mask"], frame, "mode", NO_DATA) as target,
        meter("trace rows", frame.height) as running,
    ):
        if split := options.splitting:
            planes = stack.enter_context(planes_of(files["probability"], files[INSIDE]))
            divider = Divider(planes, split.inside, split.smallest_m2 / frame.pixel_m2)
        for index, (level, valid) in enumerate(read_bands(files["probability"])):
            mask = cleaning.cleaned(index, is_building(level, options.cleaning.threshold)) & valid
            write_mask_band(target, top, mask, valid)
            pieces = tracer.add(level, mask, top)
            top += len(mask)
            if top == frame.height:
                pieces += tracer.close()
            traced = outlined(divider.divided(pieces) if divider else pieces, frame, simplify_m, options.square)
            buildings = apart.add(traced, top, tracer.open) if top < frame.height else apart.last(traced)
            layer.add(buildings)
            overlay.draw(buildings.polygons)
            running.advance(len(mask))
    overlay.write(files["overlay"])
    if divider and divider.undivided:
        say(f"groups of touching buildings too large to divide, each one polygon: {divider.undivided}")
    return layer


def _check_memory(rows: Axis, columns: Axis, scene: Frame) -> None:
    """Checks that a row of windows, and a band of the rasters, fit into memory."""
    needed = max(8 * rows.side_px * columns.size_px, 24 * BLOCK_PX * scene.width)  # bytes: sums, or labels and masks
    if needed > MOST_BYTES:
        raise RasterError(
            f"the scene is {scene.width:,} px wide: a row of its windows takes {needed / 2**30:,.0f} GiB of memory, "
            f"at most {MOST_BYTES >> 30} are used",
            "cut it into narrower scenes: gdal_translate -srcwin; or take a smaller --window",
        )


def predicted(weights: Weights, predict: Prediction, rgba: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns a window's prediction."""
    try:
        return predict(weights, rgba)
    except torch.OutOfMemoryError as cause:
        raise KitError(
            f"{weights.device} has too little memory for windows of {rgba.shape[1]} x {rgba.shape[0]} px",
            "take smaller ones: --window 512",
        ) from cause


def _samples(reader: SceneReader, count: int, side_px: int) -> list[NDArray[np.uint8]]:
    """Returns up to `count` different pieces of a scene, uint8 (h, w, 4), each at least half imagery; maybe none."""
    samples: list[NDArray[np.uint8]] = []
    height, width = reader.work.height, reader.work.width
    side_y, side_x = min(side_px, height), min(side_px, width)
    tops = dict.fromkeys((height - side_y) * down // (SAMPLES - 1) for down in (1, 2, 0, 3))  # the middle first
    lefts = dict.fromkeys((width - side_x) * across // (SAMPLES - 1) for across in (2, 1, 3, 0))
    for top, left in product(tops, lefts):
        rgba = reader.read((top, top + side_y), (left, left + side_x)).rgba
        if has_ground(rgba) and (rgba[..., 3] > 0).mean() >= 0.5:
            samples.append(rgba)
        if len(samples) == count:
            break
    return samples
