"""Mosaics drawn, made smaller, cut into chips and shuffled; and how many of their joins were found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from deploy_fakes import write_tiff

from kit.deploy.mosaics.mosaic import Mosaic
from kit.sample.drawing import draw_scene
from kit.sample.plan import GSD_M
from kit.sample.sites import AREAS

Place = tuple[str, int, int]  # mosaic, row, column


@dataclass(frozen=True)
class Cut:
    """Where the chips of a folder lie, by their ids, and their images."""

    places: dict[str, Place]
    images: dict[str, np.ndarray]

    def joins(self, able: bool = False) -> set[tuple[str, str, bool]]:
        """Pairs of neighbours and whether the second lies below; all, or those that 64 px and more can tell."""
        chips = {place: chip for chip, place in self.places.items()}
        found = set()
        for (mosaic, row, col), first in chips.items():
            for below, place in ((False, (mosaic, row, col + 1)), (True, (mosaic, row + 1, col))):
                second = chips.get(place)
                if second and not (able and not self._able(first, second, below)):
                    found.add((first, second, below))
        return found

    def _able(self, first: str, second: str, below: bool) -> bool:
        one, other = self.images[first], self.images[second]
        lines = (one[-1], other[0]) if below else (one[:, -1], other[:, 0])
        valid = [line[line.max(1) > 8] for line in lines]
        return all(len(line) >= 64 and line[:, :3].mean(1).std() > 1 for line in valid)


def draw_mosaic(area: str, gsd_m: float, rows: int, cols: int, side_px: int, seed: int, border: bool = True):
    """Returns RGBA of whole chips at a ground resolution; alpha is 0 along two sides if there is a border."""
    size = rows * side_px, cols * side_px
    drawn_px = [round(px * gsd_m / GSD_M) for px in size]
    drawn = draw_scene(np.random.default_rng(seed), AREAS[area].look, *drawn_px, border=border).image
    image = cv2.resize(drawn, size[::-1], interpolation=cv2.INTER_AREA if gsd_m > GSD_M else cv2.INTER_CUBIC)
    image[..., 3] = np.where(image[..., 3] > 127, 255, 0)
    return image


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Returns the image after JPEG; alpha as it was."""
    coded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., 2::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.dstack([cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1], image[..., 3:]])


def cut(
    folder: Path, mosaics: dict[str, np.ndarray], side_px: int, quality: int = 90, alpha: bool = True, seed: int = 0,
    **profile: object,
) -> Cut:  # fmt: skip
    """Writes the chips of mosaics under names that tell nothing, each a JPEG of its own; RGB chips are JPEG TIFFs."""
    names = np.random.default_rng(seed).permutation(10_000)
    places: dict[str, Place] = {}
    images: dict[str, np.ndarray] = {}
    for mosaic, image in mosaics.items():
        for row, col in np.ndindex(image.shape[0] // side_px, image.shape[1] // side_px):
            chip = f"{names[len(places)]:04d}{seed}"
            part = image[row * side_px : (row + 1) * side_px, col * side_px : (col + 1) * side_px]
            if alpha:
                part = jpeg(part, quality)
                write_tiff(folder / f"{chip}.tif", part, photometric="rgb", **profile)
            else:
                part = part[..., :3]
                write_tiff(
                    folder / f"{chip}.tif", part, compress="jpeg", jpeg_quality=quality, photometric="ycbcr", **profile
                )
            places[chip], images[chip] = (mosaic, row, col), part
    return Cut(places, images)


def found_joins(mosaics: Sequence[Mosaic]) -> set[tuple[str, str, bool]]:
    return {(join.first, join.second, join.below) for mosaic in mosaics for join in mosaic.joins}
