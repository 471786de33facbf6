"""Selects the windows of an image for the next stage of an adaptive vote."""

from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

CALL_PX = 256 * 256  # fixed cost of a network's call, as a number of pixels


@dataclass(frozen=True)
class BlockWindow:
    """A rectangle of whole blocks, px: rows `top` to `bottom`, columns `left` to `right`, the ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def px(self) -> int:
        """Its area."""
        return (self.bottom - self.top) * (self.right - self.left)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def blocks(self, block_px: int) -> tuple[slice, slice]:
        """Returns the rows and columns of the blocks that it covers, the last ones perhaps in part."""
        rows = slice(self.top // block_px, -(-self.bottom // block_px))
        return rows, slice(self.left // block_px, -(-self.right // block_px))

    def moved(self, down: int, right: int) -> "BlockWindow":
        """Returns the rectangle shifted by pixels."""
        return BlockWindow(self.top + down, self.bottom + down, self.left + right, self.right + right)

    def joined(self, other: "BlockWindow") -> "BlockWindow":
        """Returns the smallest rectangle that contains both."""
        return BlockWindow(
            min(self.top, other.top), max(self.bottom, other.bottom),
            min(self.left, other.left), max(self.right, other.right),
        )  # fmt: skip

    def shared(self, other: "BlockWindow") -> "BlockWindow | None":
        """Returns the intersection; None where it is empty."""
        top, bottom = max(self.top, other.top), min(self.bottom, other.bottom)
        left, right = max(self.left, other.left), min(self.right, other.right)
        return BlockWindow(top, bottom, left, right) if top < bottom and left < right else None

    def grown(self, margin: int, multiple: int, height: int, width: int) -> "BlockWindow":
        """Returns the rectangle with at least a margin on each side, within an image of that size.

        Its sides are multiples of `multiple`, or the image's.
        """
        rows = _grown(self.top, self.bottom, margin, multiple, height)
        return BlockWindow(*rows, *_grown(self.left, self.right, margin, multiple, width))


def _grown(start: int, end: int, margin: int, multiple: int, size: int) -> tuple[int, int]:
    start, end = max(0, start - margin), min(size, end + margin)
    length = min(size, -(-(end - start) // multiple) * multiple)
    end = min(size, start + length)
    return end - length, end


def cover(
    gains: NDArray[np.int64], price: float, block_px: int, margin: int, height: int, width: int
) -> list[BlockWindow]:
    """Returns windows, without margins, whose gain exceeds their cost.

    Blocks that gain more than the cost of their own area are the first windows. Two windows are joined if this
    increases the sum of gains minus costs: neighbours share margins, and one call is cheaper than two.

    Args:
        gains: (rows, columns), px that each block gains when it is computed again.
        price: gained px per px that a network sees, above 0. A window costs the price of its area, grown by the margins
            to a multiple of a block, and of `CALL_PX`.
        block_px: side of a block; those of the last row and column may be cut off by the image.
        margin: around a window, px.
        height: of the image, px.
        width: of the image, px.
    """
    sums = np.pad(gains.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0))).tolist()

    def gain(window: BlockWindow | None) -> float:
        if window is None:
            return 0.0
        rows, columns = window.blocks(block_px)
        above, below = sums[rows.start], sums[rows.stop]
        gained: float = below[columns.stop] - above[columns.stop] - below[columns.start] + above[columns.start]
        return gained

    @cache
    def worth(window: BlockWindow) -> float:
        return gain(window) - price * (window.grown(margin, block_px, height, width).px + CALL_PX)

    def more(one: BlockWindow, other: BlockWindow) -> float:
        return worth(one.joined(other)) - worth(one) - worth(other) + gain(one.shared(other))

    windows = [
        BlockWindow(r * block_px, min((r + 1) * block_px, height), c * block_px, min((c + 1) * block_px, width))
        for r, c in np.argwhere(gains >= price * block_px**2).tolist()
    ]
    waiting = list(windows)
    while waiting:
        one = waiting.pop()
        others = [other for other in windows if other != one]
        if one in windows and others and more(one, best := max(others, key=partial(more, one))) >= 0:
            both = one.joined(best)
            windows = [*(other for other in others if other not in (best, both)), both]
            waiting.append(both)
    return [window for window in windows if worth(window) > 0]
