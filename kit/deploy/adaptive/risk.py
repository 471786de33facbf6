"""Estimates how much the Jaccard index changes when masks change, without labels.

The estimate uses the full ensemble's probabilities. The index I / U is taken as a ratio of expectations (Nowozin, CVPR
2014): a pixel that is building with probability p changes it by about (p - J (1 - p)) / U when a mask gains it, and by
as much less when a mask loses it. The sum over all changed pixels is the mean change.

Its uncertainty depends on which pixels change together. A connected component of pixels that change in the same way
counts as one object, all building or none of it; components are independent. So one roof weighs more than the same
number of pixels along the outlines of a hundred roofs, where gains and losses cancel out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

SURE = 2.5  # standard deviations: two, times the 1.26 by which changes on labelled tiles exceeded the estimate


@dataclass(frozen=True)
class Change:
    """An expected change of the Jaccard index."""

    mean: float  # expected change
    deviation: float  # its standard deviation

    def most(self, share: float = 1.0) -> float:
        """Returns the largest change to expect, up or down, for a set of images.

        Args:
            share: part of the set that was examined, 0..1; over a larger set, deviations cancel out.
        """
        return abs(self.mean) + SURE * self.deviation * math.sqrt(share)


def change_of(
    full: Sequence[NDArray[np.float32]], early: Sequence[NDArray[np.float32]], valid: Sequence[NDArray[np.bool_]]
) -> Change:
    """Returns the change of the Jaccard index when votes end early.

    Args:
        full: the full vote's probabilities, (h, w), one array per image.
        early: probabilities of the vote that ends early, likewise.
        valid: which pixels count, likewise.
    """
    intersection, union = 0.0, 0.0
    for p, counted in zip(full, valid, strict=True):
        mask = p > 0.5
        intersection += float(p[mask & counted].sum(dtype=np.float64))
        union += np.count_nonzero(mask & counted) + float(p[~mask & counted].sum(dtype=np.float64))
    if not union:
        return Change(0.0, 0.0)
    jaccard, mean, variance = intersection / union, 0.0, 0.0
    for p, other, counted in zip(full, early, valid, strict=True):
        for sign in (1, -1):  # gained, lost
            changed = counted & (sign * (other - 0.5) > 0) & (sign * (p - 0.5) <= 0)
            pixels, probability = _components(changed, p)
            mean += sign * float((pixels * (probability - jaccard * (1 - probability))).sum())
            variance += float((((1 + jaccard) * pixels) ** 2 * probability * (1 - probability)).sum())
    return Change(float(mean / union), float(variance**0.5 / union))


def _components(
    changed: NDArray[np.bool_], probability: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the number of pixels of each connected component, (n,), and its mean probability."""
    if not changed.any():
        return np.empty(0), np.empty(0)
    _, labels = cv2.connectedComponents(changed.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    pixels, sums = (np.bincount(labels[changed], weights=weights)[1:] for weights in (None, probability[changed]))
    return pixels.astype(np.float64), sums / pixels
