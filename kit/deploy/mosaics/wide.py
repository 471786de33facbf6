"""Chips as they are predicted: alone or with a margin of what lies around them, and at the size that networks know."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kit.data.rasters import read_image
from kit.data.sources.chips import Chip
from kit.deploy.mosaics.assembled import ChipCache, read_wide
from kit.deploy.mosaics.find import Mosaic, Placed
from kit.deploy.mosaics.resolution import resized
from kit.system.files import file_version

MARGIN_PX = 128  # four steps of the deepest features, which are 32 px each


@dataclass(frozen=True)
class Seen:
    """A chip, and what a network sees of it.

    Args:
        version: another one where the image or its surroundings were written again.
        image: uint8 (H, W, 3 or 4).
        wide: likewise, the image with its surroundings, enlarged; alpha is 0 where nothing is known.
        size: height and width of the image with its surroundings, px of the image.
        top: where in them the image begins, likewise.
        left: likewise.
        factor: by which `wide` was enlarged.
    """

    version: str
    image: NDArray[np.uint8]
    wide: NDArray[np.uint8]
    size: tuple[int, int]
    top: int = 0
    left: int = 0
    factor: float = 1.0

    def middle(self, of_wide: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the part of a map (of `wide`) that is the image's, at its size, (H, W)."""
        height, width = self.image.shape[:2]
        return resized(of_wide, *self.size)[self.top : self.top + height, self.left : self.left + width]


class Surroundings:
    """Reads chips, those of a mosaic with a margin on each side where it has neighbours.

    Args:
        mosaics: as found; none to read every chip alone.
        margin_px: of what is seen around a chip; 0 to see it alone.
        factors: by which chips are enlarged before they are seen, by id; 1 for others.
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
        """Returns what changes when the chip, or one around it, is written again or seen at another size."""
        version = file_version(chip.path)
        if around := [placed for placed in self._around(chip) if placed.chip != chip]:
            versions = " ".join(f"{placed.chip.id} {file_version(placed.chip.path)}" for placed in around)
            version += f"-{hashlib.sha256(versions.encode()).hexdigest()[:16]}"
        factor = self.factors.get(chip.id, 1.0)
        return version if factor == 1 else f"{version}*{factor:.5f}"

    def read(self, chip: Chip) -> Seen:
        """Returns a chip as it is predicted.

        Raises:
            RasterError: it, or one around it, is missing or broken.
        """
        version, factor = self.version(chip), self.factors.get(chip.id, 1.0)
        around = self._around(chip)
        if len(around) < 2:
            image = read_image(chip.path)
            return Seen(version, image, _enlarged(image, factor), _size(image), factor=factor)
        mosaic = self.mosaics[chip.id]
        own, margin = mosaic.by_id[chip.id], round(self.margin_px / factor)
        wide = read_wide(mosaic, chip.id, margin, self.cache)
        steps = {(placed.row - own.row, placed.col - own.col) for placed in around}
        top, bottom = (margin if any(row == step for row, _ in steps) else 0 for step in (-1, 1))
        left, right = (margin if any(col == step for _, col in steps) else 0 for step in (-1, 1))
        wide = wide[margin - top : wide.shape[0] - margin + bottom, margin - left : wide.shape[1] - margin + right]
        image = wide[top : top + own.height_px, left : left + own.width_px]
        return Seen(version, image, _enlarged(wide, factor), _size(wide), top, left, factor)

    def _around(self, chip: Chip) -> list[Placed]:
        """Returns the chips beside and diagonally beside one, itself included; none for a chip of no mosaic."""
        mosaic = self.mosaics.get(chip.id)
        if mosaic is None or self.margin_px == 0:
            return []
        own = mosaic.by_id[chip.id]
        cells = [(own.row + down, own.col + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        return [placed for cell in cells if (placed := mosaic.at.get(cell))]


def _size(image: NDArray[np.uint8]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _enlarged(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return np.ascontiguousarray(resized(image, height, width))
