"""Collars: black or white pixels around imagery that are not marked by alpha, nodata value or mask.

A black component of some size that touches the image's edge is a collar. A white one must touch the edge over a long
distance, since white roofs at the edge are common.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.warp import reproject

from kit.data.grids import Grid

BLACK = 8  # of 255, in all bands: JPEG leaves a little noise in a black collar
WHITE = 252  # likewise in a white one
COARSE_PX = 1024  # longest side of the collar's map
COLLAR_SHARE = 0.0005  # of the image: smaller pieces at its edge are shadows
WHITE_REACH = 2 / 3  # of the image's shorter side: white components that touch less of the edge may be roofs
IN_BLACK, IN_WHITE = 1, 2  # values of a collar's map; 0: imagery


@dataclass(frozen=True)
class Collar:
    """Where black or white pixels frame a scene."""

    near: NDArray[np.uint8]  # (h, w) uint8, coarse: 0, `IN_BLACK` or `IN_WHITE`, with one coarse pixel around each
    transform: Affine  # from its pixels to the scene's CRS
    crs: str  # of the scene

    def on(self, grid: Grid, row: int, column: int) -> NDArray[np.uint8]:
        """Returns the collar's map on a tile, (side, side)."""
        near = np.zeros((grid.side_px, grid.side_px), np.uint8)
        reproject(
            self.near, near, src_transform=self.transform, src_crs=self.crs,
            dst_transform=grid.transform(row, column), dst_crs=grid.crs, resampling=Resampling.nearest,
        )  # fmt: skip
        return near


def in_collar(rgb: NDArray[np.uint8], near: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Returns which pixels belong to a collar, (H, W) bool.

    Args:
        rgb: (3, H, W).
        near: (H, W), a collar's map at that size.
    """
    pixels = np.zeros(near.shape, bool)
    for kind in (IN_BLACK, IN_WHITE):
        here = near == kind
        if here.any():
            pixels |= here & _is_colour(rgb, kind)
    return pixels


def may_have_collar(edges: Iterable[tuple[NDArray[np.uint8], NDArray[np.bool_]]], nodata: float | None = None) -> bool:
    """Returns whether an image may have a collar, by its outermost pixels.

    Args:
        edges: the image's four outermost lines, (3, length) each, and what the file takes for imagery, (length,).
        nodata: the file's nodata value.
    """
    white, shortest = 0, math.inf
    for edge, valid in edges:
        if (_is_colour(edge, IN_BLACK) & (valid | _declared(nodata, IN_BLACK))).any():
            return True
        white += int(np.count_nonzero(_is_colour(edge, IN_WHITE) & (valid | _declared(nodata, IN_WHITE))))
        shortest = min(shortest, edge.shape[1])
    return white > 0 and (_declared(nodata, IN_WHITE) or white > WHITE_REACH / 2 * shortest)


def map_collar(
    rgb: NDArray[np.uint8], valid: NDArray[np.bool_], nodata: float | None = None
) -> NDArray[np.uint8] | None:
    """Returns a collar's map of an image, (h, w) uint8, or None where it has no collar.

    Args:
        rgb: (3, h, w), the image at a coarse resolution.
        valid: (h, w), what the file takes for imagery.
        nodata: the file's nodata value: compression may have changed it by a little.
    """
    near = np.zeros(valid.shape, np.uint8)
    for kind in (IN_BLACK, IN_WHITE):
        declared = _declared(nodata, kind)
        colour = _is_colour(rgb, kind) & (valid | declared)
        reached = _reaching(colour, everywhere=kind == IN_BLACK or declared)
        if reached.any():
            near[cv2.dilate(reached.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0] = kind
    return near if near.any() else None


def _declared(nodata: float | None, kind: int) -> bool:
    """Returns whether a file says itself that black, or white, is no data."""
    return nodata is not None and (0 <= nodata <= BLACK if kind == IN_BLACK else WHITE <= nodata <= 255)


def _is_colour(rgb: NDArray[np.uint8], kind: int) -> NDArray[np.bool_]:
    red, green, blue = rgb
    if kind == IN_BLACK:
        return np.asarray(np.maximum(np.maximum(red, green), blue) <= BLACK)
    return np.asarray(np.minimum(np.minimum(red, green), blue) >= WHITE)


def _reaching(colour: NDArray[np.bool_], everywhere: bool) -> NDArray[np.bool_]:
    """Returns the pieces of a colour that are large and reach the image's edge, (h, w) bool.

    Unless `everywhere`, only pieces that touch the edge over `WHITE_REACH` count, and beside such a piece those that
    hold a corner of the image.
    """
    on_rim, least_px = _rim(colour).sum(), COLLAR_SHARE * colour.size
    reach_px = 1 if everywhere else WHITE_REACH * min(colour.shape)
    if on_rim < reach_px or np.count_nonzero(colour) < least_px:
        return np.zeros_like(colour)
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(colour.astype(np.uint8), connectivity=4)
    touching = np.bincount(_rim(pieces), minlength=len(stats))
    large = (touching > 0) & (stats[:, cv2.CC_STAT_AREA] >= least_px)
    large[0] = False  # the rest of the image
    if not everywhere:
        long = large & (touching >= reach_px)
        corners = np.isin(np.arange(len(stats)), pieces[[0, 0, -1, -1], [0, -1, 0, -1]])
        large = long | (large & corners & long.any())
    chosen: NDArray[np.bool_] = large[pieces]
    return chosen


def _rim(image: NDArray[Any]) -> NDArray[Any]:
    """Returns the outermost pixels of an image (H, W)."""
    return np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
