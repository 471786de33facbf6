"""Images in, masks out: the TIFFs of this room."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from kit.errors import RasterError


class _Unplaced:
    """Hides the notice that a chip carries no georeference: chips and their masks have none.

    Filters of warnings are the process's: of threads that are in here at once, the first sets them and the last one
    puts them back.
    """

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.simplefilter("ignore", NotGeoreferencedWarning)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.filters.__exit__(None, None, None)


_unplaced = _Unplaced()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Yields an open dataset; what GDAL cannot read becomes a RasterError that names the file."""
    if not path.is_file():
        raise RasterError(f"no image {path}", "is the test set complete?")
    try:
        with _unplaced, rasterio.open(path) as dataset:
            yield dataset
    except RasterioError as cause:
        reason = cause.__cause__ or cause  # rasterio's own text of a failed read says "see previous exception"
        raise RasterError(f"cannot read {path}: {reason}", "is it whole? fetch or copy it again") from cause


def read_image(path: Path) -> NDArray[np.uint8]:
    """Returns an image, uint8 (H, W, 3 or 4), RGB or RGBA.

    Raises:
        RasterError: it is missing, broken, or does not have 3 or 4 bands of uint8.
    """
    with _opened(path) as dataset:
        dtypes = sorted(set(dataset.dtypes))
        if dataset.count not in (3, 4) or dtypes != ["uint8"]:
            bands = f"{dataset.count} band{'s' * (dataset.count != 1)} of {', '.join(dtypes)}"
            raise RasterError(f"{path} has {bands}, expected 3 (RGB) or 4 (RGBA) of uint8", "convert it")
        bands_first: NDArray[np.uint8] = dataset.read()
    return np.ascontiguousarray(bands_first.transpose(1, 2, 0))


def image_size(path: Path) -> tuple[int, int]:
    """Returns height and width of an image in px, from its header.

    Raises:
        RasterError: it is missing or broken.
    """
    with _opened(path) as dataset:
        return dataset.height, dataset.width


def encode_mask(mask: NDArray[np.uint8]) -> bytes:
    """Returns a mask, uint8 (H, W), as the bytes of a one-band deflate TIFF; equal masks give equal bytes."""
    height, width = mask.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": 1, "dtype": "uint8"}
    with _unplaced, MemoryFile() as memory:
        with memory.open(**profile, compress="deflate") as dataset:
            dataset.write(mask, 1)
        return bytes(memory.getbuffer())


@contextmanager
def opened_mask(data: bytes, name: str) -> Iterator[Any]:
    """Yields a mask's TIFF as an open dataset; other formats that GDAL knows are refused: some name files to read.

    Args:
        data: the file's bytes.
        name: for the error.

    Raises:
        RasterError: it is broken; also for what fails while it is read within the block.
    """
    if not data:  # rasterio takes it for a file to be written
        raise RasterError(f"{name} is empty, expected a TIFF", "write it again")
    try:
        with _unplaced, MemoryFile(data) as memory, memory.open(driver="GTiff") as dataset:
            yield dataset
    except RasterioError as cause:
        raise RasterError(f"{name} is not a readable TIFF", "write it again") from cause


def decode_mask(data: bytes, name: str) -> NDArray[Any]:
    """Returns the one band of a TIFF, (H, W), in the file's own dtype.

    Args:
        data: the file's bytes.
        name: for the error.

    Raises:
        RasterError: it is broken or has more bands.
    """
    with opened_mask(data, name) as dataset:
        if dataset.count != 1:
            raise RasterError(f"{name} has {dataset.count} bands, expected 1", "write masks of one band")
        band: NDArray[Any] = dataset.read(1)
    return band
