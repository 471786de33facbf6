"""Scenes as pixels on a grid: bands checked, warped, and told which pixels hold no imagery."""

import math
import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import pyproj
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject
from rasterio.windows import Window

from kit.data.grids import Grid, corners
from kit.data.remote import gdal_path
from kit.errors import RasterError

ALPHA = 4  # the band, also where the file does not call it so
BLACK = 8  # of 255: JPEG leaves a little noise in a black collar
BENT_PX = 0.02  # of a map's curvature within a tile; that of UTM or web mercator is a thousandth
EXACT_PX = 1e-4  # nearer than this, pixels are taken as they are
SMOOTHED_FROM = 1.05  # scene pixels to a tile's pixel: GDAL widens its kernel, OpenCV would skip pixels
COARSE_PX = 1024  # longest side of the collar's map
COLLAR_SHARE = 0.0005  # of the image: smaller black pieces at its edge are shadows


@dataclass(frozen=True)
class Collar:
    """Where black pixels frame a scene, which its alpha, nodata value or mask does not tell.

    Args:
        near: (h, w) bool, coarse: black that reaches the scene's edge, and one coarse pixel around it.
        transform: its pixels to the scene's CRS.
        crs: of the scene.
    """

    near: NDArray[np.bool_]
    transform: Affine
    crs: str

    def on(self, grid: Grid, row: int, column: int) -> NDArray[np.bool_]:
        """Returns the collar's map on a tile, (side, side) bool."""
        seen = np.zeros((grid.side_px, grid.side_px), np.uint8)
        reproject(
            self.near.astype(np.uint8), seen, src_transform=self.transform, src_crs=self.crs,
            dst_transform=grid.transform(row, column), dst_crs=grid.crs, resampling=Resampling.nearest,
        )  # fmt: skip
        return seen > 0


def gdal_options(cache_bytes: int, remote: bool) -> dict[str, Any]:
    """Returns GDAL's settings for one of several processes that read scenes.

    Args:
        cache_bytes: of decoded blocks, kept for the tiles beside.
        remote: over a network: no listing of the folder around a file, short waits, tried again.
    """
    options: dict[str, Any] = {"GDAL_CACHEMAX": cache_bytes, "GDAL_NUM_THREADS": "1"}
    if remote:
        options |= {
            "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_HTTP_MAX_RETRY": "4", "GDAL_HTTP_RETRY_DELAY": "1",
            "GDAL_HTTP_CONNECTTIMEOUT": "20", "VSI_CACHE": True,
        }  # fmt: skip
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


