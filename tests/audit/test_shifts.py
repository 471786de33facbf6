"""The shift of a block: found where it is clear, and only then trusted."""

import math

import cv2
import numpy as np
import pytest

from kit.audit.shifts import FEWEST, REACH_M, STEP_M, Shift, contrast_at, find_shift, surface

SIDE = 400  # 80 m
AROUND = math.ceil(REACH_M / STEP_M)


def block(count: int, moved_m: tuple[float, float], noise: float = 0.0, seed: int = 0) -> tuple[Shift, np.ndarray]:
    """Returns the shift found for square houses whose labels were moved, and the surfaces."""
    random = np.random.default_rng(seed)
    houses = [(int(x), int(y)) for x in range(60, 330, 80) for y in range(60, 330, 80)][:count]
    probability = np.zeros((SIDE, SIDE), np.float32)
    for x, y in houses:
        probability[y : y + 40, x : x + 50] = 1
    probability = cv2.GaussianBlur(probability, (0, 0), 2)
    grain = cv2.GaussianBlur(random.normal(size=probability.shape).astype(np.float32), (0, 0), 5)
    probability = np.clip(probability + noise * grain / grain.std(), 0, 1).astype(np.float32)
    padded = np.pad(probability, AROUND)
    column, row = round(moved_m[0] / STEP_M), round(-moved_m[1] / STEP_M)
    surfaces = []
    for x, y in houses:
        label = np.zeros((70, 80), bool)
        label[15:55, 15:65] = True
        top, left = y - 15 + row + AROUND, x - 15 + column + AROUND
        around = padded[top - AROUND : top + 70 + AROUND, left - AROUND : left + 80 + AROUND]
        surfaces.append(surface(label, np.zeros_like(label), np.ascontiguousarray(around), STEP_M))
    stack = np.stack(surfaces) if surfaces else np.zeros((0, 1, 1), np.float32)
    return find_shift(stack, np.ones(len(surfaces)), STEP_M), stack


@pytest.mark.parametrize("moved", [(0.0, 0.0), (1.4, -2.0), (-3.0, 0.2), (2.0, 2.0)])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_shift_is_undone(moved: tuple[float, float], noise: float):
    shift, _ = block(12, moved, noise)
    assert shift.trusted, shift.reason
    assert math.hypot(shift.x_m + moved[0], shift.y_m + moved[1]) < 0.15
    assert shift.sigma_m is not None
    assert shift.sigma_m < 0.2


def test_noise_raises_the_standard_error():
    clear, noisy = (block(12, (1.0, 1.0), noise)[0].sigma_m for noise in (0.05, 0.6))
    assert clear is not None
    assert noisy is not None
    assert clear < noisy


def test_few_buildings_are_not_trusted():
    shift, _ = block(FEWEST - 1, (1.0, 0.0))
    assert not shift.trusted
    assert shift.reason == "3 buildings, at least 4 are needed"
    assert shift.x_m == pytest.approx(-1.0, abs=0.1)


def test_no_building():
    shift, _ = block(0, (0.0, 0.0))
    assert (shift.trusted, shift.reason, shift.x_m, shift.sigma_m) == (False, "no building", 0.0, None)


@pytest.mark.parametrize("far_m", [5.0, 7.0])
def test_labels_far_beyond_3_m_are_not_alignable(far_m: float):
    shift, _ = block(12, (far_m, 0.0))
    assert not shift.trusted
    assert shift.reason.startswith("not alignable")


def test_labels_of_another_place_are_not_alignable():
    random = np.random.default_rng(1)
    surfaces = random.normal(0, 0.05, (12, 2 * AROUND + 1, 2 * AROUND + 1)).astype(np.float32)
    shift = find_shift(surfaces, np.ones(12), STEP_M)
    assert not shift.trusted
    assert shift.reason.startswith("not alignable")


def test_what_others_cover_is_no_ground():
    inside, others = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    inside[20:40, 20:30], others[20:40, 32:50] = True, True
    probability = np.zeros((60 + 2 * AROUND, 60 + 2 * AROUND), np.float32)
    probability[AROUND : AROUND + 60, AROUND : AROUND + 60][inside | others] = 1
    alone = surface(inside, np.zeros_like(others), probability, STEP_M)[AROUND, AROUND]
    beside = surface(inside, others, probability, STEP_M)[AROUND, AROUND]
    assert alone < beside == pytest.approx(1.0, abs=1e-4)


def test_the_contrast_of_one_building():
    _, surfaces = block(12, (1.0, 0.0))
    assert contrast_at(surfaces[0], -1.0, 0.0, STEP_M) > contrast_at(surfaces[0], 1.0, 0.0, STEP_M)
