from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.deploy.mapping.windows import TOTAL_WEIGHT, Band, along, as_levels, check_window, fixed
from kit.errors import KitError

SIZES = st.integers(1, 900)


@settings(deadline=None, max_examples=300)
@given(SIZES, st.integers(64, 200), st.sampled_from([1, 16, 32, 64]), st.data())
def test_windows_cover_an_axis_and_their_weights_are_one(size: int, side: int, stride: int, data: st.DataObject):
    overlap = data.draw(st.integers(1, side // 4))
    axis = along(size, side, overlap, stride)
    total = np.zeros(size, int)
    for index in range(len(axis)):
        start, stop = axis.span(index)
        assert 0 <= start < stop <= size
        total[start:stop] += axis.weights(index)
    assert (total == TOTAL_WEIGHT).all()
    assert axis.side_px <= side
    assert all(later - start <= axis.side_px - overlap for start, later in pairwise(axis.starts))
    assert axis.edges[0] == 0
    assert axis.edges[-1] == size


@pytest.mark.parametrize(
    ("side", "overlap", "stride"), [(1024, 128, 64), (1024, 256, 64), (512, 64, 32), (2048, 128, 64)]
)
def test_windows_begin_where_the_network_steps(side: int, overlap: int, stride: int):
    for size in range(side, 9 * side, 203):
        axis = along(size, side, overlap, stride)
        assert not any(start % stride for start in axis.starts), size
        assert len(axis) <= len(along(size, side, overlap)) + 2


def test_windows_are_as_few_and_small_as_can_be():
    assert along(1024, 1024, 128).starts == (0,)
    assert along(1025, 1024, 128).side_px == 577
    axis = along(20_000, 1024, 128)
    assert (len(axis), axis.side_px) == (23, 992)
    axis = along(20_000, 1024, 128, 64)
    assert (len(axis), axis.side_px) == (24, 992)
    assert along(2056, 1024, 128, 64).starts == (0, 640, 1280)


def test_weights_rise_smoothly():
    rising = along(200, 128, 32).weights(1)[:32].astype(int)
    assert rising[0] <= 1
    assert rising[-1] >= TOTAL_WEIGHT - 1
    assert (np.diff(rising) >= 0).all()
    assert np.diff(rising).max() < 1.7 * TOTAL_WEIGHT / 32


@pytest.mark.parametrize(
    ("side", "overlap", "message"),
    [(32, 8, "windows of 32 px"), (128, 33, "an overlap of 33 px"), (128, 0, "an overlap of 0 px")],
)
def test_impossible_windows(side: int, overlap: int, message: str):
    with pytest.raises(KitError, match=message):
        check_window(side, overlap)


def test_levels_are_rounded_probabilities():
    probability = np.linspace(0, 1, 10_001, dtype=np.float32)
    np.testing.assert_array_equal(as_levels(probability), np.floor(probability.astype(float) * 255 + 0.5))
    assert fixed(np.ones(1, np.float32))[0] * TOTAL_WEIGHT**2 < 2**32


def test_equal_windows_lose_nothing():
    probability = np.random.default_rng(0).random((150, 170)).astype(np.float32)
    rows, columns = along(150, 64, 16), along(170, 64, 10)
    found, carry = [], None
    for index in range(len(rows)):
        band = Band(rows, columns, index, carry)
        for column in range(len(columns)):
            (top, bottom), (left, right) = rows.span(index), columns.span(column)
            band.add(column, probability[top:bottom, left:right])
        level, carry = band.finished()
        found.append(level)
    np.testing.assert_array_equal(np.concatenate(found), as_levels(probability))
    assert len(carry) == 0
