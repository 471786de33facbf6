"""Whether masks sit on the roofs: how far their outlines agree with image edges, and after which shift they best do.

Along each outline the image is asked for an edge that runs the same way: the rate of change of colour across the
outline (Di Zenzo, "A note on the gradient of a multi-image", CVGIP 33, 1986: the structure tensor sums over the
channels). A change s counts as s / (s + q), q the tile's 90th percentile of change, so that a white roof beside a black
shadow decides hardly more than a grey one on sand. The mean over outline pixels is the agreement, 0 to 1.
Matching a moved outline with the image's edges is chamfer matching (Barrow et al., "Parametric correspondence and
chamfer matching", IJCAI 1977), here with strengths in place of distances.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray

from kit.data.masks import BUILDING, IGNORE
from kit.data.tiles.tile import read_mask
from kit.errors import DataError

SMOOTH_PX = 1.0  # sigma before the image is differentiated: a pixel's noise is no edge
NORMAL_PX = 2.0  # sigma before the mask is: the direction of a wall, not of a stair of pixels
EDGE_QUANTILE = 0.9  # outlines cover 1 to 3% of a tile: nearly all edges of roofs lie above it, most texture below
REACH_PX = 12  # longest shift that can be asked for; outlines nearer to where imagery ends are left out

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # (H, W, 3) RGB, (H, W) mask: 0, 1, 255
Shift = tuple[int, int]  # of the mask, px: to the right, down


@dataclass(frozen=True)
class Best:
    """Where masks agree best with the image.

    Args:
        dx: px that the masks would have to move to the right.
        dy: likewise, down.
        agreement: there, 0 to 1.
        gain: over the agreement where the masks are.
        n_px: outline pixels asked.
    """

    dx: int
    dy: int
    agreement: float
    gain: float
    n_px: int


def read_pair(image: Path | str, mask: Path | str) -> Pair:
    """Returns a tile's image and mask from their files."""
    with rasterio.open(image) as source:
        rgb = cv2.merge(list(source.read((1, 2, 3))))  # (H, W, 3)
    return rgb.astype(np.uint8, copy=False), read_mask(Path(mask))


def agreement(image: NDArray[np.uint8], mask: NDArray[np.uint8], shift: Shift = (0, 0)) -> float:
    """Returns how far a mask's outlines lie on image edges after a shift, 0 to 1; nan of a mask without outlines."""
    return float(agreements([(image, mask)], [shift])[0])


def agreements(pairs: Iterable[Pair], shifts: Sequence[Shift]) -> NDArray[np.float64]:
    """Returns the agreement of all outlines of some tiles, after each shift, (len(shifts),); nan without outlines.

    The same outline pixels are asked after each shift, so that the numbers can be compared.

    Raises:
        DataError: a shift is longer than `REACH_PX` along a side.
    """
    sums, n_px = _sums(pairs, shifts)
    return sums / n_px if n_px else np.full(len(shifts), np.nan)


def best_shift(pairs: Iterable[Pair], reach_px: int = 6) -> Best | None:
    """Returns the whole-pixel shift of at most `reach_px` either way that agrees best, or None without outlines.

    It takes many outlines: a single building often agrees better with a neighbouring edge (benchmarks/README.md).

    Raises:
        DataError: the reach is beyond `REACH_PX`.
    """
    steps = range(-reach_px, reach_px + 1)
    shifts = sorted(((dx, dy) for dx in steps for dy in steps), key=lambda shift: np.hypot(*shift))  # none is first
    sums, n_px = _sums(pairs, shifts)
    if not n_px:
        return None
    best = int(sums.argmax())
    return Best(*shifts[best], float(sums[best] / n_px), float((sums[best] - sums[0]) / n_px), n_px)


def ring(length_px: int) -> list[Shift]:
    """Returns the whole-pixel shifts so long or less than 1 px longer: 20 directions for 3 px, more beyond."""
    steps = range(-length_px, length_px + 1)
    return [(dx, dy) for dx in steps for dy in steps if length_px <= np.hypot(dx, dy) < length_px + 1]


def _sums(pairs: Iterable[Pair], shifts: Sequence[Shift]) -> tuple[NDArray[np.float64], int]:
    """Returns the strengths under all outlines, summed per shift, and the number of outline pixels."""
    longest = max((max(abs(dx), abs(dy)) for dx, dy in shifts), default=0)
    if longest > REACH_PX:
        raise DataError(f"a shift of {longest} px along a side", f"expected {REACH_PX} px at most")
    sums, n_px = np.zeros(len(shifts)), 0
    for image, mask in pairs:
        rows, columns, normals = _outline(mask)
        if not len(rows):
            continue
        tensor, half = _structure(image, mask != IGNORE)
        n_px += len(rows)
        for number, (dx, dy) in enumerate(shifts):
            across = (tensor[rows + dy, columns + dx] * normals).sum(1)
            change = np.sqrt(np.maximum(across, 0))
            sums[number] += (change / (change + half)).sum()
    return sums, n_px


def _outline(mask: NDArray[np.uint8]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Returns rows and columns (N,) of the pixels on both sides of outlines, and (N, 3) (nx^2, 2 nx ny, ny^2) there.

    A tile's border, and that of its imagery, are no outlines; what lies within reach of them is left out.
    """
    building = (mask == BUILDING).astype(np.uint8)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    side = 2 * (REACH_PX + 1) + 1
    known = np.pad((mask != IGNORE).astype(np.uint8), 1)
    inner = cv2.erode(known, np.ones((side, side), np.uint8))[1:-1, 1:-1] > 0
    rows, columns = np.nonzero((cv2.morphologyEx(building, cv2.MORPH_GRADIENT, cross) > 0) & inner)
    smooth = cv2.GaussianBlur(building.astype(np.float32), (0, 0), NORMAL_PX)
    nx, ny = (slope[rows, columns] for slope in _slopes(smooth))
    length = np.maximum(np.hypot(nx, ny), 1e-6)  # none in the middle of a symmetric shape: it then asks for no edge
    nx, ny = nx / length, ny / length
    return rows, columns, np.stack([nx * nx, 2 * nx * ny, ny * ny], axis=1)


def _structure(image: NDArray[np.uint8], valid: NDArray[np.bool_]) -> tuple[NDArray[np.float32], float]:
    """Returns the structure tensor (H, W, 3) (xx, xy, yy), and the change of colour that counts as half an edge."""
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), SMOOTH_PX)
    x, y = _slopes(smooth)
    tensor = np.stack([(x * x).sum(2), (x * y).sum(2), (y * y).sum(2)], axis=2)
    strength = np.sqrt((tensor[..., 0] + tensor[..., 2])[valid])
    return tensor, max(float(np.quantile(strength, EDGE_QUANTILE)), 1e-6)


def _slopes(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the derivatives to the right and down."""
    return cv2.Scharr(array, cv2.CV_32F, 1, 0), cv2.Scharr(array, cv2.CV_32F, 0, 1)
