"""The file formats that tile_formats.py measures: how each writes a tile, and reads it again."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import Affine, array_bounds
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window, from_bounds

from kit.data.tiles.tile import IMAGE_FORMATS, MASK_FORMAT

SIDE_PX = 1024

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
    formats = {f"kit's {name}": raster(**profile) for name, profile in IMAGE_FORMATS.items()}
    formats["kit's lossless, NumPy transposes"] = Format(formats["kit's lossless"].write, read_transposed)
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


def mask_formats(**colours: str) -> dict[str, Format]:
    packed = {
        "GTiff packbits": tiff("packbits", **colours),
        "GTiff lerc_zstd": tiff("lerc_zstd", max_z_error=0, zstd_level=1, **colours),
    }
    return {"kit's": raster(**MASK_FORMAT), **lossless(**colours), **packed}
