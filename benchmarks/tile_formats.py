"""What a tile costs in each file format: to write, to keep, to read, and what it loses.

    python benchmarks/tile_formats.py [--scene SCENE.tif] [--labels SCENE.geojson]    prints tables; some minutes

Tiles of 1024 x 1024 px are cut from a scene warped to the XYZ grid of zoom 19, as `kit prepare` cuts them; without a
scene, from one of the sample city. Each format writes them to files, which are read back whole and as a random window
of 512 px, the way the training loader reads: open, read, (H, W, 3), contiguous. OpenCV cannot read a part of a file:
its windows are cut from the whole tile.

One thread, files in the page cache; milliseconds and kB are medians over all tiles and rounds, in each of which the
formats come in another order. PSNR is that of all tiles together; `exact` is lossless. The last rows of images read
the scene itself, where there is nothing to write: their kB are the scene's file, overviews included, per tile of its
ground.
"""

import argparse
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import rasterio
from formats import SIDE_PX, Format, Tile, bands_last, image_formats, mask_formats, warp
from rasterio.transform import Affine, array_bounds
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from kit.data.burning import draw_layers, draw_mask, margin_px
from kit.data.footprints import read_footprints
from kit.sample.sample import draw_sample

WINDOW_PX = 512
EARTH_M = 6378137.0  # radius of EPSG:3857's sphere
PIXEL_M = math.tau * EARTH_M / 2**19 / SIDE_PX  # zoom 19; at the equator
MIN_VALID = 0.9  # of a tile to measure on: empty ground is cheap in every format
SAMPLE_SCENE = "nbo/nbo_b"


def cut(scene: Path, limit: int) -> list[tuple[Tile, np.ndarray]]:
    """Returns tiles spread over the scene's ground, with the pixels that hold imagery, (H, W) bool."""
    with rasterio.open(scene) as source:
        left, bottom, right, top = transform_bounds(source.crs, "EPSG:3857", *source.bounds)
        origin = Affine(PIXEL_M, 0, left, 0, -PIXEL_M, top)
        columns, rows = (_starts(round(length / PIXEL_M)) for length in (right - left, top - bottom))
        results = []
        for row, column in product(rows, columns):
            place = origin @ Affine.translation(column, row)
            with warp(source, place, SIDE_PX, SIDE_PX) as warped:
                pixels = warped.read()  # (4, side, side)
            valid = pixels[3] > 0
            if valid.mean() >= MIN_VALID:
                results.append((Tile(bands_last(pixels[:3] * valid), place, scene), valid))
    return (
        [results[at] for at in np.unique(np.linspace(0, len(results) - 1, limit).round().astype(int))]
        if results
        else []
    )


def _starts(length: int) -> list[int]:
    """Returns where tiles begin that cover so many px, the last moved back inside."""
    count = math.ceil(length / SIDE_PX)
    return [round(at) for at in np.linspace(0, max(0, length - SIDE_PX), count)]


def masks_of(labels: Path, cuts: list[tuple[Tile, np.ndarray]]) -> Iterator[tuple[Tile, Tile]]:
    """Yields each tile's footprint mask (H, W) and its three layers (H, W, 3): 0 no, 1 yes, 255 no data."""
    footprints = read_footprints((str(labels),), "EPSG:3857")
    shape = (SIDE_PX, SIDE_PX)
    for tile, valid in cuts:
        at = tile.transform
        gsd_m = PIXEL_M / math.cosh(at.f / EARTH_M)
        reach = margin_px(gsd_m) * PIXEL_M
        left, bottom, right, top = array_bounds(*shape, at)
        near = footprints.touching((left - reach, bottom - reach, right + reach, top + reach))
        mask, layers = draw_mask(near, at, shape, valid), draw_layers(near, at, shape, valid, gsd_m)
        yield Tile(mask, at, tile.scene), Tile(bands_last(layers), at, tile.scene)


def timed_ms(measured: list[float], call: Callable[..., Any], *args: Any) -> Any:
    start = time.perf_counter()
    outcome = call(*args)
    measured.append((time.perf_counter() - start) * 1e3)
    return outcome


