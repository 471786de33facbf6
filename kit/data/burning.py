"""Rasterises footprints: buildings, boundaries, and the ground between close neighbours (contact)."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count, repeat
from typing import Any

import cv2
import numpy as np
import shapely
from numpy.typing import DTypeLike, NDArray
from rasterio.enums import MergeAlg
from rasterio.features import rasterize
from rasterio.transform import Affine

from kit.data.masks import IGNORE, LAYERS
from kit.errors import DataError

BOUNDARY, CONTACT = "5px", "5m"  # the widths of the challenge's second place
BOUNDARY_PX, CONTACT_M = 5, 5.0
MOST_IDS = 2**16 - 1  # of a tile


@dataclass(frozen=True)
class Width:
    """A width in pixels or in metres on the ground."""

    value: float  # above 0
    unit: str  # `px` or `m`

    def px(self, gsd_m: float) -> float:
        """Returns it in pixels."""
        return self.value if self.unit == "px" else self.value / gsd_m

    def m(self, gsd_m: float) -> float:
        """Returns it in metres."""
        return self.value if self.unit == "m" else self.value * gsd_m

    def odd_px(self, gsd_m: float) -> int:
        """Returns it as the side of a window that has a middle, at least 3 px."""
        return max(3, 2 * round((self.px(gsd_m) - 1) / 2) + 1)


def read_width(text: str) -> Width:
    """Returns the width of a text such as `5px` or `0.4m`.

    Raises:
        DataError: the text is not a width.
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(px|m)", text)
    if not match or not float(match[1]):
        raise DataError(f"{text!r} is not a width", "expected pixels or metres, such as 5px or 0.4m")
    return Width(float(match[1]), match[2])


def draw_mask(
    polygons: NDArray[np.object_], transform: Affine, shape: tuple[int, int], valid: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Returns the building mask of a tile.

    Args:
        polygons: in the tile's CRS.
        transform: pixel to CRS.
        shape: height and width, px.
        valid: (H, W), False where the image holds no data.

    Returns:
        (H, W) uint8: 0 background, 1 building (the pixel's centre lies in a polygon), 255 no data.
    """
    return as_mask(_burn(polygons, repeat(1), transform, shape, np.uint8), valid)


def as_mask(building: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Returns the mask of a tile, see `draw_mask`.

    Args:
        building: (H, W), 0 outside of buildings.
        valid: (H, W), False where the image holds no data.
    """
    mask = (building > 0).astype(np.uint8)
    mask[~valid] = IGNORE
    return mask


def draw_ids(polygons: NDArray[np.object_], transform: Affine, shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Returns the number of the polygon that each pixel's centre lies in, from 1, (H, W); 0 elsewhere.

    Of polygons that overlap the last one counts. Args: see `draw_mask`.
    """
    numbers: NDArray[np.uint16] = _burn(polygons, (1 + i % MOST_IDS for i in count()), transform, shape, np.uint16)
    return numbers


def draw_layers(
    polygons: NDArray[np.object_],
    transform: Affine,
    shape: tuple[int, int],
    valid: NDArray[np.bool_],
    gsd_m: float,
    boundary_px: int = BOUNDARY_PX,
    contact_m: float = CONTACT_M,
) -> NDArray[np.uint8]:
    """Returns the footprint, boundary and contact layers of a tile.

    Args:
        polygons: in the tile's CRS; also those up to `margin_px` beyond the tile.
        transform: pixel to CRS.
        shape: height and width, px.
        valid: (H, W), False where the image holds no data.
        gsd_m: metres on the ground per pixel, which turns `contact_m` into units of the CRS.
        boundary_px: side of the square that erodes each footprint, odd; what it removes is the boundary, half as wide.
        contact_m: outside all footprints, and this near to two of them, is contact.

    Returns:
        (3, H, W) uint8, in the order of `LAYERS`: 0 no, 1 yes, 255 no data. The first layer is `draw_mask`'s.
    """
    building, seams = _seams(polygons, transform, shape, boundary_px)
    zones = shapely.buffer(polygons, contact_m / gsd_m * transform.a)
    near = _burn(zones, repeat(1), transform, shape, np.uint16, MergeAlg.add)  # footprints within reach
    layers = np.empty((len(LAYERS), *shape), np.uint8)
    layers[0], layers[1], layers[2] = building, building & seams, ~building & (near >= 2)
    if not valid.all():
        layers[:, ~valid] = IGNORE
    return layers


def margin_px(gsd_m: float, boundary_px: int = BOUNDARY_PX, contact_m: float = CONTACT_M) -> int:
    """Returns how far beyond a tile footprints still shape its layers, px."""
    return max(boundary_px // 2, math.ceil(contact_m / gsd_m))


def _seams(
    polygons: NDArray[np.object_], transform: Affine, shape: tuple[int, int], window_px: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns the footprints, and where a square window sees more than one of: them, the ground. (H, W) bool each."""
    margin = window_px // 2  # rasterised and cropped, since a tile's edge is not a seam
    canvas = (shape[0] + 2 * margin, shape[1] + 2 * margin)
    # a number each, so that neighbours that touch keep a seam; cv2 filters no int32, and float32 counts to 16 million
    numbered = np.uint16 if len(polygons) < 2**16 else np.float32
    around = transform @ Affine.translation(-margin, -margin)
    numbers = _burn(polygons, range(1, len(polygons) + 1), around, canvas, numbered)
    window = np.ones((window_px, window_px), np.uint8)
    inside = np.s_[margin : margin + shape[0], margin : margin + shape[1]]
    seams: NDArray[np.bool_] = cv2.erode(numbers, window)[inside] != cv2.dilate(numbers, window)[inside]
    return numbers[inside] > 0, seams


def _burn(
    polygons: NDArray[np.object_],
    values: Iterable[int],
    transform: Affine,
    shape: tuple[int, int],
    dtype: DTypeLike,
    merge: MergeAlg = MergeAlg.replace,
) -> NDArray[Any]:
    """Returns a raster of zeros with a value in each polygon: in the pixels whose centre lies in it."""
    if not len(polygons):
        return np.zeros(shape, dtype)
    drawn: NDArray[Any] = rasterize(
        zip(polygons, values, strict=False), shape, transform=transform, dtype=dtype, merge_alg=merge
    )
    return drawn
