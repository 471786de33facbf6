"""A scene to a map: probability and mask as rasters, buildings as polygons, on the scene's own grid."""

import json
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray

from kit.console import meter
from kit.data.rasters import gdal_options
from kit.data.sources.remote import fingerprint, is_remote, local_path
from kit.deploy.adaptive.calibrate import LOOK_PX, end_early, learnt_bounds
from kit.deploy.engine.backends import EngineOptions, check_engine
from kit.deploy.engine.predict import has_ground, predict_image
from kit.deploy.engine.tuning import TILES, set_up
from kit.deploy.mapping.cogs import (
    NO_DATA,
    is_building,
    read_bands,
    write_mask_band,
    write_probability,
    writing,
)
from kit.deploy.mapping.layers import FORMATS, Layer, check_format
from kit.deploy.mapping.overlay import Overlay
from kit.deploy.mapping.polygons import Rules, clean
from kit.deploy.mapping.predicting import Predictor, edges_on, predict_strips
from kit.deploy.mapping.reader import Reader
from kit.deploy.mapping.scene import Frame
from kit.deploy.mapping.strips import Strips
from kit.deploy.mapping.tracing import Tracer
from kit.deploy.mapping.windows import Axis, along, check_window
from kit.deploy.weights.load import Weights, load_weights
from kit.errors import KitError, OutputError
from kit.outputs import as_name, check_apart, check_name
from kit.system.files import locked, replacing

VERSION = 1  # of the strips and of what they are made by
CACHE_BYTES = 256 << 20  # decoded imagery: the row of a scene's blocks that two rows of windows share
GRIDS = ("scene", "training")
RASTERS = {"probability": "_probability.tif", "mask": "_mask.tif", "overlay": "_overlay.png"}
SAMPLE_PX, SAMPLES = 512, 4  # of what is measured on: side, and places along each direction that are looked at
LOOKS = 8  # pieces that are looked at in full to fit an adaptive vote
SIMPLIFIED_PX = 2.0  # by default, of the coarser of map and weights: the steps of a slanted outline are one high


