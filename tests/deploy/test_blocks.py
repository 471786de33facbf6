import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kit.deploy.adaptive import blocks as blocks_module
from kit.deploy.adaptive.blocks import CALL_PX, Window, cover

SIDE, MARGIN = 32, 16


@given(arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 5))), st.integers(0, 31), st.integers(0, 31))
def test_all_chosen_blocks_are_covered_and_it_costs_no_more_than_one_by_one(blocks: np.ndarray, below: int, right: int):
    height, width = blocks.shape[0] * SIDE - below, blocks.shape[1] * SIDE - right
    windows = cover(blocks, SIDE, MARGIN, height, width)
    covered = np.zeros((height, width), int)
    for window in windows:
        assert 0 <= window.top < window.bottom <= height
        assert 0 <= window.left < window.right <= width
        covered[window.top : window.bottom, window.left : window.right] += 1
    chosen = np.kron(blocks, np.ones((SIDE, SIDE), bool))[:height, :width]
    assert covered[chosen].all()
    single = [cover(one, SIDE, MARGIN, height, width) for one in ones_of(blocks)]
    alone = [window for (window,) in single]
    cost, cost_alone = (
        sum(window.grown(MARGIN, SIDE, height, width).px + CALL_PX for window in each) for each in (windows, alone)
    )
    assert cost <= cost_alone


def ones_of(blocks: np.ndarray) -> list[np.ndarray]:
    ones = []
    for row, column in np.argwhere(blocks):
        one = np.zeros_like(blocks)
        one[row, column] = True
        ones.append(one)
    return ones


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([[0, 0], [0, 0]], []),
        ([[1, 1], [1, 1]], [Window(0, 64, 0, 64)]),
        ([[1, 1], [0, 0]], [Window(0, 32, 0, 64)]),
        ([[1, 0], [0, 1]], [Window(0, 64, 0, 64)]),  # with their margins they would overlap
        ([[1, 0, 0, 0, 1]], [Window(0, 32, 0, 32), Window(0, 32, 128, 160)]),
    ],
)
def test_windows_are_joined_where_it_pays(
    blocks: list[list[int]], expected: list[Window], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocks_module, "CALL_PX", 0)
    chosen = np.array(blocks, bool)
    height, width = chosen.shape[0] * SIDE, chosen.shape[1] * SIDE
    assert sorted(cover(chosen, SIDE, MARGIN, height, width), key=str) == sorted(expected, key=str)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (Window(32, 64, 32, 96), Window(16, 80, 16, 112)),
        (Window(0, 32, 128, 160), Window(0, 64, 96, 160)),  # at a corner: grown inwards
        (Window(0, 96, 0, 160), Window(0, 100, 0, 160)),  # all there is
    ],
)
def test_windows_grow_to_few_sizes(window: Window, expected: Window):
    assert window.grown(MARGIN, SIDE, 100, 160) == expected


def test_windows_are_joined_where_one_call_is_cheaper_than_two(monkeypatch: pytest.MonkeyPatch):
    apart = np.array([[True, False, False, False, True]])
    for call_px, count in ((0, 2), (SIDE * SIDE * 4, 1)):
        monkeypatch.setattr(blocks_module, "CALL_PX", call_px)
        assert len(cover(apart, SIDE, MARGIN, SIDE, SIDE * 5)) == count
