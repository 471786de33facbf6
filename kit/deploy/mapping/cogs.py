"""A map's rasters, written and read in bands: cloud-optimised GeoTIFFs (COG) with overviews."""

from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # raised by rasterio.shutil.copy; no public module has it
from rasterio.errors import RasterioError
from rasterio.windows import Window

from kit.deploy.mapping.resampling import reach, resample
from kit.deploy.mapping.scene import Frame
from kit.deploy.mapping.strips import Strips
from kit.deploy.mapping.windows import LEVELS
from kit.errors import KitError, RasterError

BLOCK_PX = 512
NO_DATA = 255  # value of the mask without imagery
TILED = {"driver": "GTiff", "tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "bigtiff": "if_safer"}
COG = {"driver": "COG", "blocksize": BLOCK_PX, "compress": "deflate", "predictor": "yes", "bigtiff": "if_safer"}


def bands(height: int) -> Iterator[tuple[int, int]]:
    """Yields the first row of each band of blocks, and the one after its last."""
    for top in range(0, height, BLOCK_PX):
        yield top, min(top + BLOCK_PX, height)


@contextmanager
def writing(path: Path, frame: Frame, overviews: str, nodata: int | None = None) -> Iterator[Any]:
    """Yields a raster of one uint8 band to write into; at the end it becomes a COG with its final name.

    Args:
        path: of the COG.
        frame: its pixels.
        overviews: GDAL's name of the resampling of its overviews.
        nodata: value without imagery; None for a raster with a mask.

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
        raise KitError(f"cannot write {path}: {reason}", "free some space and rerun to resume") from cause
    finally:
        for leftover in path.parent.glob(f".{escape(path.stem)}.p*.tif*"):  # also GDAL's temporary overviews
            leftover.unlink()


def _check(path: Path) -> None:
    """Reads the last pixel of a raster and of its overviews, which raises where a full disk cut the file off."""
    with rasterio.open(path) as source:
        levels: list[dict[str, int]] = [{}, *({"overview_level": i} for i in range(len(source.overviews(1))))]
    for level in levels:
        with rasterio.open(path, **level) as source:
            source.read(1, window=Window(source.width - 1, source.height - 1, 1, 1))


def write_probability(path: Path, frame: Frame, work: Frame, strips: Strips, plane: int = 0) -> None:
    """Writes the probability of a map, 0 to 255, with a mask that is 0 where the scene has no imagery.

    Args:
        path: of the COG.
        frame: of the map.
        work: frame that the strips were predicted on.
        strips: all of them finished.
        plane: of theirs, where they have several.

    Raises:
        KitError: the disk is full.
    """
    across, down = frame.scale(work)
    with writing(path, frame, "average") as target:
        for top, bottom in bands(frame.height):
            first, last = (top, bottom) if frame == work else reach(top, bottom, down, work.height)
            level = strips.level(first, last)
            level = level[plane] if strips.planes else level
            if frame != work:
                given, target_ = ((first, last), (0, work.width)), ((top, bottom), (0, frame.width))
                mean = resample(level[..., None], given, target_, (down, across), (work.height, work.width))
                level = np.rint(mean[..., 0]).astype(np.uint8)
            valid = strips.valid(top, bottom)
            window = Window(0, top, frame.width, bottom - top)
            target.write(level * valid, 1, window=window)
            target.write_mask(valid, window=window)


def read_bands(path: Path) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """Yields the bands of a written probability from top to bottom: levels (h, W), and imagery (h, W).

    Raises:
        RasterError: the file is damaged.
    """
    try:
        with rasterio.open(path) as source:
            for top, bottom in bands(source.height):
                window = Window(0, top, source.width, bottom - top)
                yield source.read(1, window=window), source.read_masks(1, window=window) > 0
    except RasterioError as cause:
        raise RasterError(
            f"{path} is damaged: {cause.__cause__ or cause}", "remove it and rerun: the scene is predicted again"
        ) from cause


def is_building(level: NDArray[np.uint8], threshold: float) -> NDArray[np.bool_]:
    """Returns where the probability, 0 to 255, is above a threshold, 0..1."""
    building: NDArray[np.bool_] = level > threshold * LEVELS
    return building


def write_mask_band(target: Any, top: int, buildings: NDArray[np.bool_], valid: NDArray[np.bool_]) -> None:
    """Writes rows of a mask: 0 background, 1 building, 255 without imagery."""
    mask = np.where(valid, buildings, NO_DATA).astype(np.uint8)
    target.write(mask, 1, window=Window(0, top, mask.shape[1], len(mask)))
