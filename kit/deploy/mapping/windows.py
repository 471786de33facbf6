"""Overlapping windows of a scene, and the sum that blends their probabilities.

Sums are whole numbers, so that they do not depend on the order of additions and equal windows blend without loss.
A probability p is stored as 255 p + 0.5 in 256ths, rounded down: its whole part is p as a rounded byte. The weights of
the windows over a pixel add up to 2**16, so a sum is at most 255.5 x 2**24, fits into 32 bits, and its highest byte is
the blended probability.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kit.errors import KitError

TOTAL_WEIGHT = 256  # of the windows over a pixel, along one axis
SMALLEST_PX = 64
MOST_OVERLAP = 4  # an overlap is at most a window's side divided by this, so that only neighbours overlap
LEVELS = 255  # the byte of a probability of 1
FRACTION = 256


@dataclass(frozen=True)
class Axis:
    """Windows along one axis of a grid."""

    starts: tuple[int, ...]  # first pixel of each window, ascending
    side_px: int  # of every window
    size_px: int  # of the axis; the last window ends there

    def __len__(self) -> int:
        return len(self.starts)

    def span(self, index: int) -> tuple[int, int]:
        """Returns a window's first pixel and the one after its last."""
        return self.starts[index], self.starts[index] + self.side_px

    @property
    def edges(self) -> tuple[int, ...]:
        """Start of each window, then the end of the axis: from one edge to the next no later window adds anything."""
        return (*self.starts, self.size_px)

    def edges_on(self, size_px: int) -> tuple[int, ...]:
        """Returns `edges` in pixels of another frame of the same scene, whose axis has `size_px` pixels."""
        return tuple(round(edge * size_px / self.size_px) for edge in self.edges)

    def weights(self, index: int) -> NDArray[np.uint32]:
        """Returns a window's weights, (side,), 0 to `TOTAL_WEIGHT`: a raised cosine where neighbours overlap."""
        weights = np.full(self.side_px, TOTAL_WEIGHT, np.uint32)
        start, stop = self.span(index)
        if index > 0:
            overlap = self.starts[index - 1] + self.side_px - start
            weights[:overlap] = _rising(overlap)
        if index + 1 < len(self):
            overlap = stop - self.starts[index + 1]
            weights[-overlap:] = TOTAL_WEIGHT - _rising(overlap)
        return weights


def _rising(length: int) -> NDArray[np.uint32]:
    """Returns weights that rise smoothly from 0 to `TOTAL_WEIGHT`, (length,)."""
    share = np.sin(np.pi / 2 * (np.arange(length) + 0.5) / length) ** 2
    weights: NDArray[np.uint32] = np.rint(TOTAL_WEIGHT * share).astype(np.uint32)
    return weights


def along(size_px: int, side_px: int, overlap_px: int, stride_px: int = 1) -> Axis:
    """Returns the fewest windows that cover an axis, as small as that number of windows allows.

    Args:
        size_px: of the axis.
        side_px: largest side of a window.
        overlap_px: least overlap of neighbours.
        stride_px: windows start at its multiples where it is small enough. With the total stride of a network's
            encoder, all windows that cover a pixel place it alike on the network's coarse grid.
    """
    if size_px <= side_px:
        return Axis((0,), size_px, size_px)
    fewest = math.ceil((size_px - overlap_px) / (side_px - overlap_px))
    for count in range(fewest, 2 * fewest + 1):
        for last in range((size_px - overlap_px) // stride_px * stride_px, size_px - side_px - 1, -stride_px):
            starts = tuple(stride_px * round(i * last / (count - 1) / stride_px) for i in range(count))
            if _fits(starts, size_px - last, overlap_px):
                return Axis(starts, size_px - last, size_px)
    return along(size_px, side_px, overlap_px, stride_px // 2)


def _fits(starts: tuple[int, ...], side_px: int, overlap_px: int) -> bool:
    """Returns whether neighbouring windows overlap enough, and no others overlap."""
    enough = all(later - start <= side_px - overlap_px for start, later in pairwise(starts))
    return enough and all(after - start >= side_px for start, after in zip(starts, starts[2:], strict=False))


def check_window(side_px: int, overlap_px: int) -> None:
    """Checks the side and the overlap of windows.

    Raises:
        KitError: the windows are too small, or the overlap is too large for them.
    """
    if side_px < SMALLEST_PX:
        raise KitError(f"windows of {side_px} px", f"expected at least {SMALLEST_PX} px, for example --window 1024")
    if not 1 <= overlap_px <= side_px // MOST_OVERLAP:
        raise KitError(
            f"an overlap of {overlap_px} px between windows of {side_px} px",
            f"expected 1 to {side_px // MOST_OVERLAP} px: --overlap",
        )


def fixed(probability: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Returns probabilities, 0..1, as whole numbers to add up; see the module."""
    return ((probability.astype(np.float64) * LEVELS + 0.5) * FRACTION).astype(np.uint32)


def as_levels(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Returns probabilities, 0..1, as bytes, 0 to 255; blending equal probabilities gives the same bytes."""
    return (fixed(probability) // FRACTION).astype(np.uint8)


class Band:
    """The blended probabilities of one row of windows.

    Args:
        rows: windows along the columns of the grid.
        columns: windows along its rows.
        index: of the row of windows.
        carried: sums of the row of windows above where it overlaps this one, uint32 (overlap, W).
        planes: how many probabilities a pixel has, in front of the shapes here: (2,); (), for one.
    """

    def __init__(
        self, rows: Axis, columns: Axis, index: int, carried: NDArray[np.uint32] | None, planes: tuple[int, ...] = ()
    ) -> None:
        self.rows, self.columns, self.index = rows, columns, index
        self.sums = np.zeros((*planes, rows.side_px, columns.size_px), np.uint32)
        if carried is not None:
            self.sums[..., : carried.shape[-2], :] = carried

    def add(self, column: int, probability: NDArray[np.float32]) -> None:
        """Adds a window's probability, (side, side) float32, 0..1."""
        start, stop = self.columns.span(column)
        weights = self.rows.weights(self.index)[:, None] * self.columns.weights(column)
        self.sums[..., start:stop] += fixed(probability) * weights

    def finished(self) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
        """Returns the rows that no window below adds to, as bytes (h, W), and the sums to carry to the next band."""
        done = self.rows.edges[self.index + 1] - self.rows.edges[self.index]
        return (self.sums[..., :done, :] >> 24).astype(np.uint8), self.sums[..., done:, :]
