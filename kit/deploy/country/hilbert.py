"""The Hilbert curve over the world: sorts places so that neighbours in the file are neighbours on the ground."""

import numpy as np
import shapely
from numpy.typing import NDArray

BITS = 26  # along each axis: half a metre at the equator


def hilbert_keys(polygons: NDArray[np.object_]) -> NDArray[np.int64]:
    """Returns where the middle of each polygon's bounds, in degrees, lies on the curve, (n,)."""
    left, bottom, right, top = shapely.bounds(polygons).T
    size = 1 << BITS
    x = np.clip(((left + right) / 2 + 180) / 360 * size, 0, size - 1).astype(np.int64)
    y = np.clip(((bottom + top) / 2 + 90) / 180 * size, 0, size - 1).astype(np.int64)
    return distance(x, y, BITS)


def distance(x: NDArray[np.int64], y: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Returns the distance along the Hilbert curve of cells of a grid, (n,).

    Args:
        x: columns, 0 to 2**bits - 1.
        y: rows, likewise.
        bits: along each axis.

    Source:
        The usual loop over quadrants: https://en.wikipedia.org/wiki/Hilbert_curve
    """
    x, y, total = x.copy(), y.copy(), np.zeros_like(x)
    for level in range(bits - 1, -1, -1):
        half = np.int64(1) << level
        right, upper = (x & half) > 0, (y & half) > 0
        total += half * half * ((3 * right) ^ upper.astype(np.int64))
        x, y = x & (half - 1), y & (half - 1)
        turned = ~upper & right
        x[turned], y[turned] = half - 1 - x[turned], half - 1 - y[turned]
        x[~upper], y[~upper] = y[~upper], x[~upper].copy()
    return total
