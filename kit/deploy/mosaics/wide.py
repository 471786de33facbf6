"""Chips as networks see them: alone or with a margin of what lies around them, resized to the training resolution."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kit.data.rasters import read_image
from kit.data.sources.chips import Chip
from kit.deploy.mosaics.mosaic import Mosaic, PlacedChip
from kit.deploy.mosaics.resolution import resized
from kit.errors import RasterError
from kit.system.files import file_version

__all__ = ["read_wide"]

MARGIN_PX = 128  # four pixels of the deepest features, which are 32 px each
CACHE_BYTES = 256_000_000  # 61 chips of 1024 px: three rows of a mosaic 20 wide
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class WideChip:
    """A chip, and what a network sees of it."""

    version: str  # changes when the image or its surroundings are written again, or are resized differently
    image: Image  # uint8 (H, W, 3 or 4)
    wide: Image  # the image with its surroundings, resized: uint8 (h, w, 3 or 4); alpha is 0 where nothing is known
    size: tuple[int, int]  # height and width of the image with its surroundings, before resizing, px
    top: int = 0  # where the image begins in its surroundings, before resizing, px
    left: int = 0  # likewise
    factor: float = 1.0  # by which the image with its surroundings was enlarged

    def middle(self, of_wide: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the part of a map of `wide`, (h, w), that belongs to the image, at the image's size, (H, W)."""
        height, width = self.image.shape[:2]
        return resized(of_wide, *self.size)[self.top : self.top + height, self.left : self.left + width]


class WideReader:
    """Reads chips; those of a mosaic with a margin on each side where they have neighbours.

    Args:
        mosaics: as found; empty to read every chip alone.
        margin_px: how much of the neighbours is shown; 0 to read every chip alone.
        factors: by which chips are enlarged, by id; 1 for others.
    """

    def __init__(
        self, mosaics: Sequence[Mosaic] = (), margin_px: int = MARGIN_PX, factors: Mapping[str, float] | None = None
    ) -> None:
        self.factors = factors or {}
        self.mosaics = {placed.chip.id: mosaic for mosaic in mosaics for placed in mosaic.placed}
        self.places = {chip: place for place, chip in enumerate(self.mosaics)}
        self.margin_px = margin_px
        self.cache = ChipCache()

    def in_order(self, chips: Sequence[Chip]) -> list[Chip]:
        """Returns chips mosaic by mosaic and row by row, so that each is decoded about once."""
        return sorted(chips, key=lambda chip: self.places.get(chip.id, 0))

    def version(self, chip: Chip) -> str:
        """Returns a text that changes when the chip or one around it is written again, or resized differently."""
        version = file_version(chip.path)
        if around := [placed for placed in self._around(chip) if placed.chip != chip]:
            versions = " ".join(f"{placed.chip.id} {file_version(placed.chip.path)}" for placed in around)
            version += f"-{hashlib.sha256(versions.encode()).hexdigest()[:16]}"
        factor = self.factors.get(chip.id, 1.0)
        return version if factor == 1 else f"{version}*{factor:.5f}"

    def read(self, chip: Chip) -> WideChip:
        """Returns a chip as it is predicted.

        Raises:
            RasterError: it, or one around it, is missing or broken.
        """
        version, factor = self.version(chip), self.factors.get(chip.id, 1.0)
        around = self._around(chip)
        if len(around) < 2:
            image = read_image(chip.path)
            return WideChip(version, image, _enlarged(image, factor), _size(image), factor=factor)
        mosaic = self.mosaics[chip.id]
        own, margin = mosaic.by_id[chip.id], round(self.margin_px / factor)
        wide = read_wide(mosaic, chip.id, margin, self.cache)
        steps = {(placed.row - own.row, placed.col - own.col) for placed in around}
        top, bottom = (margin if any(row == step for row, _ in steps) else 0 for step in (-1, 1))
        left, right = (margin if any(col == step for _, col in steps) else 0 for step in (-1, 1))
        wide = wide[margin - top : wide.shape[0] - margin + bottom, margin - left : wide.shape[1] - margin + right]
        image = wide[top : top + own.height_px, left : left + own.width_px]
        return WideChip(version, image, _enlarged(wide, factor), _size(wide), top, left, factor)

    def _around(self, chip: Chip) -> list[PlacedChip]:
        """Returns a chip and those beside and diagonally beside it; none for a chip that is in no mosaic."""
        mosaic = self.mosaics.get(chip.id)
        if mosaic is None or self.margin_px == 0:
            return []
        own = mosaic.by_id[chip.id]
        cells = [(own.row + down, own.col + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        return [placed for cell in cells if (placed := mosaic.at.get(cell))]


def _size(image: Image) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _enlarged(image: Image, factor: float) -> Image:
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return np.ascontiguousarray(resized(image, height, width))


class ChipCache:
    """The chips that were read last, RGBA, limited in bytes; the last one is always kept."""

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self.most_bytes, self.held_bytes = most_bytes, 0
        self._images: OrderedDict[tuple[str, str], Image] = OrderedDict()

    def read(self, placed: PlacedChip) -> Image:
        """Returns a chip, uint8 (H, W, 4); alpha is 255 where the file has none.

        Raises:
            RasterError: it is missing or broken, or has another size.
        """
        key = placed.chip.id, str(placed.chip.path)
        if key in self._images:
            self._images.move_to_end(key)
            return self._images[key]
        image = read_image(placed.chip.path)
        if image.shape[:2] != (placed.height_px, placed.width_px):
            raise RasterError(
                f"{placed.chip.path} changed its size since its mosaic was found", "run the command again"
            )
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

    Alpha is 0 where the mosaic has no chip and where a chip has no imagery; without a chip the colours are 0, too.
    Read the chips in the mosaic's order: then each is decoded once, as long as three rows fit into the cache.

    Args:
        mosaic: as found.
        chip: id of one of its chips.
        margin_px: on each side; it may span several chips.
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
    """Returns the rows (or columns) that a window overlaps: number, slice of the window, slice of the chip."""
    overlaps = []
    for number, (start, end) in enumerate(pairwise(starts)):
        low, high = max(start, begin), min(end, begin + length)
        if low < high:
            overlaps.append((number, slice(low - begin, high - begin), slice(low - start, high - start)))
    return overlaps
