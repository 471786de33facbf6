"""How far the labels of a block lie off: the displacement at which they fit the predicted probability best.

For each building, the mean probability inside its outline less that in a ring around it is computed at every
displacement up to `REACH_M`. The displacement at which the mean over a block's buildings is largest, refined by a
parabola, is the shift; its standard error comes from resampling the buildings (bootstrap).

Source: Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7, 1979.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["FEWEST", "REACH_M", "RING_M", "STEP_M", "Shift", "Surface", "contrast_at", "find_shift", "surface"]

STEP_M = 0.2  # of displacements; the prediction is resampled to it
REACH_M = 8.0  # the largest displacement tried
MOST_SHIFT_M = 3.3  # beyond it, labels are not alignable
RING_M = 2.0  # width of the ring around an outline
FEWEST = 4  # buildings of a block that can be trusted
MOST_SIGMA_M = 0.4  # of a block that can be trusted
LEAST_CONTRAST = 0.2  # of the fit: mean probability inside less that of the ring
RESAMPLES = 50
FARTHER = 1.25  # a fit beyond `MOST_SHIFT_M` counts where it is better by this factor

Surface = NDArray[np.float32]  # (2 n + 1, 2 n + 1): contrast by displacement, rows from north to south


@dataclass(frozen=True)
class Shift:
    """The shift of some buildings."""

    x_m: float = 0.0  # to the right
    y_m: float = 0.0  # up
    sigma_m: float | None = None  # standard error along one axis; None where there are too few buildings for one
    trusted: bool = False  # whether it is clear
    reason: str = ""  # why it is not


def surface(
    inside: NDArray[np.bool_], others: NDArray[np.bool_], probability: NDArray[np.float32], step_m: float
) -> Surface:
    """Returns a building's contrast at each displacement up to `REACH_M`.

    Args:
        inside: (h, w), where its outline is; the ring around it lies within, too.
        others: (h, w), where other labels are: they count as neither.
        probability: (h + 2 n, w + 2 n) with n steps around.
        step_m: size of a pixel.
    """
    width = 2 * math.ceil(RING_M / step_m) + 1
    ring = cv2.dilate(inside.astype(np.uint8), np.ones((width, width), np.uint8)).astype(bool) & ~inside & ~others
    template = inside / max(1, inside.sum()) - ring / max(1, ring.sum())
    correlation = cv2.matchTemplate(probability, template.astype(np.float32), cv2.TM_CCORR)
    return np.asarray(correlation, np.float32)


def find_shift(surfaces: NDArray[np.float32], weights: NDArray[np.float64], step_m: float) -> Shift:
    """Returns the shift of a block's buildings.

    Args:
        surfaces: (n, side, side), see `surface`.
        weights: of the buildings, (n,).
        step_m: between displacements.
    """
    count = len(surfaces)
    if not count:
        return Shift(reason="no building")
    mean = np.tensordot(weights / weights.sum(), surfaces, 1)
    far = _distances(len(mean), step_m) > MOST_SHIFT_M
    row, column = _peak(np.where(far, -np.inf, mean))
    y_m, x_m = -row * step_m, column * step_m
    contrast = float(np.where(far, -np.inf, mean).max())
    if count < FEWEST:
        return Shift(x_m, y_m, None, False, f"{count} building{'s' * (count != 1)}, at least {FEWEST} are needed")
    resampled = np.random.default_rng(count).multinomial(count, weights / weights.sum(), RESAMPLES)
    peaks = np.array([_peak(np.where(far, -np.inf, np.tensordot(draw / count, surfaces, 1))) for draw in resampled])
    sigma_m = float(np.sqrt(peaks.var(axis=0).mean())) * step_m
    reason = ""
    if far.any() and mean[far].max() > max(FARTHER * contrast, LEAST_CONTRAST):
        row, column = _peak(np.where(far, mean, -np.inf))
        reason = f"not alignable: the labels fit best {math.hypot(row, column) * step_m:.1f} m away"
    elif contrast < LEAST_CONTRAST:
        reason = "not alignable: the labels fit the prediction nowhere within 3 m"
    elif sigma_m > MOST_SIGMA_M:
        reason = f"no clear optimum: the shift is known to {sigma_m:.1f} m"
    elif math.hypot(x_m, y_m) > MOST_SHIFT_M - step_m:
        reason = "not alignable: the labels lie 3 m off or more"
    return Shift(x_m, y_m, sigma_m, not reason, reason)


def contrast_at(surface: Surface, x_m: float, y_m: float, step_m: float) -> float:
    """Returns a building's contrast at the displacement nearest to (x_m, y_m)."""
    middle = len(surface) // 2
    return float(surface[round(middle - y_m / step_m), round(middle + x_m / step_m)])


def _distances(side: int, step_m: float) -> NDArray[np.float64]:
    """Returns how far each displacement of a surface is, metres, (side, side)."""
    from_middle = (np.arange(side) - side // 2) * step_m
    distances: NDArray[np.float64] = np.hypot(from_middle[:, None], from_middle)
    return distances


def _peak(values: NDArray[np.floating]) -> tuple[float, float]:
    """Returns row and column of the largest value, counted from the middle, refined by a parabola along each axis."""
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    middle = len(values) // 2
    return (
        float(row - middle + _refined(values[max(0, row - 1) : row + 2, column])),
        float(column - middle + _refined(values[row, max(0, column - 1) : column + 2])),
    )


def _refined(near: NDArray[np.floating]) -> float:
    """Returns the top of a parabola through three values, counted from the middle one, -0.5 to 0.5."""
    if len(near) < 3 or not np.isfinite(near).all():
        return 0.0
    curvature = 2 * near[1] - near[0] - near[2]
    return float((near[2] - near[0]) / (2 * curvature)) if curvature > 0 else 0.0