class Imagery:
    """A scene on a grid, over some rows and columns of tiles; to be used as a context.

    Args:
        href: path or URL of the scene.
        grid: native ones are read as they are, others warped: bilinear, smoothed where pixels grow.
        rows: of tiles.
        columns: of tiles.
        collar: black without imagery, if the scene has any.

    Raises:
        RasterError: see `open_scene`.
    """

    def __init__(self, href: str, grid: Grid, rows: range, columns: range, collar: Collar | None = None) -> None:
        self.href, self.grid, self.rows, self.columns, self.collar = href, grid, rows, columns, collar
        self.source = open_scene(href)
        self.vrt = _on_grid(self.source, grid, rows, columns)
        self.to_source = pyproj.Transformer.from_crs(grid.crs, self.source.crs.to_wkt(), always_xy=True)

    def __enter__(self) -> "Imagery":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.vrt.close()
        self.source.close()

    def read(self, row: int, column: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Returns a tile's RGB, (3, side, side) uint8, black without imagery, and where there is imagery, (side, side).

        Raises:
            RasterError: the scene is broken here.
        """
        try:
            affine = self._affine(row, column)
            rgb, valid = self._read_bent(row, column) if affine is None else self._read_flat(affine)
        except RasterioError as cause:
            raise RasterError(
                f"{self.href} is broken at tile row {row}, column {column}: {cause.__cause__ or cause}",
                "fetch the file again",
            ) from cause
        if self.collar is not None:
            valid &= (rgb > BLACK).any(axis=0) | ~self.collar.on(self.grid, row, column)
        if not valid.all():
            rgb[:, ~valid] = 0
        return rgb, valid

    def _read_bent(self, row: int, column: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Returns what `read` does, warped by GDAL, pixel for pixel."""
        side, step = self.grid.side_px, self.grid.step_px
        window = Window((column - self.columns.start) * step, (row - self.rows.start) * step, side, side)
        pixels = self.vrt.read(window=window)  # (4, side, side)
        return pixels[:3], pixels[3] > 0

    def _read_flat(self, affine: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Returns what `read` does, moved by an affine map: OpenCV takes a tenth of the time of GDAL's warp.

        As GDAL does, it leaves pixels without imagery out of the mean of four. A tile's pixel is valid where at least
        half of that mean is imagery.
        """
        side, source = self.grid.side_px, self.source
        x, y = affine @ np.array([[0, side, 0, side], [0, 0, side, side], [1, 1, 1, 1]])
        left, top = max(0, math.floor(x.min() + EXACT_PX)), max(0, math.floor(y.min() + EXACT_PX))
        right, bottom = (math.ceil(end.max() - EXACT_PX) for end in (x, y))
        width, height = min(source.width, right) - left, min(source.height, bottom) - top
        if width <= 0 or height <= 0:
            return np.zeros((3, side, side), np.uint8), np.zeros((side, side), bool)
        window = Window(left, top, width, height)
        rgb: NDArray[np.uint8] = source.read((1, 2, 3), window=window)
        valid = self._valid(window)
        if (height, width) == (side, side) and np.abs(affine - [[1, 0, left], [0, 1, top]]).max() < EXACT_PX:
            return rgb, valid
        affine = affine.copy()
        affine[:, 2] += affine[:, :2].sum(axis=1) / 2 - 0.5 - (left, top)  # OpenCV counts from the first pixel's centre
        whole = (width, height) == (right - left, bottom - top) and min(x.min(), y.min()) > -0.5 and bool(valid.all())
        if whole:
            return _moved(rgb, affine, side, cv2.BORDER_REPLICATE), np.ones((side, side), bool)
        rgb[:, ~valid] = 0
        opaque = np.where(valid, 255, 0).astype(np.uint8)[None]
        moved = _moved(np.concatenate([rgb, opaque]), affine, side, cv2.BORDER_CONSTANT)
        weight = moved[3]  # of imagery in the mean of four, 0 to 255
        mean = moved[:3] * (255 / np.maximum(weight, 1)).astype(np.float32)
        return np.rint(np.minimum(mean, 255)).astype(np.uint8), weight > 127

    def _affine(self, row: int, column: int) -> NDArray[np.float64] | None:
        """Returns the map from a tile's pixels to the scene's, (2, 3); None where it bends, or smoothing is needed.

        Within a tile of some 100 m, the way from one projection to another is an affine map.
        """
        at = np.array([(x, y, 1) for x in (0, 0.5, 1) for y in (0, 0.5, 1)]) * (self.grid.side_px, self.grid.side_px, 1)
        x, y = self.to_source.transform(*_through(self.grid.transform(row, column), at[:, 0], at[:, 1]))
        seen = np.stack(_through(~self.source.transform, x, y), axis=1)  # (9, 2)
        if not np.isfinite(seen).all():
            return None
        affine, *_ = np.linalg.lstsq(at, seen)
        grows = np.hypot(*affine[:2].T).max()  # scene pixels to a tile's pixel
        bent = np.abs(at @ affine - seen).max()
        return affine.T.copy() if bent < BENT_PX and grows < SMOOTHED_FROM else None

    def _valid(self, window: Window) -> NDArray[np.bool_]:
        """Returns where the file has imagery, (h, w): by its alpha, nodata value or mask."""
        source = self.source
        if source.count == ALPHA:
            found = source.read(ALPHA, window=window)
        elif all(MaskFlags.all_valid in flags for flags in source.mask_flag_enums):
            return np.ones((int(window.height), int(window.width)), bool)
        else:
            found = source.dataset_mask(window=window)
        return np.asarray(found > 0)

    def window(self, row: int, column: int) -> bytes:
        """Returns a tile as a VRT file: a window that GDAL reads from the scene, which must stay where it is."""
        tile = _on_grid(self.source, self.grid, range(row, row + 1), range(column, column + 1))
        with tile, MemoryFile(ext=".vrt") as memory:
            rasterio.shutil.copy(tile, memory.name, driver="VRT")
            return bytes(memory.getbuffer())


def _through(affine: Affine, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns points moved by an affine map."""
    a, b, c, d, e, f = affine[:6]
    return a * x + b * y + c, d * x + e * y + f


def _moved(bands: NDArray[np.uint8], affine: NDArray[np.float64], side_px: int, border: int) -> NDArray[np.uint8]:
    """Returns (C, h, w) on a tile, (C, side, side): bilinear; the map leads from the tile's pixels to theirs."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    tile = cv2.warpAffine(cv2.merge(list(bands)), affine, (side_px, side_px), flags=flags, borderMode=border)
    return np.stack(cv2.split(tile)).astype(np.uint8, copy=False)


def _on_grid(source: rasterio.DatasetReader, grid: Grid, rows: range, columns: range) -> WarpedVRT:
    """Returns a scene on the grid, RGB and alpha, covering the given tiles exactly.

    The alpha is the scene's own, or made of its nodata value or its mask.
    """
    has_alpha = source.count == ALPHA
    native = grid.crs == source.crs.to_string() and (grid.x_pixel, -grid.y_pixel) == source.transform[0:5:4]
    return WarpedVRT(
        source,
        crs=grid.crs,
        transform=grid.transform(rows.start, columns.start),
        width=(len(columns) - 1) * grid.step_px + grid.side_px,
        height=(len(rows) - 1) * grid.step_px + grid.side_px,
        resampling=Resampling.nearest if native else Resampling.bilinear,
        add_alpha=not has_alpha,
        **({"src_alpha": ALPHA, "dst_alpha": ALPHA, "src_nodata": None, "nodata": None} if has_alpha else {}),
    )


def find_collar(source: rasterio.DatasetReader) -> Collar | None:
    """Returns the black collar of a scene, or None; see `black_frame`."""
    near = black_frame(source)
    if near is None:
        return None
    height, width = near.shape
    coarse = source.transform @ Affine.scale(source.width / width, source.height / height)
    return Collar(near, coarse, source.crs.to_string())


def black_frame(source: rasterio.DatasetReader) -> NDArray[np.bool_] | None:
    """Returns where black that the file takes for imagery reaches the image's edge, (h, w) bool; None: nowhere.

    Found in a coarse copy, `COARSE_PX` at most, and one coarse pixel around it; only where the outermost pixels are
    black, and in pieces of some size: shadows stay imagery.
    """
    width, height = source.width, source.height
    edges = (0, 0, width, 1), (0, height - 1, width, 1), (0, 0, 1, height), (width - 1, 0, 1, height)
    if not any(_black(source, Window(*edge)).any() for edge in edges):
        return None
    shrink = max(1.0, max(width, height) / COARSE_PX)
    size = max(1, round(height / shrink)), max(1, round(width / shrink))
    black = _black(source, Window(0, 0, width, height), size).astype(np.uint8)
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(black, connectivity=4)
    rim = np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])
    large = [piece for piece in np.unique(rim[rim > 0]) if stats[piece, cv2.CC_STAT_AREA] >= COLLAR_SHARE * black.size]
    if not large:
        return None
    reached = np.isin(pieces, large).astype(np.uint8)
    near: NDArray[np.bool_] = cv2.dilate(reached, np.ones((3, 3), np.uint8)) > 0
    return near


def _black(source: rasterio.DatasetReader, window: Window, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Returns where a window holds black that the file takes for imagery, (h, w) bool; at another size if wanted."""
    height, width = size or (int(window.height), int(window.width))
    rgb = source.read((1, 2, 3), window=window, out_shape=(3, height, width))
    opaque = source.dataset_mask(window=window, out_shape=(height, width))
    black: NDArray[np.bool_] = (rgb <= BLACK).all(axis=0) & (opaque > 0)
    return black
