"""Footprints and walls to buildings: every pixel once, neighbours apart, whatever lies elsewhere."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kit.data.splitting import inside_of, split_instances
from kit.measures.object_masks import components

MASKS = arrays(bool, (12, 15), elements=st.booleans())


def same_partition(one, other) -> bool:
    """Whether two rasters of ids divide the pixels alike, whatever the numbers are."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))


def terrace(houses: int = 4, wall_px: int = 2):
    """A row of houses of 20 x 12 px with shared walls: mask, markers."""
    mask = np.zeros((30, 12 * houses + 10), bool)
    mask[5:25, 5:-5] = True
    markers = cv2.erode(mask.astype(np.uint8), np.ones((2 * wall_px + 1,) * 2, np.uint8)) > 0
    for wall in range(1, houses):
        markers[:, 5 + 12 * wall - wall_px : 5 + 12 * wall + wall_px] = False
    return mask, markers


@pytest.mark.parametrize("wall_px", [1, 2, 4])
def test_a_terrace_falls_into_its_houses(wall_px):
    mask, markers = terrace(4, wall_px)
    ids = split_instances(mask, markers)
    assert np.bincount(ids.ravel())[1:] == pytest.approx([240] * 4, abs=20)  # a wall moves by half a pixel


def test_a_house_without_a_marker_stays_whole():
    mask, markers = terrace()
    assert split_instances(mask, markers & False).max() == 1


def test_specks_are_no_markers():
    mask, markers = terrace(2)
    markers[:, :16] = False
    markers[10, 8] = True
    assert split_instances(mask, markers).max() == 2
    assert split_instances(mask, markers, smallest_px=2).max() == 1


def test_nothing_is_nothing():
    nothing = np.zeros((3, 4), bool)
    assert not split_instances(nothing, ~nothing).any()


def test_walls_and_contact_lower_the_inside():
    channels = np.array([0.9, 0.6, 0.1], np.float32)[:, None, None]
    assert inside_of(channels) == pytest.approx(0.2)
    assert inside_of(channels[[0, 0, 0]]) == 0


@given(MASKS, MASKS)
def test_buildings_divide_the_components(mask, markers):
    ids = split_instances(mask, markers)
    assert np.array_equal(ids > 0, mask)
    assert sorted(np.unique(ids[mask])) == list(range(1, ids.max() + 1))
    whole = components(mask)
    for number in range(1, ids.max() + 1):
        building = ids == number
        assert len(np.unique(whole[building])) == 1
        assert components(building).max() == 1


@given(MASKS, MASKS)
def test_each_marker_of_a_divided_component_is_one_building(mask, markers):
    ids, whole, marked = split_instances(mask, markers), components(mask), components(markers & mask)
    for number in range(1, whole.max() + 1):
        here = whole == number
        inside = np.unique(marked[here & (marked > 0)])
        assert len(np.unique(ids[here])) == max(1, len(inside))
        for marker in inside:
            assert len(np.unique(ids[marked == marker])) == 1


@given(MASKS, MASKS, MASKS, st.integers(0, 6), st.integers(0, 6))
def test_a_window_that_holds_a_component_divides_it_alike(mask, markers, beside, top, left):
    height, width = mask.shape
    scene, seeds = np.zeros((height + 20, width + 40), bool), np.zeros((height + 20, width + 40), bool)
    place = np.s_[top + 4 : top + 4 + height, left + 4 : left + 4 + width]
    scene[place], seeds[place] = mask, markers
    scene[2 : 2 + height, -width:], seeds[2 : 2 + height, -width:] = beside, True  # another part of the scene
    assert same_partition(split_instances(scene, seeds)[place], split_instances(mask, markers))
