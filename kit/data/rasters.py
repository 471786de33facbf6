"""Reads images: checks of files and bands, and where there is imagery.

`open_scene` opens georeferenced imagery that is read in windows. `read_image` and `read_picture` read a whole chip,
upright. All expect 3 or 4 bands (RGB, alpha) of uint8.
"""

import os
import shlex
import threading
import warnings
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.env import env_ctx_if_needed, getenv, hasenv
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from kit.data.collars import COARSE_PX, Collar, in_collar, map_collar, may_have_collar
from kit.data.grids import corners
from kit.data.orientation import TURNED, orientation_of, upright
from kit.data.sources.remote import GDAL_WEB, gdal_path, is_remote, local_path, suffix_of
from kit.errors import RasterError

RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
NO_COLOUR = (ColorInterp.undefined, ColorInterp.gray)  # of bands that the file gives no meaning
ALPHA = 4  # the band, also where the file does not call it so
# GDAL's fast way to read a whole PNG returns one that was cut off without an error
os.environ.setdefault("GDAL_PNG_WHOLE_IMAGE_OPTIM", "NO")
PICTURE_DRIVERS = ("GTiff", "PNG", "JPEG", "WEBP", "JP2OpenJPEG")  # formats that name no other file to read
MOST_PIXELS = 1 << 28  # of a picture: 16,384 x 16,384; the header of a small file can claim any size


