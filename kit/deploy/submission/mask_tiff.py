"""Masks as TIFF files in memory: encoded and decoded."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from kit.data.masks import white_on_black
from kit.data.orientation import orientation_of, upright
from kit.data.rasters import MOST_PIXELS, without_notice
from kit.errors import RasterError


def encode_mask(mask: NDArray[np.uint8]) -> bytes:
    """Returns a mask, uint8 (H, W), as the bytes of a one-band deflate TIFF; equal masks give equal bytes."""
    height, width = mask.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": 1, "dtype": "uint8"}
    with without_notice, MemoryFile() as memory:
        with memory.open(**profile, compress="deflate") as dataset:
            dataset.write(mask, 1)
        return bytes(memory.getbuffer())


@contextmanager
def opened_mask(data: bytes, name: str, png: bool = False) -> Iterator[Any]:
    """Yields a mask's TIFF as an open dataset; other formats of GDAL are refused: some make it read further files.

    Args:
        data: the file's bytes.
        name: of the file, for the error.
        png: whether it may be a PNG.

    Raises:
        RasterError: it is broken, also where that shows only when it is read within the block.
    """
    if not data:  # rasterio would take it for a file to be written
        raise RasterError(f"{name} is empty, expected a TIFF", "write it again")
    try:
        driver = "PNG" if png and data.startswith(b"\x89PNG") else "GTiff"
        with without_notice, MemoryFile(data) as memory, memory.open(driver=driver) as dataset:
            yield dataset
    except RasterioError as cause:
        raise RasterError(f"{name} is not a readable TIFF{' or PNG' * png}", "write it again") from cause


def decode_mask(data: bytes, name: str) -> NDArray[Any]:
    """Returns the one band of a TIFF or PNG, (H, W), in the file's own dtype.

    Args:
        data: the file's bytes.
        name: of the file, for the error.

    Raises:
        RasterError: it is broken, too large, or has more bands.
    """
    with opened_mask(data, name, png=True) as dataset:
        if dataset.count != 1:
            raise RasterError(f"{name} has {dataset.count} bands, expected 1", "write masks of one band")
        if dataset.width * dataset.height > MOST_PIXELS:
            size = f"{dataset.width:,} x {dataset.height:,} px"
            raise RasterError(f"{name} has {size}, expected at most {MOST_PIXELS:,} px", "write it again")
        return upright(white_on_black(dataset.read(1), dataset), orientation_of(dataset, data))
