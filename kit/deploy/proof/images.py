"""Test images for `kit verify`, drawn with integer arithmetic: the same bytes on every machine, so none is stored.

Weights files contain checksums of these images. If the bytes changed, existing weights could not be verified.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUND = ((112, 84, 60), (96, 104, 62), (158, 138, 108))  # earth; grass and sand blend into it
ROOFS = ((186, 182, 176), (142, 70, 52), (214, 212, 206), (92, 100, 112), (150, 112, 80))
DIRECTIONS = ((1, 0, 1), (4, 3, 5), (12, 5, 13), (3, 4, 5))  # x, y and length of a house's axis, all integers
LENGTHS_PX, WIDTHS_PX = (8, 40), (6, 24)  # half the sides: 1 to 12 m at 0.15 m a pixel
GROUND_PX_PER_HOUSE = 5000
SHADOW_PX = 4


@dataclass(frozen=True)
class Case:
    """One drawn image and what is run on it."""

    height_px: int  # of the image; width_px likewise
    width_px: int
    channels: int = 3  # 3 (RGB) or 4 (RGBA)
    core: bool = False  # one network and one view instead of the ensemble with all of them

    def __str__(self) -> str:
        bands = "RGB" if self.channels == 3 else "RGBA"
        return f"{self.width_px} x {self.height_px} {bands}{', core 0 in one view' * self.core}"

    def image(self) -> NDArray[np.uint8]:
        """Returns the image, uint8 (H, W, C)."""
        return draw(self.height_px, self.width_px, self.channels)


SMALL_CASES = (Case(33, 33), Case(64, 64))
# Up to the size of the challenge's chips with all networks and views: 1.4 million pixels a network and view, twice an
# export. The largest image runs through one network alone.
CASES = (*SMALL_CASES, Case(190, 257, channels=4), Case(512, 512), Case(1024, 1024), Case(2048, 2048, core=True))


def draw(height_px: int, width_px: int, channels: int = 3) -> NDArray[np.uint8]:
    """Returns ground with houses, uint8 (H, W, 3 or 4): RGB, and an alpha that is 0 in one corner and else 255."""
    canvas = np.empty((height_px, width_px, 3), np.int32)
    grass, sand = (_noise(height_px, width_px, 64, seed) for seed in (1, 2))
    for band, (earth, green, dry) in enumerate(zip(*GROUND, strict=True)):
        canvas[..., band] = earth + (green - earth) * grass // 255 + (dry - earth) * sand // 510
    canvas += ((_noise(height_px, width_px, 16, 3) - 128) // 4)[..., None]
    _build(canvas)
    for seed, (cell_px, share) in enumerate(((4, 12), (1, 16)), 4):
        canvas += ((_noise(height_px, width_px, cell_px, seed) - 128) // share)[..., None]
    image = canvas.clip(0, 255).astype(np.uint8)
    if channels == 3:
        return image
    rows, columns = np.ogrid[:height_px, :width_px]
    alpha = np.where(3 * columns + 5 * rows < width_px, 0, 255).astype(np.uint8)
    return np.dstack([image, alpha])


def some_of(pixels: int, count: int) -> NDArray[np.int64]:
    """Returns the places of at most `count` pixels of an image: random, but always the same."""
    if pixels <= count:
        return np.arange(pixels)
    return np.unique(_hashed(count, 6) % pixels).astype(np.int64)


def _build(canvas: NDArray[np.int32]) -> None:
    """Paints houses with shadows and two roof facets into a canvas (H, W, 3)."""
    height_px, width_px = canvas.shape[:2]
    houses = height_px * width_px // GROUND_PX_PER_HOUSE + 1
    for x, y, length, width, direction, roof in _hashed(6 * houses, 7).reshape(houses, 6).tolist():
        x, y = x % width_px, y % height_px
        sides_px = _within(length, LENGTHS_PX), _within(width, WIDTHS_PX)
        axis = DIRECTIONS[direction % len(DIRECTIONS)]
        ground, covered, _ = _outline(canvas, x + SHADOW_PX, y + SHADOW_PX, sides_px, axis)
        ground[covered] = ground[covered] * 2 // 5
        ground, covered, lit = _outline(canvas, x, y, sides_px, axis)
        colour = np.array(ROOFS[roof % len(ROOFS)], np.int32)
        ground[covered & lit], ground[covered & ~lit] = colour * 9 // 8, colour * 7 // 8


def _outline(
    canvas: NDArray[np.int32], x: int, y: int, sides_px: tuple[int, int], axis: tuple[int, int, int]
) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns the part of the canvas around a house (a view), where the house covers it, and the facet in the sun.

    Args:
        canvas: (H, W, 3).
        x: of the centre, px; y likewise.
        sides_px: half the length and half the width.
        axis: one of `DIRECTIONS`.
    """
    reach = sum(sides_px)
    left, top = max(0, x - reach), max(0, y - reach)
    part = canvas[top : y + reach + 1, left : x + reach + 1]
    rows, columns = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
    right, down, unit = axis
    along, across = (columns - x) * right + (rows - y) * down, (rows - y) * right - (columns - x) * down
    covered = (abs(along) <= sides_px[0] * unit) & (abs(across) <= sides_px[1] * unit)
    return part, covered, across < 0


def _noise(height_px: int, width_px: int, cell_px: int, seed: int) -> NDArray[np.int32]:
    """Returns smooth noise, (H, W), 0..255: random at the corners of cells, interpolated between them."""
    rows, columns = height_px // cell_px + 2, width_px // cell_px + 2
    corners = (_hashed(rows * columns, seed) % 256).astype(np.int32).reshape(rows, columns)
    left, right = np.divmod(np.arange(width_px, dtype=np.int32), cell_px)
    wide = corners[:, left] * (cell_px - right) + corners[:, left + 1] * right  # (rows, W)
    top, below = np.divmod(np.arange(height_px, dtype=np.int32)[:, None], cell_px)
    noise: NDArray[np.int32] = (wide[top[:, 0]] * (cell_px - below) + wide[top[:, 0] + 1] * below) // cell_px**2
    return noise


def _within(chance: int, limits: tuple[int, int]) -> int:
    """Returns a whole number between two limits, both included."""
    return limits[0] + chance % (limits[1] - limits[0] + 1)


def _hashed(count: int, seed: int) -> NDArray[np.uint64]:
    """Returns random 64-bit numbers; numpy's own generators may change with its version.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014 (SplitMix64).
    """
    x = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
