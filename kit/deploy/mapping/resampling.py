"""Pixels at another resolution: each one is the same whatever window it is computed in."""

import math

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]  # the first pixel, and the one behind the last


def reach(start: int, stop: int, scale: float, size: int) -> Span:
    """Returns which pixels of a source, of `size` px, those from `start` to `stop` are made of, at `scale` px each."""
    radius = max(1.0, scale)
    first, last = (start + 0.5) * scale - 0.5 - radius, (stop - 0.5) * scale - 0.5 + radius
    return max(0, math.floor(first)), min(size, math.ceil(last) + 1)


def resample(
    pixels: NDArray[np.uint8], seen: tuple[Span, Span], wanted: tuple[Span, Span], scale: tuple[float, float],
    size: tuple[int, int],
) -> NDArray[np.float32]:  # fmt: skip
    """Returns pixels at another resolution, (h, w, C) float32: bilinear, smoothed where pixels grow, as GDAL does.

    Args:
        pixels: uint8 (H, W, C), of the source.
        seen: rows and columns of the source that they are: at least what `reach` tells.
        wanted: rows and columns to be made.
        scale: pixels of the source to one that is made, down and across.
        size: height and width of the source.
    """
    down = _along(pixels, seen[0][0], *wanted[0], scale[0], size[0])
    across = _along(down.swapaxes(0, 1), seen[1][0], *wanted[1], scale[1], size[1])
    return across.swapaxes(0, 1)


def _along(
    pixels: NDArray[np.uint8] | NDArray[np.float32], first: int, start: int, stop: int, scale: float, size: int
) -> NDArray[np.float32]:
    """Returns the pixels from `start` to `stop` along the first axis, of those that begin with `first`.

    Each is a mean weighted by a triangle around its centre. Its weights, and the order in which they are added, depend
    on where it lies alone.
    """
    radius = max(1.0, scale)
    centres = (np.arange(start, stop) + 0.5) * scale - 0.5
    taps = np.floor(centres - radius).astype(np.int64)[:, None] + np.arange(math.ceil(2 * radius) + 2)  # (n, K)
    weights = np.maximum(0, 1 - np.abs(taps - centres[:, None]) / radius) * ((taps >= 0) & (taps < size))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    made = np.zeros((stop - start, *pixels.shape[1:]), np.float32)
    for tap, weight in zip(np.clip(taps - first, 0, len(pixels) - 1).T, weights.T, strict=True):
        if weight.any():
            made += pixels[tap] * weight[:, None, None]
    return made
