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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import Affine, array_bounds
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window, from_bounds

from kit.data.footprints import draw_layers, draw_mask, margin_px, read_footprints
from kit.data.sample import draw_sample
from kit.data.tiles import IMAGE_FORMAT, MASK_FORMAT, Grid, grid_of, ground_m

SIDE_PX, WINDOW_PX = 1024, 512
MIN_VALID = 0.9  # of a tile to measure on: empty ground is cheap in every format
SAMPLE_SCENE = "nbo/nbo_b"

Pixels = np.ndarray  # (H, W) or (H, W, 3), uint8


@dataclass(frozen=True)
class Tile:
    """Pixels to write, the transform they have on the grid, and the scene they come from."""

    pixels: Pixels
    transform: Affine
    scene: Path


@dataclass(frozen=True)
class Format:
    """How a tile is written to a path, and how a window of it, or with None all of it, is read again."""

    write: Callable[[Path, Tile], None]
    read: Callable[[Path, Tile, Window | None], Pixels]


def bands_last(bands: np.ndarray) -> Pixels:
    """Returns (H, W) of one band, (H, W, 3) of three; `cv2.merge` is far quicker than NumPy's contiguous transpose."""
    return bands[0] if len(bands) == 1 else cv2.merge(list(bands))


def write_raster(path: Path, tile: Tile, **profile: Any) -> None:
    bands = tile.pixels[None] if tile.pixels.ndim == 2 else tile.pixels.transpose(2, 0, 1)
    count, height, width = bands.shape
    shape = {"width": width, "height": height, "count": count, "dtype": "uint8"}
    with rasterio.open(path, "w", crs="EPSG:3857", transform=tile.transform, **shape, **profile) as raster:
        raster.write(bands)


def read_raster(path: Path, tile: Tile, window: Window | None) -> Pixels:
    with rasterio.open(path) as raster:
        return bands_last(raster.read(window=window))


def read_transposed(path: Path, tile: Tile, window: Window | None) -> Pixels:
    with rasterio.open(path) as raster:
        return np.ascontiguousarray(raster.read(window=window).transpose(1, 2, 0))


def write_cv2(path: Path, tile: Tile, *flags: int) -> None:
    if not cv2.imwrite(str(path), tile.pixels[..., ::-1] if tile.pixels.ndim == 3 else tile.pixels, flags):
        raise OSError(f"{path} was not written")


def read_cv2(path: Path, tile: Tile, window: Window | None) -> Pixels:
    coded = np.frombuffer(path.read_bytes(), np.uint8)
    pixels = cv2.imdecode(coded, cv2.IMREAD_COLOR_RGB if tile.pixels.ndim == 3 else cv2.IMREAD_GRAYSCALE)
    return pixels if window is None else np.ascontiguousarray(pixels[window.toslices()])


def write_nothing(path: Path, tile: Tile) -> None:
    """The scene is there already."""


def read_native(path: Path, tile: Tile, window: Window | None) -> Pixels:
    """Reads as many of the scene's own pixels at the tile's place: other ground where the resolution differs."""
    with rasterio.open(tile.scene) as scene:
        bounds = transform_bounds("EPSG:3857", scene.crs, *array_bounds(SIDE_PX, SIDE_PX, tile.transform))
        corner = from_bounds(*bounds, scene.transform)
        column, row = (max(0, min(round(at), end - SIDE_PX)) for at, end in (
            (corner.col_off, scene.width), (corner.row_off, scene.height)
        ))  # fmt: skip
        part = window or Window(0, 0, SIDE_PX, SIDE_PX)
        moved = Window(column + part.col_off, row + part.row_off, part.width, part.height)
        return bands_last(scene.read((1, 2, 3), window=moved))


def read_warped(path: Path, tile: Tile, window: Window | None) -> Pixels:
    with rasterio.open(tile.scene) as scene, warp(scene, tile.transform, SIDE_PX, SIDE_PX) as warped:
        return bands_last(warped.read((1, 2, 3), window=window))


