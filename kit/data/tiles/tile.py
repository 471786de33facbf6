"""A tile: its names, its image and mask as GeoTIFFs, its row of the index."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from kit.data.grids import Grid, ground_m
from kit.data.masks import BUILDING, IGNORE, LAYERS
from kit.data.rasters import without_notice

# a quarter of deflate's time to write, the same to read: see benchmarks/tile_formats.py
ZSTD = {"compress": "zstd", "zstd_level": 1, "tiled": True, "blockxsize": 256, "blockysize": 256}
IMAGE_FORMATS: dict[str, dict[str, Any]] = {
    "lossless": {**ZSTD, "predictor": 2, "photometric": "rgb"},  # predictor 2 halves the size of photographs
    # a sixth of the size, and twice the time to read
    "jpeg": {
        "compress": "jpeg", "jpeg_quality": 95, "photometric": "ycbcr", "interleave": "pixel",
        "tiled": True, "blockxsize": 512, "blockysize": 512,
    },
}  # fmt: skip
SCENE = "scene"  # no pixels are copied: each image is a VRT that reads a window of the scene
MASK_FORMAT: dict[str, Any] = {**ZSTD, "interleave": "band", "photometric": "minisblack"}  # a layer can be read alone


@dataclass(frozen=True)
class Tile:
    """One row of the index; the column `fold` is added later."""

    tile: str  # id, unique in the data set: area, scene, row and column on the grid
    area: str  # of the scene
    scene: str  # what it was cut from
    tier: int  # 1 for careful labels, 2 for dirty ones
    image: str  # path of the RGB raster, relative to the data set
    mask: str  # path of the mask (0 background, 1 building, 255 no data), likewise; with layers, its band 1
    width_px: int  # of the tile
    height_px: int  # of the tile
    gsd_m: float  # metres on the ground per pixel
    valid_fraction: float  # share of pixels with imagery
    building_fraction: float  # share of buildings among those
    n_footprints: int  # polygons that touch the tile; 0 of a ready-made mask
    crs: str  # of the grid; empty for an image without a georeference
    left: float | None  # of the tile's square, in units of the CRS
    bottom: float | None
    right: float | None
    top: float | None


@dataclass(frozen=True)
class Skipped:
    """A tile that was not kept because it holds too little imagery."""

    tile: str  # id, as of `Tile`
    area: str  # of the scene
    scene: str  # of the tile
    reason: str  # why
    valid_fraction: float  # share of pixels with imagery


@dataclass(frozen=True)
class Spot:
    """A tile's place on a grid, and the names of its files."""

    area: str  # of the scene
    scene: str  # what it is cut from
    tier: int  # of the scene
    place: str  # its name within the scene, for example `r3_c14`
    grid: Grid  # it lies on
    row: int  # there
    column: int  # there
    suffix: str = ".tif"  # of the image file

    @property
    def tile(self) -> str:
        """The id."""
        return f"{self.area}_{self.scene}_{self.place}"

    @property
    def image(self) -> str:
        """Path of the image, relative to the data set."""
        return f"images/{self.area}/{self.scene}/{self.place}{self.suffix}"

    @property
    def mask(self) -> str:
        """Path of the mask, likewise."""
        return f"masks/{self.area}/{self.scene}/{self.place}.tif"

    @property
    def transform(self) -> Affine:
        """Pixel to CRS."""
        return self.grid.transform(self.row, self.column)

    @property
    def gsd_m(self) -> float:
        """Metres on the ground per pixel."""
        return ground_m(self.grid, self.row, self.column)


def row_of(spot: Spot, mask: NDArray[np.uint8], n_footprints: int, gsd_m: float) -> Tile:
    """Returns a tile's row of the index.

    Args:
        spot: where it lies.
        mask: (H, W) uint8, as written.
        n_footprints: polygons that touch it.
        gsd_m: metres on the ground per pixel.
    """
    valid = int(np.count_nonzero(mask != IGNORE))
    buildings = int(np.count_nonzero(mask == BUILDING))
    height, width = mask.shape
    placed = spot.grid.bounds(spot.row, spot.column) if spot.grid.crs else (None, None, None, None)
    return Tile(
        spot.tile, spot.area, spot.scene, spot.tier, spot.image, spot.mask, width, height, round(gsd_m, 6),
        round(valid / mask.size, 6), round(buildings / max(valid, 1), 6), n_footprints, spot.grid.crs, *placed,
    )  # fmt: skip


def encode(
    bands: NDArray[np.uint8] | NDArray[np.uint16], spot: Spot, nodata: int | None = None, **profile: Any
) -> bytes:
    """Returns the bytes of a GeoTIFF of (C, H, W); equal tiles give equal bytes."""
    count, height, width = bands.shape
    placed = {"crs": spot.grid.crs, "transform": spot.transform} if spot.grid.crs else {}
    shared = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype.name}
    with without_notice, MemoryFile() as memory:
        with memory.open(**shared, **placed, nodata=nodata, **profile) as target:
            target.write(bands)
            if count == len(LAYERS) and nodata is not None:
                target.descriptions = LAYERS
        return bytes(memory.getbuffer())


def encode_image(rgb: NDArray[np.uint8], spot: Spot, style: str) -> bytes:
    """Returns the bytes of an image, (3, H, W) uint8, in one of `IMAGE_FORMATS`."""
    return encode(rgb, spot, **IMAGE_FORMATS[style])


def encode_mask(layers: NDArray[np.uint8], spot: Spot) -> bytes:
    """Returns the bytes of a mask, (1 or 3, H, W) uint8."""
    return encode(layers, spot, IGNORE, **MASK_FORMAT)


def encode_ids(ids: NDArray[np.uint16], spot: Spot) -> bytes:
    """Returns the bytes of a raster of ids, (H, W) uint16."""
    return encode(ids[None], spot, **MASK_FORMAT)


def read_mask(file: Path) -> NDArray[np.uint8]:
    """Returns the first band of a mask, (H, W) uint8."""
    with without_notice, rasterio.open(file) as source:
        band: NDArray[np.uint8] = source.read(1)
    return band
