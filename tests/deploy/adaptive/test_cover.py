from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kit.deploy.adaptive import cover as room
from kit.deploy.adaptive.cover import CALL_PX, BlockWindow, cover

SIDE, MARGIN = 32, 16
ALL = SIDE * SIDE


def worth(windows: list[BlockWindow], gains: np.ndarray, price: float, height: int, width: int) -> float:
    """What windows gain, each block once, less what they cost."""
    seen = sum(window.grown(MARGIN, SIDE, height, width).px + CALL_PX for window in windows)
    return gains[covered(windows, gains.shape)].sum() - price * seen


def covered(windows: list[BlockWindow], shape: tuple[int, ...]) -> np.ndarray:
    found = np.zeros(shape, bool)
    for window in windows:
        assert window.top % SIDE == window.left % SIDE == 0
        found[window.top // SIDE : -(-window.bottom // SIDE), window.left // SIDE : -(-window.right // SIDE)] = True
    return found


shares = arrays(float, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(0, 1))


@given(shares, st.floats(1e-4, 0.1), st.integers(0, 31), st.integers(0, 31))
def test_each_window_is_worth_its_cost_and_no_two_are_worth_more_as_one(
    found: np.ndarray, price: float, below: int, right: int
):
    gains = (found * ALL).astype(np.int64)
    height, width = gains.shape[0] * SIDE - below, gains.shape[1] * SIDE - right
    windows = cover(gains, price, SIDE, MARGIN, height, width)
    for window in windows:
        assert 0 <= window.top < window.bottom <= height
        assert 0 <= window.left < window.right <= width
        assert worth([window], gains, price, height, width) >= 0
    for one, other in combinations(windows, 2):
        both = worth([one.joined(other)], gains, price, height, width)
        assert both <= worth([one, other], gains, price, height, width) + 1e-6


@given(shares)
def test_where_looking_costs_next_to_nothing_all_that_gains_is_covered(found: np.ndarray):
    gains = np.ceil(found * ALL).astype(np.int64)
    windows = cover(gains, 1e-9, SIDE, MARGIN, gains.shape[0] * SIDE, gains.shape[1] * SIDE)
    assert covered(windows, gains.shape)[gains > 0].all()


LONE = BlockWindow(0, 32, 0, 32), BlockWindow(0, 32, 128, 160)


@pytest.mark.parametrize(
    ("shares", "price", "expected"),
    [
        ([[0, 0], [0, 0]], 0.1, []),
        ([[1, 1], [1, 1]], 0.1, [BlockWindow(0, 64, 0, 64)]),
        ([[1, 1], [0, 0]], 0.1, [BlockWindow(0, 32, 0, 64)]),
        ([[1, 0], [0, 1]], 0.1, [BlockWindow(0, 64, 0, 64)]),  # with their margins they would overlap
        ([[1, 0, 0, 0, 1]], 0.1, list(LONE)),
        ([[1, 0, 0, 0, 1]], 0.6, []),  # each is seen with as much again beside it
        ([[1, 0, 0, 0, 0.9]], 0.48, list(LONE[:1])),
        ([[1, 0.5, 0.5, 0.5, 1]], 0.48, [BlockWindow(0, 32, 0, 160)]),  # what lies between pays for itself
    ],
)
def test_windows_are_taken_and_joined_where_it_pays(
    shares: list[list[float]], price: float, expected: list[BlockWindow], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(room, "CALL_PX", 0)
    gains = (np.array(shares) * ALL).astype(np.int64)
    height, width = gains.shape[0] * SIDE, gains.shape[1] * SIDE
    assert sorted(cover(gains, price, SIDE, MARGIN, height, width), key=str) == sorted(expected, key=str)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (BlockWindow(32, 64, 32, 96), BlockWindow(16, 80, 16, 112)),
        (BlockWindow(0, 32, 128, 160), BlockWindow(0, 64, 96, 160)),  # at a corner: grown inwards
        (BlockWindow(0, 96, 0, 160), BlockWindow(0, 100, 0, 160)),  # all there is
    ],
)
def test_windows_grow_to_few_sizes(window: BlockWindow, expected: BlockWindow):
    assert window.grown(MARGIN, SIDE, 100, 160) == expected


def test_windows_are_joined_where_one_call_is_cheaper_than_two(monkeypatch: pytest.MonkeyPatch):
    apart = np.array([[ALL, 0, 0, 0, ALL]])
    for call_px, count in ((0, 2), (SIDE * SIDE * 4, 1)):
        monkeypatch.setattr(room, "CALL_PX", call_px)
        assert len(cover(apart, 0.05, SIDE, MARGIN, SIDE, SIDE * 5)) == count
