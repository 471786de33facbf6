"""Rasters of a map, written in bands and laid out for the web: cloud-optimised GeoTIFFs with overviews."""

from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what copy raises, in no public module
from rasterio.errors import RasterioError
from rasterio.windows import Window

from kit.deploy.mapping.blending import LEVELS
from kit.deploy.mapping.resampling import reach, resample
from kit.deploy.mapping.scene import Frame
from kit.deploy.mapping.strips import Strips
from kit.errors import KitError

BLOCK_PX = 512
NO_DATA = 255  # of the mask
TILED = {"driver": "GTiff", "tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "bigtiff": "if_safer"}
COG = {"driver": "COG", "blocksize": BLOCK_PX, "compress": "deflate", "predictor": "yes", "bigtiff": "if_safer"}


def bands(height: int) -> Iterator[tuple[int, int]]:
    """Yields the first row of each band of blocks, and the one behind its last."""
    for top in range(0, height, BLOCK_PX):
        yield top, min(top + BLOCK_PX, height)


@contextmanager
def writing(path: Path, frame: Frame, overviews: str, nodata: int | None = None) -> Iterator[Any]:
    """Yields a raster of one band, uint8, to be written; when the block ends it is laid out and gets its name.

    Args:
        path: of the COG.
        frame: of its pixels.
        overviews: how they are made, as GDAL names it.
        nodata: value without imagery; without one the raster may get a mask.

    Raises:
        KitError: the disk is full, or the folder cannot be written.
    """
    plain, laid_out = (path.with_name(f".{path.stem}.{kind}.tif") for kind in ("plain", "part"))
    shape = {"count": 1, "dtype": "uint8", "width": frame.width, "height": frame.height, "nodata": nodata}
    place = {"crs": rasterio.crs.CRS.from_wkt(frame.crs), "transform": frame.transform}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            with rasterio.open(plain, "w", **TILED, **shape, **place, compress="deflate", zlevel=1) as target:
                yield target
            rasterio.shutil.copy(plain, laid_out, **COG, overview_resampling=overviews)
        _check(laid_out)
        laid_out.replace(path)
    except (RasterioError, CPLE_BaseError, OSError) as cause:
        reason = getattr(cause, "strerror", None) or cause.__cause__ or cause
        raise KitError(
            f"cannot write {path}: {reason}", "free some space, and give the same command again: it goes on"
        ) from cause
    finally:
        for leftover in path.parent.glob(f".{escape(path.stem)}.p*.tif*"):  # GDAL's, too: overviews in the making
            leftover.unlink()


def _check(path: Path) -> None:
    """Reads the last pixel of a raster and of its overviews: what a full disk cut off is an error there."""
    with rasterio.open(path) as made:
        levels = made.overviews(1)
        made.read(1, window=Window(made.width - 1, made.height - 1, 1, 1))
    for level in range(len(levels)):
        with rasterio.open(path, overview_level=level) as made:
            made.read(1, window=Window(made.width - 1, made.height - 1, 1, 1))


def write_probability(path: Path, frame: Frame, work: Frame, strips: Strips) -> None:
    """Writes the probability of a map: 0 to 255, with a mask that is 0 where the scene has no imagery.

    Args:
        path: of the COG.
        frame: of the map.
        work: of the strips.
        strips: all of them.

    Raises:
        KitError: the disk is full.
    """
    across, down = frame.scale(work)
    with writing(path, frame, "average") as target:
        for top, bottom in bands(frame.height):
            first, last = (top, bottom) if frame == work else reach(top, bottom, down, work.height)
            level = strips.level(first, last)
            if frame != work:
                whole, size = (0, frame.width), (work.height, work.width)
                seen = (first, last), (0, work.width)
                mean = resample(level[..., None], seen, ((top, bottom), whole), (down, across), size)
                level = np.rint(mean[..., 0]).astype(np.uint8)
            valid = strips.valid(top, bottom)
            window = Window(0, top, frame.width, bottom - top)
            target.write(level * valid, 1, window=window)
            target.write_mask(valid, window=window)


def read_bands(path: Path) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.bool_]]]:
    """Yields a written probability from top to bottom: the first row, levels (h, W), and imagery (h, W)."""
    with rasterio.open(path) as made:
        for top, bottom in bands(made.height):
            window = Window(0, top, made.width, bottom - top)
            yield top, made.read(1, window=window), made.read_masks(1, window=window) > 0


def is_building(level: NDArray[np.uint8], valid: NDArray[np.bool_], threshold: float) -> NDArray[np.bool_]:
    """Returns where the probability, 0 to 255, is above a threshold, 0..1."""
    return (level > threshold * LEVELS) & valid


def write_mask_band(target: Any, top: int, buildings: NDArray[np.bool_], valid: NDArray[np.bool_]) -> None:
    """Writes rows of a mask: 0 background, 1 building, 255 without imagery."""
    mask = np.where(valid, buildings, NO_DATA).astype(np.uint8)
    target.write(mask, 1, window=Window(0, top, mask.shape[1], len(mask)))
