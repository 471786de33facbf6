"""Probabilities of overlapping windows added up in whole numbers: where windows agree, nothing is lost.

A probability p is kept as 255 p + 0.5 in 256ths, cut off; its whole part is p as a byte, rounded. The weights of the
windows over a pixel add up to 2**16, so that a sum is at most 255.5 x 2**24 and fits into 32 bits, and the byte of a
blended pixel is the sum's highest.
"""

import numpy as np
from numpy.typing import NDArray

from kit.deploy.mapping.windows import Axis

LEVELS = 255  # a probability of 1
FRACTION = 256


def fixed(probability: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Returns probabilities, 0..1, as numbers that can be added up."""
    return ((probability.astype(np.float64) * LEVELS + 0.5) * FRACTION).astype(np.uint32)


def as_levels(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Returns probabilities, 0..1, as bytes, 0 to 255: what any blend of equal ones gives."""
    return (fixed(probability) // FRACTION).astype(np.uint8)


class Band:
    """The sum of a row of windows, to which the windows above have added theirs.

    Args:
        rows: windows along the columns of the grid.
        columns: windows along its rows.
        index: of the row of windows.
        carried: what the row above has left for this one, uint32 (shared, W).
    """

    def __init__(self, rows: Axis, columns: Axis, index: int, carried: NDArray[np.uint32] | None) -> None:
        self.rows, self.columns, self.index = rows, columns, index
        self.sums = np.zeros((rows.side_px, columns.size_px), np.uint32)
        if carried is not None:
            self.sums[: len(carried)] = carried

    def add(self, column: int, probability: NDArray[np.float32]) -> None:
        """Adds a window's probability, (side, side) float32, 0..1."""
        start, stop = self.columns.span(column)
        weights = self.rows.weights(self.index)[:, None] * self.columns.weights(column)
        self.sums[:, start:stop] += fixed(probability) * weights

    def finished(self) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
        """Returns the rows that no window below adds to, as bytes, (h, W), and what is left for the next band."""
        done = self.rows.edges[self.index + 1] - self.rows.edges[self.index]
        return (self.sums[:done] >> 24).astype(np.uint8), self.sums[done:]