def warp(scene: rasterio.DatasetReader, transform: Affine, width: int, height: int) -> WarpedVRT:
    shape = {"transform": transform, "width": width, "height": height}
    alpha = ColorInterp.alpha in scene.colorinterp
    return WarpedVRT(scene, crs="EPSG:3857", **shape, resampling=Resampling.bilinear, add_alpha=not alpha)


def raster(driver: str = "GTiff", **profile: Any) -> Format:
    return Format(partial(write_raster, driver=driver, **profile), read_raster)


def tiff(compress: str, block_px: int = 256, **profile: Any) -> Format:
    blocks = {"tiled": True, "blockxsize": block_px, "blockysize": block_px}
    return raster(compress=compress, **blocks, **profile)


def coded(*flags: int) -> Format:
    return Format(lambda path, tile: write_cv2(path, tile, *flags), read_cv2)


def drawn(read: Callable[[Path, Tile, Window | None], Pixels]) -> Format:
    return Format(write_nothing, read)


def lossless(**colours: str) -> dict[str, Format]:
    """Returns the GeoTIFFs and PNGs that hold every pixel as it is."""
    formats = {"GTiff, not compressed": tiff("none", **colours)}
    for predictor in (1, 2):
        for compress, level, levels in (("deflate", "zlevel", (1, 6)), ("zstd", "zstd_level", (1, 9))):
            for number in levels:
                name = f"GTiff {compress} {number}, predictor {predictor}"
                formats[name] = tiff(compress, predictor=predictor, **{level: number}, **colours)
        formats[f"GTiff lzw, predictor {predictor}"] = tiff("lzw", predictor=predictor, **colours)
    for level in (1, 6):
        formats[f"PNG {level}, rasterio"] = raster("PNG", zlevel=level)
        formats[f"PNG {level}, OpenCV"] = coded(cv2.IMWRITE_PNG_COMPRESSION, level)
    return formats


def image_formats() -> dict[str, Format]:
    rgb = {"photometric": "rgb"}
    today = raster(**rgb, **IMAGE_FORMAT)
    formats = {"kit's today": today, "kit's today, NumPy transposes": Format(today.write, read_transposed)}
    formats |= lossless(**rgb)
    for block_px in (512, 1024):
        formats[f"GTiff zstd 1, predictor 2, {block_px} px blocks"] = tiff(
            "zstd", block_px, zstd_level=1, predictor=2, **rgb
        )
    formats["GTiff zstd 1, predictor 2, bands apart"] = tiff(
        "zstd", zstd_level=1, predictor=2, interleave="band", **rgb
    )
    formats["GTiff lerc_zstd"] = tiff("lerc_zstd", max_z_error=0, zstd_level=1, **rgb)
    formats["GTiff webp lossless"] = tiff("webp", webp_lossless=True, **rgb)
    for block_px in (256, 512):
        formats[f"GTiff webp 90, {block_px} px blocks"] = tiff("webp", block_px, webp_level=90, **rgb)
        for quality in (90, 95):
            formats[f"GTiff jpeg {quality}, {block_px} px blocks"] = tiff(
                "jpeg", block_px, jpeg_quality=quality, photometric="ycbcr"
            )
    for quality in (90, 95):
        formats[f"JPEG {quality}, rasterio"] = raster("JPEG", quality=quality)
        formats[f"JPEG {quality}, OpenCV"] = coded(cv2.IMWRITE_JPEG_QUALITY, quality)
    formats["WebP 90, OpenCV"] = coded(cv2.IMWRITE_WEBP_QUALITY, 90)
    formats["WebP lossless, OpenCV"] = coded(cv2.IMWRITE_WEBP_QUALITY, 101)
    return formats | {"the scene, its own pixels": drawn(read_native), "the scene, warped": drawn(read_warped)}


