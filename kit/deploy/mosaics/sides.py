"""Descriptions of a chip's four sides, small enough to keep for all chips of a test set.

A side is described by its two outermost lines of pixels, extrapolated half a pixel outwards, to where it meets its
neighbour. That profile is split into bands of wavelengths: JPEG spoils the shortest, and the longest say little about
which chip it is. Of the colours only the longest waves are kept, because JPEG halves their resolution. Contrast is
evened out along the side: otherwise one bright roof on each of two sides would make them look alike.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from kit.data.collars import BLACK
from kit.data.rasters import read_image
from kit.data.sources.chips import Chip
from kit.system.files import file_version

Floats = NDArray[np.float32]

RIGHT, LEFT, BOTTOM, TOP = range(4)
FACING = {RIGHT: LEFT, BOTTOM: TOP}  # a side of the left or upper chip: the side of its neighbour that it meets
LEAST_PX = 48  # a side with fewer valid pixels is not compared: 64 with imagery, less those beside nodata
BESIDE_NODATA_PX = 4  # pixels this close to nodata are blurred by JPEG
COLLAR_PX = 17  # a shorter run of black pixels is a shadow

SIGMAS_PX = (1.0, 2.5, 6.0, 16.0)  # a band lies between two blurs
STEPS = (1, 2, 5)  # every n-th pixel of the three bands is kept
CONTRAST_PX = 12.0  # sigma of the blur that measures local contrast
LEAST_CONTRAST = 4.0  # grey values, added to the contrast: flat areas stay flat
LUMA_CHROMA = np.array([[0.299, 0.587, 0.114], [0.5, 0, -0.5], [-0.25, 0.5, -0.25]], np.float32)


@dataclass(frozen=True)
class Side:
    """One side of a chip."""

    # float16 (D,), concatenated, see `band_slices`: luma from short waves to long, then the long waves of two colour
    # differences; 0 where there is no imagery
    bands: NDArray[np.float16]
    levels: Floats  # float32 (3,), mean luma and colour differences, 0..255
    valid_px: int  # number of pixels that can be compared


@dataclass(frozen=True)
class ChipSides:
    """The sides of a chip."""

    height_px: int  # of its image
    width_px: int  # of its image
    sides: tuple[Side, Side, Side, Side]  # right, left, bottom, top
    version: str = ""  # of the file, see `file_version`

    def length_px(self, side: int) -> int:
        """Returns the length of a side."""
        return self.height_px if side in (RIGHT, LEFT) else self.width_px


def band_slices(length_px: int) -> list[slice]:
    """Returns where each of the five bands lies in `Side.bands` of a side of this length."""
    sizes = [-(-length_px // step) for step in (*STEPS, STEPS[-1], STEPS[-1])]
    return [slice(start, end) for start, end in pairwise(np.cumsum([0, *sizes]).tolist())]


def read_sides(chip: Chip) -> ChipSides:
    """Returns the sides of a chip's image.

    Raises:
        RasterError: it is missing or broken.
    """
    version = file_version(chip.path)
    return replace(sides_of(read_image(chip.path)), version=version)


def sides_of(image: NDArray[np.uint8]) -> ChipSides:
    """Returns the sides of an image, uint8 (H, W, 3 or 4), RGB or RGBA."""
    turned = image.swapaxes(0, 1)
    lines = turned[::-1][:2], turned[:2], image[::-1][:2], image[:2]  # (2, length, C), the outermost first
    right, left, bottom, top = map(_side, lines)
    return ChipSides(image.shape[0], image.shape[1], (right, left, bottom, top))


def _side(lines: NDArray[np.uint8]) -> Side:
    """Returns a side from its two outermost lines, (1 or 2, length, C)."""
    valid = _valid(lines)
    outer, inner = lines[0, :, :3] @ LUMA_CHROMA.T, lines[-1, :, :3] @ LUMA_CHROMA.T
    profile: Floats = np.ascontiguousarray((outer + (outer - inner) / 2).T, np.float32)  # (3, length)
    levels = (profile * valid).sum(1) / max(float(valid.sum()), 1)
    blurred = [_blurred(profile, valid, sigma_px) for sigma_px in SIGMAS_PX]
    power: Floats = np.square(blurred[0] - blurred[-1])
    contrast = np.sqrt(np.maximum(_blurred(power, valid, CONTRAST_PX), 0)) + LEAST_CONTRAST
    short, middle, long = ((fine - coarse) * valid / contrast for fine, coarse in pairwise(blurred))
    bands = short[0, :: STEPS[0]], middle[0, :: STEPS[1]], *long[:, :: STEPS[2]]
    return Side(np.concatenate(bands).astype(np.float16), levels.astype(np.float32), int(valid.sum()))


def _valid(lines: NDArray[np.uint8]) -> Floats:
    """Returns 1 where a side has imagery and 0 where it has none (alpha 0, a black collar), (length,)."""
    black = np.expand_dims(np.all(lines[..., :3] <= BLACK, axis=(0, 2)), 0).astype(np.uint8)
    missing = np.asarray(cv2.morphologyEx(black, cv2.MORPH_OPEN, np.ones((1, COLLAR_PX), np.uint8)) > 0)
    if lines.shape[-1] == 4:
        missing |= (lines[..., 3] == 0).any(0)
    beside = np.asarray(cv2.dilate(missing.astype(np.float32), np.ones((1, 2 * BESIDE_NODATA_PX + 1), np.uint8)))
    valid: Floats = 1 - beside[0]
    return valid


def _blurred(profile: Floats, valid: Floats, sigma_px: float) -> Floats:
    """Returns rows (3, length) blurred along their length, ignoring invalid pixels."""
    reach = int(3 * sigma_px) + 1
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2).astype(np.float32)
    both = np.vstack([profile * valid, valid])
    across = np.ones(1, np.float32)
    sums = cv2.sepFilter2D(both, -1, kernel / kernel.sum(), across, borderType=cv2.BORDER_CONSTANT)
    blurred: Floats = sums[:3] / np.maximum(sums[3], 0.01)
    return blurred
