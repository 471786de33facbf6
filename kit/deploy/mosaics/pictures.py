"""Draws mosaics: small pictures with the grid of their chips."""

from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from kit.data.rasters import read_image
from kit.deploy.mosaics.mosaic import Mosaic

MOST_PX = 2000  # longest side of a picture
GRID = (255, 220, 0)
EMPTY = (60, 60, 60)  # where there is no chip or no imagery


def draw_mosaic(mosaic: Mosaic) -> NDArray[np.uint8]:
    """Returns a picture of a mosaic, uint8 (H, W, 3), RGB, at most `MOST_PX` on each side; chips are read one by one.

    Raises:
        RasterError: a chip is missing or broken.
    """
    tops, lefts = mosaic.tops_px, mosaic.lefts_px
    shrink = max(1.0, max(tops[-1], lefts[-1]) / MOST_PX)
    rows, columns = ([min(MOST_PX, round(at / shrink)) for at in places] for places in (tops, lefts))
    picture = np.full((max(1, rows[-1]), max(1, columns[-1]), 3), EMPTY, np.uint8)
    for placed in mosaic.placed:
        top, bottom = rows[placed.row : placed.row + 2]
        left, right = columns[placed.col : placed.col + 2]
        if bottom > top and right > left:
            picture[top:bottom, left:right] = _small(read_image(placed.chip.path), bottom - top, right - left)
    thickness = ceil(max(picture.shape) / MOST_PX)
    for placed in mosaic.placed:
        corners = (columns[placed.col], rows[placed.row]), (columns[placed.col + 1] - 1, rows[placed.row + 1] - 1)
        cv2.rectangle(picture, *corners, GRID, thickness)
    return picture


def _small(image: NDArray[np.uint8], height_px: int, width_px: int) -> NDArray[np.uint8]:
    """Returns a chip at another size, (height, width, 3); grey where it has no imagery."""
    small = np.asarray(cv2.resize(image, (width_px, height_px), interpolation=cv2.INTER_AREA), np.uint8)
    if image.shape[2] == 4:
        small[small[..., 3] < 128] = (*EMPTY, 0)
    return small[..., :3]
