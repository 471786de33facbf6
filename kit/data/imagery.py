"""Scenes as pixels on a grid: bands checked, warped, and told which pixels hold no imagery."""

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
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject
from rasterio.windows import Window

from kit.data.grids import Grid, corners
from kit.data.remote import gdal_path
from kit.errors import RasterError

BLACK = 8  # of 255: JPEG leaves a little noise in a black collar
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
        side, step = self.grid.side_px, self.grid.step_px
        window = Window((column - self.columns.start) * step, (row - self.rows.start) * step, side, side)
        try:
            pixels = self.vrt.read(window=window)  # (4, side, side)
        except RasterioError as cause:
            raise RasterError(
                f"{self.href} is broken at tile row {row}, column {column}: {cause.__cause__ or cause}",
                "fetch the file again",
            ) from cause
        rgb, valid = pixels[:3], pixels[3] > 0
        if self.collar is not None:
            valid &= (rgb > BLACK).any(axis=0) | ~self.collar.on(self.grid, row, column)
        rgb[:, ~valid] = 0
        return rgb, valid

    def window(self, row: int, column: int) -> bytes:
        """Returns a tile as a VRT file: a window that GDAL reads from the scene, which must stay where it is."""
        tile = _on_grid(self.source, self.grid, range(row, row + 1), range(column, column + 1))
        with tile, MemoryFile(ext=".vrt") as memory:
            rasterio.shutil.copy(tile, memory.name, driver="VRT")
            return bytes(memory.getbuffer())


def _on_grid(source: rasterio.DatasetReader, grid: Grid, rows: range, columns: range) -> WarpedVRT:
    """Returns a scene on the grid, RGB and alpha, covering the given tiles exactly.

    The alpha is the scene's own, whether its file calls the fourth band so or not, or made of its nodata value or mask.
    """
    alpha = {"src_alpha": 4, "dst_alpha": 4, "src_nodata": None, "nodata": None} if source.count == 4 else {}
    native = grid.crs == source.crs.to_string() and (grid.x_pixel, -grid.y_pixel) == source.transform[0:5:4]
    return WarpedVRT(
        source,
        crs=grid.crs,
        transform=grid.transform(rows.start, columns.start),
        width=(len(columns) - 1) * grid.step_px + grid.side_px,
        height=(len(rows) - 1) * grid.step_px + grid.side_px,
        resampling=Resampling.nearest if native else Resampling.bilinear,
        add_alpha=not alpha,
        **alpha,
    )


def find_collar(source: rasterio.DatasetReader) -> Collar | None:
    """Returns the black collar of a scene, or None; see `black_frame`.

    Raises:
        RasterError: the scene is broken where it is looked for: whatever was cut would lack it.
    """
    try:
        near = black_frame(source)
    except RasterioError as cause:
        raise RasterError(f"{source.name} is broken: {cause.__cause__ or cause}", "fetch the file again") from cause
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
    black: NDArray[np.bool_] = (rgb <= BLACK).all(axis=0) & known(source, window=window, out_shape=(height, width))
    return black


def known(source: rasterio.DatasetReader, **where: Any) -> NDArray[np.bool_]:
    """Returns where a file says that there is imagery, (h, w) bool: by its alpha, nodata value or mask.

    Of four bands, the last is the alpha, whether the file calls it so or not, and whatever else it says.
    """
    opaque: NDArray[np.bool_] = (source.read(4, **where) if source.count == 4 else source.dataset_mask(**where)) > 0
    return opaque