def size_of(path: Path, scene: Path) -> float:
    """Returns kB; of a tile that is read from the scene, its share of that."""
    if path.exists():
        return path.stat().st_size / 1e3
    with rasterio.open(scene) as source:
        return scene.stat().st_size / 1e3 * SIDE_PX**2 / (source.width * source.height)


def measure(formats: dict[str, Format], tiles: list[Tile], rounds: int, folder: Path) -> list[list[str]]:
    """Returns a row a format: its name, ms to encode, kB, ms to decode, ms for a window, PSNR."""
    ms = defaultdict(list)
    sizes, errors = defaultdict(list), defaultdict(float)
    for number in range(rounds):
        order = list(formats)
        random.Random(number).shuffle(order)
        for place, tile in enumerate(tiles):
            dice = random.Random(number * len(tiles) + place)
            column, row = (dice.randrange(SIDE_PX - WINDOW_PX + 1) for _ in range(2))
            window = Window(column, row, WINDOW_PX, WINDOW_PX)
            for name in order:
                path = folder / "tile"
                if "OpenCV" in name:
                    path = path.with_suffix("." + name.split()[0].lower())
                timed_ms(ms["encode", name], formats[name].write, path, tile)
                whole = timed_ms(ms["decode", name], formats[name].read, path, tile, None)
                timed_ms(ms["window", name], formats[name].read, path, tile, window)
                if number == 0:
                    sizes[name].append(size_of(path, tile.scene))
                    errors[name] += float(np.square(whole.astype(float) - tile.pixels).mean()) / len(tiles)
                path.unlink(missing_ok=True)
                path.with_name("tile.aux.xml").unlink(missing_ok=True)
    return [
        [
            name,
            *(f"{statistics.median(ms['encode', name]):.1f}", f"{statistics.median(sizes[name]):.0f}"),
            *(f"{statistics.median(ms[what, name]):.1f}" for what in ("decode", "window")),
            "other pixels" if "own" in name else psnr(errors[name]),
        ]
        for name in formats
    ]


def psnr(mean_square: float) -> str:
    return f"{10 * math.log10(255**2 / mean_square):.1f}" if mean_square else "exact"


def as_text(kind: str, rows: list[list[str]]) -> str:
    """Returns an aligned table."""
    heads = [kind, "encode, ms", "kB", "decode, ms", f"{WINDOW_PX} px window, ms", "PSNR, dB"]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


@contextmanager
def scene_of(scene: Path | None, labels: Path | None) -> Iterator[tuple[Path, Path | None]]:
    """Yields a scene and its labels: the given ones, or the sample city's, drawn for the while."""
    if scene is not None:
        yield scene, labels
        return
    with TemporaryDirectory() as folder:
        home = draw_sample(Path(folder) / "sample") / "train_tier_1"
        name = Path(SAMPLE_SCENE).name
        yield home / SAMPLE_SCENE / f"{name}.tif", home / f"{SAMPLE_SCENE}-labels" / f"{name}.geojson"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scene", type=Path, help="a GeoTIFF of drone imagery; one of the sample city by default")
    parser.add_argument("--labels", type=Path, help="its footprints: masks are measured too")
    parser.add_argument("--tiles", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    print(f"GDAL {rasterio.__gdal_version__}, OpenCV {cv2.__version__}, one thread")
    with (
        rasterio.Env(GDAL_NUM_THREADS="1"),
        scene_of(options.scene, options.labels) as (scene, labels),
        TemporaryDirectory() as folder,
    ):
        cuts = cut(scene, options.tiles)
        if not cuts:
            parser.error(f"{scene} has no ground of {SIDE_PX} x {SIDE_PX} px at z19 that is covered by imagery")
        jobs = {"image": (image_formats(), [tile for tile, _ in cuts])}
        if labels is not None:
            masks, layers = zip(*masks_of(labels, cuts), strict=True)
            jobs |= {
                "mask": (mask_formats(), masks),
                "three layers": (mask_formats(interleave="band", photometric="minisblack"), layers),
            }
        for kind, (formats, tiles) in jobs.items():
            rows = measure(formats, list(tiles), options.rounds, Path(folder))
            print(f"\n{len(tiles)} tiles, {options.rounds} rounds\n\n{as_text(kind, rows)}", flush=True)


if __name__ == "__main__":
    main()
