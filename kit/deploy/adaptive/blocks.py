"""Blocks of an image that are to be computed again, as few windows as pays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CALL_PX = 256 * 256  # what a call of a network costs beside the pixels it sees


@dataclass(frozen=True)
class Window:
    """A rectangle of an image in px: rows `top` to `bottom`, columns `left` to `right`, the ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def px(self) -> int:
        """Its area."""
        return (self.bottom - self.top) * (self.right - self.left)

    def joined(self, other: "Window") -> "Window":
        """Returns the smallest window that holds both."""
        return Window(
            min(self.top, other.top), max(self.bottom, other.bottom),
            min(self.left, other.left), max(self.right, other.right),
        )  # fmt: skip

    def grown(self, margin: int, multiple: int, height: int, width: int) -> "Window":
        """Returns the window with a margin, or more, on each side, within an image of that size.

        Its sides are multiples of `multiple`, or all of the image's.
        """
        rows = _grown(self.top, self.bottom, margin, multiple, height)
        return Window(*rows, *_grown(self.left, self.right, margin, multiple, width))


def _grown(start: int, end: int, margin: int, multiple: int, size: int) -> tuple[int, int]:
    start, end = max(0, start - margin), min(size, end + margin)
    length = min(size, -(-(end - start) // multiple) * multiple)
    end = min(size, start + length)
    return end - length, end


def cover(blocks: NDArray[np.bool_], block_px: int, margin: int, height: int, width: int) -> list[Window]:
    """Returns windows, without their margins, that hold all chosen blocks; two become one where that costs no more.

    Cost is the area that a network sees, windows grown by their margins to multiples of a block, and `CALL_PX` each.

    Args:
        blocks: (rows, columns), which are chosen.
        block_px: their side; those of the last row and column may be cut by the image.
        margin: px around a window.
        height: of the image.
        width: of it.
    """

    def cost(window: Window) -> int:
        return window.grown(margin, block_px, height, width).px + CALL_PX

    windows = [
        Window(r * block_px, min((r + 1) * block_px, height), c * block_px, min((c + 1) * block_px, width))
        for r, c in np.argwhere(blocks).tolist()
    ]
    joining = True
    while joining:
        joining = False
        for number, one in enumerate(windows):
            others = windows[:number] + windows[number + 1 :]
            saved, best = max(
                ((cost(one) + cost(other) - cost(one.joined(other)), other) for other in others),
                key=lambda pair: pair[0], default=(-1, one),
            )  # fmt: skip
            if saved >= 0:
                others.remove(best)
                windows, joining = [*others, one.joined(best)], True
                break
    return windows
