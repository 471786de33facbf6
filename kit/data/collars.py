"""Black frames around scenes whose alpha, nodata value or mask does not tell where imagery ends."""

from dataclasses import dataclass

import cv2
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject
from rasterio.windows import Window

from kit.data.grids import Grid
from kit.data.rasters import validity
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
    black, and in pieces of some size: shadows stay imagery. So it is beside alpha, which may end the imagery elsewhere.
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
    black: NDArray[np.bool_] = (rgb <= BLACK).all(axis=0) & validity(source, window, (height, width))
    return black
