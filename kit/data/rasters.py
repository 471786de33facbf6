"""Images as files: opened, their bands checked, and told where they hold imagery."""

import warnings
from typing import Any

import numpy as np
import pyproj
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from kit.data.grids import corners
from kit.data.sources.remote import GDAL_WEB, gdal_path
from kit.errors import RasterError

ALPHA = 4  # the band, also where the file does not call it so


def gdal_options(cache_bytes: int, remote: bool) -> dict[str, Any]:
    """Returns GDAL's settings for one of several processes that read scenes.

    Args:
        cache_bytes: of decoded blocks, kept for the tiles beside.
        remote: over a network.
    """
    options: dict[str, Any] = {"GDAL_CACHEMAX": cache_bytes, "GDAL_NUM_THREADS": "1"}
    if remote:
        options |= {**GDAL_WEB, "VSI_CACHE": True}
    return options


def open_image(href: str) -> rasterio.DatasetReader:
    """Opens an image and checks its bands.

    Raises:
        RasterError: it cannot be read, or is not uint8 RGB or RGBA.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            source = rasterio.open(gdal_path(href))
    except RasterioError as cause:
        raise RasterError(f"{href} cannot be read: {cause}", "expected a GeoTIFF; fetch the file again") from cause
    if source.count not in (3, 4) or set(source.dtypes) != {"uint8"}:
        count, kind = source.count, ", ".join(sorted(set(source.dtypes)))
        source.close()
        raise RasterError(
            f"{href} has {count} bands of {kind}, expected 3 or 4 (RGB, alpha) of uint8",
            "convert it: gdal_translate -ot Byte -b 1 -b 2 -b 3",
        )
    return source


def open_scene(href: str) -> rasterio.DatasetReader:
    """Opens an image that lies somewhere on earth.

    Raises:
        RasterError: see `open_image`; or it has no CRS.
    """
    source = open_image(href)
    if source.crs is None:
        source.close()
        raise RasterError(f"{href} has no coordinate system", "assign one: gdal_edit.py -a_srs EPSG:...")
    return source


def outline(source: rasterio.DatasetReader, crs: str) -> shapely.Polygon:
    """Returns a scene's frame as a polygon in a CRS."""
    frame = shapely.segmentize(shapely.Polygon(corners(source)), max(source.width, source.height) * source.res[0] / 20)
    change = pyproj.Transformer.from_crs(source.crs.to_wkt(), crs, always_xy=True)
    moved: shapely.Polygon = shapely.transform(frame, change.transform, interleaved=False)
    return moved


def validity(
    source: rasterio.DatasetReader, window: Window | None = None, size: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Returns where a file has imagery, (H, W), by its alpha, nodata value or mask; of a window, at another size."""
    if window is None:
        window = Window(0, 0, source.width, source.height)
    shape = size or (int(window.height), int(window.width))
    if source.count == ALPHA:
        found = source.read(ALPHA, window=window, out_shape=shape)
    elif all(MaskFlags.all_valid in flags for flags in source.mask_flag_enums):
        return np.ones(shape, bool)
    else:
        found = source.dataset_mask(window=window, out_shape=shape)
    return np.asarray(found > 0)
