"""Pixels at another resolution: a pixel has the same value whichever window it is computed in."""

import math

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]  # first pixel, and the one after the last


def reach(start: int, stop: int, scale: float, size: int) -> Span:
    """Returns the pixels of a source that the target's pixels from `start` to `stop` are computed from.

    Args:
        start: first pixel of the target.
        stop: the one after its last.
        scale: size of a target's pixel in pixels of the source.
        size: of the source, px.
    """
    radius = max(1.0, scale)
    first, last = (start + 0.5) * scale - 0.5 - radius, (stop - 0.5) * scale - 0.5 + radius
    return max(0, math.floor(first)), min(size, math.ceil(last) + 1)


def resample(
    pixels: NDArray[np.uint8], given: tuple[Span, Span], target: tuple[Span, Span], scale: tuple[float, float],
    size: tuple[int, int],
) -> NDArray[np.float32]:  # fmt: skip
    """Returns pixels at another resolution, float32 (h, w, C): bilinear, and averaged where pixels grow, as GDAL does.

    Args:
        pixels: of the source, uint8 (H, W, C).
        given: rows and columns of the source that `pixels` holds: at least what `reach` returns.
        target: rows and columns to compute.
        scale: size of a target's pixel in pixels of the source: down, across.
        size: height and width of the source.
    """
    down = _along(pixels, given[0][0], target[0], scale[0], size[0])
    across = _along(down.swapaxes(0, 1), given[1][0], target[1], scale[1], size[1])
    return across.swapaxes(0, 1)


def _along(
    pixels: NDArray[np.uint8] | NDArray[np.float32], first: int, target: Span, scale: float, size: int
) -> NDArray[np.float32]:
    """Resamples the first axis; `pixels` begins with the source's pixel `first`.

    Each pixel is a mean weighted by a triangle around its centre. The weights, and the order in which they are added,
    depend on the pixel's position alone.
    """
    radius = max(1.0, scale)
    centres = (np.arange(*target) + 0.5) * scale - 0.5
    taps = np.floor(centres - radius).astype(np.int64)[:, None] + np.arange(math.ceil(2 * radius) + 2)  # (n, K)
    weights = np.maximum(0, 1 - np.abs(taps - centres[:, None]) / radius) * ((taps >= 0) & (taps < size))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    total = np.zeros((len(centres), *pixels.shape[1:]), np.float32)
    for tap, weight in zip(np.clip(taps - first, 0, len(pixels) - 1).T, weights.T, strict=True):
        if weight.any():
            total += pixels[tap] * weight[:, None, None]
    return total