def mask_formats() -> dict[str, Format]:
    packed = {"GTiff packbits": tiff("packbits"), "GTiff lerc_zstd": tiff("lerc_zstd", max_z_error=0, zstd_level=1)}
    return {"kit's today": raster(**MASK_FORMAT), **lossless(), **packed}


def layer_formats() -> dict[str, Format]:
    grey = {"photometric": "minisblack"}
    apart = {**grey, "interleave": "band"}
    return {
        "kit's today": raster(**MASK_FORMAT, **apart),
        **lossless(**apart),
        "GTiff packbits": tiff("packbits", **apart),
    }


def cut(scene: Path, limit: int) -> tuple[Grid, list[tuple[Tile, np.ndarray]]]:
    """Returns the grid, and tiles spread over the scene's ground with their pixels that hold imagery, (H, W) bool."""
    with rasterio.open(scene) as source:
        grid = grid_of("z19", SIDE_PX, source)
        left, bottom, right, top = transform_bounds(source.crs, grid.crs, *source.bounds)
        width, height = round((right - left) / grid.pixel), round((top - bottom) / grid.pixel)
        origin = Affine(grid.pixel, 0, left, 0, -grid.pixel, top)
        columns, rows = (_starts(length) for length in (width, height))
        found = []
        for row in rows:
            for column in columns:
                place = origin @ Affine.translation(column, row)
                with warp(source, place, SIDE_PX, SIDE_PX) as warped:
                    pixels = warped.read()  # (4, side, side)
                valid = pixels[3] > 0
                if valid.mean() >= MIN_VALID:
                    found.append((Tile(bands_last(pixels[:3] * valid), place, scene), valid))
    return grid, [found[at] for at in np.unique(np.linspace(0, len(found) - 1, limit).round().astype(int))]


def _starts(length: int) -> list[int]:
    """Returns where tiles begin that cover so many px, the last moved back inside."""
    count = math.ceil(length / SIDE_PX)
    return [round(at) for at in np.linspace(0, max(0, length - SIDE_PX), count)]


def masks_of(labels: Path, grid: Grid, cuts: list[tuple[Tile, np.ndarray]]) -> Iterator[tuple[Tile, Tile]]:
    """Yields each tile's footprint mask (H, W) and its three layers (H, W, 3): 0 no, 1 yes, 255 no data."""
    footprints = read_footprints((str(labels),), grid.crs)
    shape = (SIDE_PX, SIDE_PX)
    for tile, valid in cuts:
        at, gsd_m = tile.transform, ground_m(grid, tile.transform)
        reach = margin_px(gsd_m) * grid.pixel
        left, bottom, right, top = array_bounds(*shape, at)
        near = footprints.touching((left - reach, bottom - reach, right + reach, top + reach))
        mask, layers = draw_mask(near, at, shape, valid), draw_layers(near, at, shape, valid, gsd_m)
        yield Tile(mask, at, tile.scene), Tile(bands_last(layers), at, tile.scene)


def timed_ms(measured: list[float], call: Callable[..., Any], *args: Any) -> Any:
    start = time.perf_counter()
    made = call(*args)
    measured.append((time.perf_counter() - start) * 1e3)
    return made


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


def told(kind: str, rows: list[list[str]]) -> str:
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
        grid, cuts = cut(scene, options.tiles)
        if not cuts:
            parser.error(f"{scene} has no ground of {SIDE_PX} x {SIDE_PX} px at z19 that is covered by imagery")
        jobs = {"image": (image_formats(), [tile for tile, _ in cuts])}
        if labels is not None:
            masks, layers = zip(*masks_of(labels, grid, cuts), strict=True)
            jobs |= {"mask": (mask_formats(), masks), "three layers": (layer_formats(), layers)}
        for kind, (formats, tiles) in jobs.items():
            rows = measure(formats, list(tiles), options.rounds, Path(folder))
            print(f"\n{len(tiles)} tiles, {options.rounds} rounds\n\n{told(kind, rows)}", flush=True)


if __name__ == "__main__":
    main()