class _Quiet:
    """Hides rasterio's NotGeoreferencedWarning: chips and their masks have no georeference.

    Warning filters are global: the first of several threads sets the filter, the last one removes it.
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


without_notice = _Quiet()


def gdal_options(cache_bytes: int, remote: bool) -> dict[str, Any]:
    """Returns GDAL's settings for one of several processes that read scenes.

    Args:
        cache_bytes: limit for decoded blocks, kept for neighbouring tiles.
        remote: whether scenes are read over a network.
    """
    options: dict[str, Any] = {"GDAL_CACHEMAX": cache_bytes, "GDAL_NUM_THREADS": "1"}
    if remote:
        options |= {**GDAL_WEB, "VSI_CACHE": True}
    return options


def open_scene(href: str) -> DatasetReader:
    """Opens an image that lies somewhere on earth.

    Raises:
        RasterError: it cannot be read, is not uint8 RGB or RGBA, has no coordinates on earth, or is stored in huge
            blocks.
    """
    plain = is_remote(href) and suffix_of(href) != ".vrt"  # `check_inside` has not looked into it
    source = _open(href, PICTURE_DRIVERS if plain else None)
    _check_bands(source, href)
    if source.crs is None:
        (points, crs), model = source.gcps, source.rpcs
        source.close()
        command = f"{shlex.quote(gdal_path(href))} warped.tif"
        if points:
            raise RasterError(
                f"{href} has {len(points)} ground control points instead of a transform",
                f"warp it: gdalwarp -r bilinear {'' if crs else '-s_srs EPSG:... '}{command}",
            )
        if model:
            raise RasterError(
                f"{href} has a sensor model (RPC) instead of a transform",
                f"warp it: gdalwarp -rpc -r bilinear {command}",
            )
        raise RasterError(f"{href} has no coordinate system", "assign one: gdal_edit.py -a_srs EPSG:...")
    block = max((height * width for height, width in source.block_shapes), default=0)
    if source.transform.is_identity or block > MOST_PIXELS:
        source.close()
        if block > MOST_PIXELS:
            raise RasterError(
                f"{href} is stored in blocks of {block:,} px, expected at most {MOST_PIXELS:,}",
                "tile it: gdal_translate -co TILED=YES",
            )
        raise RasterError(
            f"{href} has a coordinate system, but no transform that places its pixels in it",
            "assign its corners: gdal_edit.py -a_ullr LEFT TOP RIGHT BOTTOM",
        )
    return source


def open_picture(href: str) -> DatasetReader:
    """Opens an image or mask that will be read as a whole; its bands are not checked.

    Raises:
        RasterError: it is missing, broken, too large, or of a format that can name other files to read (VRT).
    """
    if not is_remote(href):
        if not local_path(href).is_file():
            raise RasterError(f"no image {href}", "is the path right, and the data set complete?")
        with local_path(href).open("rb") as file:
            if b"<VRTDataset" in file.read(512):
                raise RasterError(
                    f"{href} is a VRT, which may read any other file", "convert it: gdal_translate IN.vrt OUT.tif"
                )
    source = _open(href, PICTURE_DRIVERS)
    blocks = max((height * width for height, width in source.block_shapes), default=0)
    if max(source.width * source.height, blocks) > MOST_PIXELS:
        size = f"{source.width:,} x {source.height:,} px"
        source.close()
        raise RasterError(
            f"{href} has {size}, expected at most {MOST_PIXELS:,} px", "cut it up, or use it as a scene: kit map"
        )
    return source


def _open(href: str, drivers: tuple[str, ...] | None = None) -> DatasetReader:
    """Opens a file as `rasterio.open` does, which takes one driver at most."""
    try:
        with without_notice, _listing_no_folder(href):
            return DatasetReader(gdal_path(href), driver=drivers)
    except RasterioError as cause:
        raise unreadable(href, cause) from cause


def _listing_no_folder(href: str) -> Any:
    """Returns a context in which GDAL asks for files beside an image by name.

    By default it lists the image's folder each time: in one of 11,481 chips that takes ten times as long.
    """
    if is_remote(href) or (hasenv() and "GDAL_DISABLE_READDIR_ON_OPEN" in getenv()):
        return env_ctx_if_needed()
    return rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE")


def unreadable(href: object, cause: BaseException) -> RasterError:
    """Returns the error for a file that GDAL cannot open or decode."""
    reason = cause.__cause__ or cause  # rasterio's own text of a failed read says "see previous exception"
    return RasterError(
        f"cannot read {href}: {reason}",
        "expected a whole GeoTIFF, PNG, JPEG, JPEG 2000 or WebP: fetch or copy it again",
    )


def _check_bands(source: DatasetReader, href: object) -> None:
    """Checks that an image is uint8 RGB or RGBA; closes it where it is not."""
    count, dtypes, kinds = source.count, sorted(set(source.dtypes)), source.colorinterp[:3]
    fits = count in (3, 4) and dtypes == ["uint8"]
    if fits and all(kind in (colour, *NO_COLOUR) for kind, colour in zip(kinds, RGB, strict=True)):
        return
    source.close()
    if fits:
        raise RasterError(
            f"the bands of {href} are {', '.join(kind.name for kind in kinds)}, expected red, green, blue",
            "convert it to RGB; of another order, gdal_translate -b 3 -b 2 -b 1 -colorinterp red,green,blue IN OUT",
        )
    if dtypes != ["uint8"]:
        remedy = "scale it to 8 bits: gdal_translate -ot Byte -scale"
    elif count > ALPHA:
        remedy = "keep red, green and blue: gdal_translate -b 1 -b 2 -b 3"
    else:
        remedy = "a palette becomes colours with gdal_translate -expand rgb; grey imagery is not supported"
    raise RasterError(
        f"{href} has {count} band{'s' * (count != 1)} of {', '.join(dtypes)}, expected 3 or 4 (RGB, alpha) of uint8",
        remedy,
    )


@dataclass(frozen=True)
class Picture:
    """A whole image in memory, upright."""

    bands: NDArray[np.uint8]  # (3 or 4, H, W) uint8: red, green, blue, alpha
    valid: NDArray[np.bool_]  # (H, W) bool, where there is imagery
    crs: CRS | None  # of its georeference, or None
    transform: Affine  # pixel to CRS


def read_picture(href: str) -> Picture:
    """Returns a whole image.

    Raises:
        RasterError: see `open_picture`; or it is not uint8 RGB or RGBA.
    """
    with open_picture(href) as source:
        _check_bands(source, href)
        try:
            bands: NDArray[np.uint8] = source.read()
            valid = bands[ALPHA - 1] > 0 if source.count == ALPHA else validity(source)
        except RasterioError as cause:
            raise unreadable(href, cause) from cause
        rgb = bands[:3]
        lines = np.s_[..., 0, :], np.s_[..., -1, :], np.s_[..., 0], np.s_[..., -1]
        if may_have_collar([(rgb[line], valid[line]) for line in lines], source.nodata):
            _leave_collar_out(rgb, valid, source.nodata)
        turn = orientation_of(source)
        return Picture(upright(bands, turn), upright(valid, turn), source.crs, source.transform)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Returns a whole image, uint8 (H, W, 3 or 4), RGB or RGBA, upright.

    What a nodata value, a mask or a collar leaves out is black and has an alpha of 0, also where the file has no alpha.

    Raises:
        RasterError: see `read_picture`.
    """
    picture = read_picture(str(path))
    image = np.ascontiguousarray(picture.bands.transpose(1, 2, 0))
    if not picture.valid.all():
        if image.shape[2] < ALPHA:
            image = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
        image[~picture.valid & (image[..., ALPHA - 1] > 0)] = 0
    return image


