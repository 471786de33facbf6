"""The values and bands of a mask, and the counts that compare a prediction with the truth."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BACKGROUND, BUILDING, IGNORE = 0, 1, 255  # 255 is no data, which is ignored
SOFT_STEPS = 254  # a raster of soft labels has probability x 254, or 255 for ignored pixels
LAYERS = ("footprint", "boundary", "contact")  # bands of a mask with layers; without, the footprint alone


@dataclass(frozen=True)
class Counts:
    """Numbers of building pixels: true positives, false positives, false negatives."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def jaccard(self) -> float:
        """tp / (tp + fp + fn), 0 to 1; 1 where neither truth nor prediction has a building."""
        union = self.tp + self.fp + self.fn
        return self.tp / union if union else 1.0


def white_on_black(band: NDArray[Any], source: Any) -> NDArray[Any]:
    """Returns a mask's band, (H, W), such that white is the larger value: some files show 0 white, and 1 or 255 black.

    Args:
        band: as read.
        source: the open file, perhaps with a palette.
    """
    try:
        palette = {value: colour[:3] for value, colour in source.colormap(1).items()}
    except ValueError:
        return band
    black = next((value for value, colour in palette.items() if colour == (0, 0, 0)), 0)
    if palette.get(0) != (255, 255, 255) or not np.isin(band, (0, black)).all():
        return band
    return np.where(band, 0, black).astype(band.dtype)


def count(predicted: Any, truth: Any) -> Counts:
    """Returns the counts of one prediction.

    Args:
        predicted: array or tensor of bool, any shape: building or not.
        truth: array or tensor of integers, same shape: 0, 1, 255 = does not count.
    """
    known, building = truth != IGNORE, truth == BUILDING
    tp, fp, fn = predicted & building, predicted & known & ~building, ~predicted & building
    return Counts(int(tp.sum()), int(fp.sum()), int(fn.sum()))


def pool(counts: Iterable[Counts]) -> Counts:
    """Returns the sum: the Jaccard index of the sum is the pooled one."""
    return sum(counts, Counts())
