"""Windows along an axis: of one size, overlapping, and with weights that add up to the same everywhere."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kit.errors import KitError

WHOLE = 256  # what the weights along one axis add up to: whole numbers, so that sums are exact
SMALLEST_PX = 64
MOST_SHARED = 4  # an overlap is at most a window's side by this: then only neighbours overlap


@dataclass(frozen=True)
class Axis:
    """Windows along one axis of a grid.

    Args:
        starts: first pixel of each, ascending.
        side_px: of all of them.
        size_px: of the axis; the last window ends there.
    """

    starts: tuple[int, ...]
    side_px: int
    size_px: int

    def __len__(self) -> int:
        return len(self.starts)

    def span(self, index: int) -> tuple[int, int]:
        """Returns the first pixel of a window and the one behind its last."""
        return self.starts[index], self.starts[index] + self.side_px

    @property
    def edges(self) -> tuple[int, ...]:
        """Where each window begins and, last, where the axis ends: what lies between is finished with that window."""
        return (*self.starts, self.size_px)

    def weights(self, index: int) -> NDArray[np.uint32]:
        """Returns a window's weights, (side,), 0 to `WHOLE`: a raised cosine where it overlaps its neighbours."""
        weights = np.full(self.side_px, WHOLE, np.uint32)
        start, stop = self.span(index)
        if index > 0:
            shared = self.starts[index - 1] + self.side_px - start
            weights[:shared] = _rising(shared)
        if index + 1 < len(self):
            shared = stop - self.starts[index + 1]
            weights[-shared:] = WHOLE - _rising(shared)
        return weights


def _rising(length: int) -> NDArray[np.uint32]:
    """Returns weights that rise smoothly, (length,)."""
    share = np.sin(np.pi / 2 * (np.arange(length) + 0.5) / length) ** 2
    weights: NDArray[np.uint32] = np.rint(WHOLE * share).astype(np.uint32)
    return weights


def along(size_px: int, side_px: int, overlap_px: int, stride_px: int = 1) -> Axis:
    """Returns the fewest windows that cover an axis, and of those the smallest that do.

    Args:
        size_px: of the axis.
        side_px: the largest that a window may be.
        overlap_px: the least that neighbours share.
        stride_px: windows begin at its multiples, where it is small enough: a network that looks at an image in steps
            of that many pixels sees the same ones in each of them.
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
    """Returns whether windows share what they shall with their neighbours, and nothing with others."""
    shared = all(later - start <= side_px - overlap_px for start, later in pairwise(starts))
    return shared and all(after - start >= side_px for start, after in zip(starts, starts[2:], strict=False))


def check_window(side_px: int, overlap_px: int) -> None:
    """Checks what was asked for.

    Raises:
        KitError: windows too small, or an overlap too large for them.
    """
    if side_px < SMALLEST_PX:
        raise KitError(f"windows of {side_px} px", f"expected at least {SMALLEST_PX} px: --window 1024")
    if not 1 <= overlap_px <= side_px // MOST_SHARED:
        raise KitError(
            f"an overlap of {overlap_px} px between windows of {side_px} px", f"expected 1 to {side_px // MOST_SHARED}"
        )
