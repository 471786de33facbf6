"""Chips with what lies around them: read across the seams of their mosaic."""

from collections import OrderedDict
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kit.data.rasters import read_image
from kit.deploy.mosaics.find import Mosaic, Placed

CACHE_BYTES = 256_000_000  # 61 chips of 1024 px: three rows of a mosaic 20 wide
Image = NDArray[np.uint8]


class ChipCache:
    """The chips that were read last, RGBA, within so many bytes; the chip read last is always kept.

    Args:
        most_bytes: of all of them.
    """

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self.most_bytes, self.held_bytes = most_bytes, 0
        self._images: OrderedDict[tuple[str, str], Image] = OrderedDict()

    def read(self, placed: Placed) -> Image:
        """Returns a chip, uint8 (H, W, 4); alpha is 255 where the file has none.

        Raises:
            RasterError: it is missing or broken.
        """
        key = placed.chip.id, str(placed.chip.path)
        if key in self._images:
            self._images.move_to_end(key)
            return self._images[key]
        image = read_image(placed.chip.path)
        if image.shape[2] == 3:
            image = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
        self._images[key] = image
        self.held_bytes += image.nbytes
        while self.held_bytes > self.most_bytes and len(self._images) > 1:
            self.held_bytes -= self._images.popitem(last=False)[1].nbytes
        return image


CACHE = ChipCache()


def read_wide(mosaic: Mosaic, chip: str, margin_px: int, cache: ChipCache = CACHE) -> Image:
    """Returns a chip with a margin that its mosaic fills, uint8 (H + 2 margin, W + 2 margin, 4), RGBA.

    Where the mosaic has no chip, and where a chip has no imagery, alpha is 0; without a chip the colours are 0, too.
    Read chip after chip in the mosaic's order: then each is decoded once as long as three rows fit in the cache.

    Args:
        mosaic: as found.
        chip: id of one of its chips.
        margin_px: on each side; may reach over several chips.
        cache: of decoded chips.

    Raises:
        RasterError: a chip is missing or broken.
        KeyError: the mosaic has no such chip.
    """
    tops, lefts, centre = mosaic.tops_px, mosaic.lefts_px, mosaic.by_id[chip]
    top, left = tops[centre.row] - margin_px, lefts[centre.col] - margin_px
    height, width = centre.height_px + 2 * margin_px, centre.width_px + 2 * margin_px
    wide = np.zeros((height, width, 4), np.uint8)
    for row, rows, from_rows in _overlaps(tops, top, height):
        for col, cols, from_cols in _overlaps(lefts, left, width):
            if placed := mosaic.at.get((row, col)):
                wide[rows, cols] = cache.read(placed)[from_rows, from_cols]
    return wide


def _overlaps(starts: list[int], begin: int, length: int) -> list[tuple[int, slice, slice]]:
    """Returns which rows (or columns) of a mosaic a window meets: number, where in the window, where in the chip."""
    found = []
    for number, (start, end) in enumerate(pairwise(starts)):
        low, high = max(start, begin), min(end, begin + length)
        if low < high:
            found.append((number, slice(low - begin, high - begin), slice(low - start, high - start)))
    return found