@dataclass(frozen=True)
class Wanted:
    """What a map shall be.

    Args:
        threshold: of the mask, 0..1: buildings are above.
        gsd_m: metres per pixel at which the weights look at the scene; 0 for what they were trained with.
        grid: of the map: `scene`, or `training` for that resolution.
        window_px: side of a window, at that resolution.
        overlap_px: what neighbouring windows share.
        format: of the polygons, a key of `FORMATS`.
        square: right angles.
        simplify_m: how far an outline may move, metres; 0 for two pixels.
        min_area_m2: smaller objects are no polygons.
        min_hole_m2: smaller holes are filled.
    """

    threshold: float = 0.5
    gsd_m: float = 0.0
    grid: str = "scene"
    window_px: int = 1024
    overlap_px: int = 128
    format: str = "gpkg"
    square: bool = False
    simplify_m: float = 0.0
    min_area_m2: float = 2.0
    min_hole_m2: float = 2.0

    def check(self) -> None:
        """Checks what was asked for, before anything is read.

        Raises:
            KitError: something is unknown or impossible.
        """
        check_window(self.window_px, self.overlap_px)
        check_format(self.format)
        if self.grid not in GRIDS:
            raise KitError(f"no grid {self.grid!r}", f"expected {' or '.join(GRIDS)}")
        if not 0 <= self.threshold < 1:
            raise KitError(f"a threshold of {self.threshold:g}", "expected 0 to below 1")
        for name in ("gsd_m", "simplify_m", "min_area_m2", "min_hole_m2"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise KitError(f"{name} is {getattr(self, name):g}", "expected 0 or more")


@dataclass(frozen=True)
class Mapped:
    """A finished map.

    Args:
        probability: the raster, 0 to 255.
        mask: the raster, 0 and 1, 255 without imagery.
        polygons: the buildings.
        overlay: a small picture.
        buildings: how many.
        area_m2: of all of them.
        gsd_m: metres per pixel at which the weights have seen the scene.
        windows: how many were predicted now.
    """

    probability: Path
    mask: Path
    polygons: Path
    overlay: Path
    buildings: int
    area_m2: float
    gsd_m: float
    windows: int


def name_of(href: str) -> str:
    """Returns what a scene is called: its file's name without suffix, as a name for files."""
    path = PurePosixPath(unquote(urlsplit(href).path)) if is_remote(href) else local_path(href)
    return as_name(path.stem, "scene")


def files_of(stem: Path) -> dict[str, Path]:
    """Returns the files that a map may have: `probability`, `mask`, `overlay`, and one a format of `FORMATS`."""
    suffixes = RASTERS | {name: format_.suffix for name, format_ in FORMATS.items()}
    return {kind: stem.with_name(stem.name + suffix) for kind, suffix in suffixes.items()}


def check_files(stem: Path, href: str) -> None:
    """Checks that a map replaces no file but those that its record says kit wrote.

    Args:
        stem: of the files: folder and name.
        href: of the scene.

    Raises:
        OutputError: a file is there already, or is the scene itself.
    """
    record = record_of(stem)
    targets = [record, *files_of(stem).values()]
    if not is_remote(href):
        for target in targets:
            check_apart(target, [local_path(href)], "--name or --out")
    written = _written(record)
    for target in targets:
        if (target.exists() or target.is_symlink()) and target.name not in written:
            raise OutputError(
                f"{target} exists, and kit map did not write it", "choose another --name or --out, or move it away"
            )


def record_of(stem: Path) -> Path:
    """Returns the file that tells what a map was made of, and which files kit wrote."""
    return stem.with_name(f"{stem.name}.json")


def _written(record: Path) -> set[str]:
    """Returns the names of the files that a map's record says kit wrote, itself among them; none without a record."""
    told = _read(record)
    if isinstance(names := told.get("files"), list):
        return {record.name, *map(str, names)}
    if "prediction" not in told:
        return set()
    return {record.name, *(file.name for file in files_of(record.with_suffix("")).values())}  # of kit 0.1.0


def map_scene(
    href: str, weights_path: Path, out_dir: Path, name: str, wanted: Wanted = Wanted(), device: str = "cpu",
    tuning: bool = True, engine: str = "torch", adaptive: bool = False,
) -> Mapped:  # fmt: skip
    """Maps the buildings of a scene, and returns what was written: `NAME_probability.tif` and so on.

    A second call predicts only the strips that are missing, and none where a finished map has all that it needs; the
    files come out byte for byte as from one call.

    Args:
        href: path or address of a GeoTIFF, uint8 RGB or RGBA.
        weights_path: as `kit export` wrote it.
        out_dir: where to.
        name: that the files begin with.
        wanted: what the map shall be.
        device: as torch names it.
        tuning: measures how this machine predicts fastest, see `kit.deploy.engine.tuning`.
        engine: see `kit.deploy.engine.backends`.
        adaptive: ends the vote where it is clear, as far as a few pieces bear it, see `kit.deploy.adaptive`.

    Raises:
        RasterError: the scene cannot be read, or lies nowhere; finished strips are kept.
        WeightsError: the weights are missing or not kit's.
        KitError: something else was impossible to do, or the disk is full.
    """
    wanted.check()
    options = EngineOptions(device, check_engine(engine), tuning, adaptive)
    check_name(name)
    check_files(out_dir / name, href)
    shipped = load_weights(weights_path, device)
    if adaptive:
        learnt_bounds(shipped)  # before anything is measured
    with rasterio.Env(**gdal_options(CACHE_BYTES, is_remote(href))), Reader(href) as reader:
        reader.look_at(wanted.gsd_m or shipped.card.gsd_m)
        rows, columns = windows_of(reader.work, wanted, shipped.card.pad_multiple)
        ready = set_up(shipped, partial(_some, reader, TILES, SAMPLE_PX), options)
        if adaptive:
            identity = f"{href} {fingerprint(href)} {reader.work}"
            ready = end_early(ready, partial(_some, reader, LOOKS, LOOK_PX), identity)
        key = {"scene": href, "version": fingerprint(href), "weights": ready.sha256, "plan": ready.plan}
        with locked(out_dir / name):
            return draw_map(reader, rows, columns, lambda rgba: _predicted(ready, rgba), key, out_dir / name, wanted)


def windows_of(work: Frame, wanted: Wanted, stride_px: int = 1) -> tuple[Axis, Axis]:
    """Returns the windows along the columns and along the rows of a frame; see `along`."""
    down, across = (along(size, wanted.window_px, wanted.overlap_px, stride_px) for size in (work.height, work.width))
    return down, across


def draw_map(
    reader: Reader, rows: Axis, columns: Axis, predict: Predictor, key: dict[str, Any], stem: Path, wanted: Wanted
) -> Mapped:
    """Maps a scene with any predictor; see `map_scene`.

    Args:
        reader: of the scene, looking at it as the predictor wants to.
        rows: of windows, along the columns of the frame that is looked at.
        columns: likewise along its rows.
        predict: a window's probability.
        key: what the predictor and the scene are, for JSON: of another map nothing is kept.
        stem: of the files: folder and name.
        wanted: what the map shall be.
    """
    frame = reader.scene if wanted.grid == "scene" else reader.work
    key = {"kit": VERSION, **key, "windows": [asdict(rows), asdict(columns)], "size": [frame.width, frame.height]}
    key = json.loads(json.dumps(key))
    files, record = files_of(stem), record_of(stem)
    probability, predicted = files["probability"], 0
    written = _written(record) - {record.name}
    ours = {"files": sorted({*written, *(files[kind].name for kind in (*RASTERS, wanted.format))})}
    if not (_read(record).get("prediction") == key and probability.is_file()):
        _write(record, ours)
        edges = edges_on(rows, reader.work.height, frame.height)
        strips = Strips(stem.with_name(f".{stem.name}.strips"), key, rows.edges, edges)
        predicted = predict_strips(reader, rows, columns, frame, predict, strips)
        write_probability(probability, frame, reader.work, strips)
        _write(record, {**ours, "prediction": key})
        shutil.rmtree(strips.folder)
    _write(record, {**ours, "prediction": key})  # the counts of another mask no longer hold
    for kind in FORMATS:
        if kind != wanted.format and files[kind].name in written:
            files[kind].unlink(missing_ok=True)  # of another mask, perhaps
    made = _vectorise(reader, frame, stem, wanted, predicted)
    told = {"buildings": made.buildings, "area_m2": round(made.area_m2, 2), "gsd_m": round(made.gsd_m, 6)}
    ours["files"] = sorted(files[kind].name for kind in (*RASTERS, wanted.format))
    _write(record, {**told, **ours, "wanted": asdict(wanted), "prediction": key})
    return made


def _vectorise(reader: Reader, frame: Frame, stem: Path, wanted: Wanted, predicted: int) -> Mapped:
    """Writes mask, polygons and picture of a probability that is written."""
    simplify_m = wanted.simplify_m or SIMPLIFIED_PX * max(frame.gsd_m, reader.work.gsd_m)
    rules = Rules(simplify_m, wanted.square, wanted.min_area_m2, wanted.min_hole_m2)
    tracer = Tracer(wanted.min_area_m2 / (frame.x_m * frame.y_m) / 2)  # half: holes may be filled
    probability, mask_path, picture = (files_of(stem)[kind] for kind in RASTERS)
    overlay = Overlay(reader.source, frame)
    layer = Layer(stem, FORMATS[wanted.format], frame)
    with layer, writing(mask_path, frame, "mode", NO_DATA) as target, meter("trace rows", frame.height) as running:
        for top, level, valid in read_bands(probability):
            mask = is_building(level, valid, wanted.threshold)
            write_mask_band(target, top, mask, valid)
            pieces = tracer.add(level, mask, top)
            if top + len(mask) == frame.height:
                pieces += tracer.close()
            found = clean(pieces, frame, rules)
            layer.add(found)
            overlay.draw(found.polygons)
            running.advance(len(mask))
    overlay.write(picture)
    return Mapped(probability, mask_path, layer.path, picture, layer.count, layer.area_m2, reader.work.gsd_m, predicted)


def _predicted(weights: Weights, rgba: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns a window's probability.

    Raises:
        KitError: the device has too little memory.
    """
    try:
        return predict_image(weights, rgba)
    except torch.OutOfMemoryError as cause:
        raise KitError(
            f"{weights.device} has too little memory for windows of {rgba.shape[1]} x {rgba.shape[0]} px",
            "take smaller ones: --window 512",
        ) from cause


def _some(reader: Reader, count: int, side_px: int) -> list[NDArray[np.uint8]]:
    """Returns up to `count` pieces of a scene, (h, w, 4) uint8, that are at least half imagery; none where none is."""
    found: list[NDArray[np.uint8]] = []
    height, width = reader.work.height, reader.work.width
    side_y, side_x = min(side_px, height), min(side_px, width)
    for down, across in product((1, 2, 0, 3), (2, 1, 3, 0)):  # the middle first
        top = (height - side_y) * down // (SAMPLES - 1)
        left = (width - side_x) * across // (SAMPLES - 1)
        rgba = reader.read((top, top + side_y), (left, left + side_x)).rgba
        if has_ground(rgba) and (rgba[..., 3] > 0).mean() >= 0.5:
            found.append(rgba)
        if len(found) == count:
            break
    return found


def _read(record: Path) -> dict[str, Any]:
    """Returns a map's record; an empty one where there is none."""
    try:
        found = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(record: Path, content: dict[str, Any]) -> None:
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