def _leave_collar_out(rgb: NDArray[np.uint8], valid: NDArray[np.bool_], nodata: float | None) -> None:
    """Clears `valid`, (H, W), where an image (3, H, W) has a black or white collar."""
    height, width = valid.shape
    h, w = _coarse(height, width)
    if (h, w) == (height, width):
        near = map_collar(rgb, valid, nodata)
    else:
        rows, columns = (np.arange(h) + 0.5) * height / h, (np.arange(w) + 0.5) * width / w
        at = rows.astype(int)[:, None], columns.astype(int)
        near = map_collar(rgb[:, *at], valid[at], nodata)
    if near is not None:
        full = np.asarray(cv2.resize(near, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
        valid &= ~in_collar(rgb, full)


def image_size(href: str | Path) -> tuple[int, int]:
    """Returns height and width of an image as `read_image` would return it, px, without reading its pixels.

    Raises:
        RasterError: see `open_picture`.
    """
    with open_picture(str(href)) as source:
        turned = orientation_of(source) in TURNED
        return (source.width, source.height) if turned else (source.height, source.width)


def find_collar(source: DatasetReader) -> Collar | None:
    """Returns the black or white collar of a scene, or None; see `kit.data.collars`.

    It is looked for in a coarse copy, and only where the outermost pixels are black or white.

    Raises:
        RasterError: the scene is broken there.
    """
    width, height = source.width, source.height
    edges = (0, 0, width, 1), (0, height - 1, width, 1), (0, 0, 1, height), (width - 1, 0, 1, height)
    try:
        lines = (
            (source.read((1, 2, 3), window=window).reshape(3, -1), validity(source, window).ravel())
            for window in starmap(Window, edges)
        )
        if not may_have_collar(lines, source.nodata):
            return None
        h, w = _coarse(height, width)
        rgb = source.read((1, 2, 3), out_shape=(3, h, w))
        near = map_collar(rgb, validity(source, size=(h, w)), source.nodata)
    except RasterioError as cause:
        raise RasterError(f"{source.name} is broken: {cause.__cause__ or cause}", "fetch the file again") from cause
    if near is None:
        return None
    return Collar(near, source.transform @ Affine.scale(width / w, height / h), source.crs.to_string())


def _coarse(height: int, width: int) -> tuple[int, int]:
    """Returns height and width of the copy that a collar is looked for in, px."""
    shrink = max(1.0, max(width, height) / COARSE_PX)
    return max(1, round(height / shrink)), max(1, round(width / shrink))


def off_earth(href: str, crs: CRS) -> RasterError:
    """Returns the error for an image whose coordinates, such as a drawing's, are no place on earth."""
    return RasterError(
        f"the coordinate system of {href} has no place on earth: {crs.to_string():.60}",
        "assign the real one: gdal_edit.py -a_srs EPSG:...",
    )


def outline(source: DatasetReader, crs: str) -> shapely.Polygon:
    """Returns a scene's frame as a polygon in a CRS."""
    frame = shapely.segmentize(shapely.Polygon(corners(source)), max(source.width, source.height) * source.res[0] / 20)
    change = pyproj.Transformer.from_crs(source.crs.to_wkt(), crs, always_xy=True)
    moved: shapely.Polygon = shapely.transform(frame, change.transform, interleaved=False)
    return moved


def validity(
    source: DatasetReader, window: Window | None = None, size: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Returns where a file has imagery by its alpha band, nodata value or mask, (H, W) bool.

    Args:
        source: the open file.
        window: the part to read; all of it by default.
        size: (height, width) to resample to; by default that of the window.
    """
    if window is None:
        window = Window(0, 0, source.width, source.height)
    shape = size or (int(window.height), int(window.width))
    if source.count == ALPHA:
        flags = source.read(ALPHA, window=window, out_shape=shape)
    elif all(MaskFlags.all_valid in flags for flags in source.mask_flag_enums):
        return np.ones(shape, bool)
    else:
        flags = source.dataset_mask(window=window, out_shape=shape)
    return np.asarray(flags > 0)
