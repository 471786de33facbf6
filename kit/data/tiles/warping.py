"""Warps scenes onto the grid of the tiles, and finds pixels without imagery."""

import math
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import pyproj
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from kit.data.collars import Collar, in_collar
from kit.data.grids import Grid
from kit.data.rasters import ALPHA, open_scene, validity
from kit.errors import RasterError

BENT_PX = 0.02  # largest deviation from an affine transform within a tile; UTM and web mercator have a thousandth
EXACT_PX = 1e-4  # largest offset at which pixels are copied
SMOOTHED_FROM = 1.05  # scene pixels to a tile's pixel: GDAL widens its kernel, OpenCV would skip pixels


class Imagery:
    """A scene on a grid, over some rows and columns of tiles. A context manager.

    Args:
        href: path or URL of the scene.
        grid: of the tiles. A native grid copies pixels; others interpolate, or average where tiles are coarser.
        rows: of tiles.
        columns: of tiles.
        collar: of the scene, or None.

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
            valid &= ~in_collar(rgb, self.collar.on(self.grid, row, column))
        if not valid.all():
            rgb *= valid
        return rgb, valid

    def _read_bent(self, row: int, column: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Returns what `read` does, warped by GDAL for any projection."""
        side, step = self.grid.side_px, self.grid.step_px
        window = Window((column - self.columns.start) * step, (row - self.rows.start) * step, side, side)
        pixels = self.vrt.read(window=window)  # (4, side, side)
        return pixels[:3], pixels[3] > 0

    def _read_flat(self, affine: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Returns what `read` does, by an affine map: OpenCV takes a tenth of the time of GDAL's warp.

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
        valid = validity(source, window)
        if (height, width) == (side, side) and np.abs(affine - [[1, 0, left], [0, 1, top]]).max() < EXACT_PX:
            return rgb, valid
        affine = affine.copy()
        affine[:, 2] += affine[:, :2].sum(axis=1) / 2 - 0.5 - (left, top)  # OpenCV counts from the first pixel's centre
        whole = (width, height) == (right - left, bottom - top) and min(x.min(), y.min()) > -0.5 and bool(valid.all())
        if whole:
            return _moved(rgb, affine, side, cv2.BORDER_REPLICATE), np.ones((side, side), bool)
        opaque = valid.astype(np.uint8) * np.uint8(255)
        moved = _moved([*(rgb * valid), opaque], affine, side, cv2.BORDER_CONSTANT)
        weight = moved[3]  # of imagery in the mean of four, 0 to 255
        mean = moved[:3] * (255 / np.maximum(weight, 1)).astype(np.float32)
        return np.rint(np.minimum(mean, 255)).astype(np.uint8), weight > 127

    def _affine(self, row: int, column: int) -> NDArray[np.float64] | None:
        """Returns the map from a tile's pixels to the scene's, (2, 3); None where it bends, or smoothing is needed.

        Within a tile of some 100 m, the way from one projection to another is an affine map.
        """
        at = np.array([(x, y, 1) for x in (0, 0.5, 1) for y in (0, 0.5, 1)]) * (self.grid.side_px, self.grid.side_px, 1)
        x, y = self.to_source.transform(*_through(self.grid.transform(row, column), at[:, 0], at[:, 1]))
        at_scene = np.stack(_through(~self.source.transform, x, y), axis=1)  # (9, 2)
        if not np.isfinite(at_scene).all():
            return None
        affine, *_ = np.linalg.lstsq(at, at_scene)
        grows = np.hypot(*affine[:2].T).max()  # scene pixels to a tile's pixel
        bent = np.abs(at @ affine - at_scene).max()
        return affine.T.copy() if bent < BENT_PX and grows < SMOOTHED_FROM else None

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


def _moved(
    bands: Iterable[NDArray[np.uint8]], affine: NDArray[np.float64], side_px: int, border: int
) -> NDArray[np.uint8]:
    """Returns bands, (h, w) each, on a tile, (C, side, side): bilinear; the map leads from its pixels to theirs."""
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
