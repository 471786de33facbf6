import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.data.folds import assign_folds
from kit.errors import DataError

SIZES = st.lists(st.integers(1, 30), min_size=2, max_size=8)


def make_index(sizes: list[int]) -> pd.DataFrame:
    rows = [(f"t{s}_{i}", f"area{s % 3}", f"s{s}") for s, size in enumerate(sizes) for i in range(size)]
    return pd.DataFrame(rows, columns=["tile", "area", "scene"])


@given(SIZES, st.sampled_from(["scene", "tile", "area"]), st.integers(2, 5))
def test_folds_partition_whatever_the_order(sizes: list[int], by: str, k: int):
    index = make_index(sizes)
    folds, _ = assign_folds(index, by, k)
    assert len(folds) == len(index)
    assert set(folds) <= set(range(k))
    shuffled = index.sample(frac=1, random_state=1)
    again, _ = assign_folds(shuffled, by, k)
    pd.testing.assert_series_equal(again.sort_index(), folds.sort_index())


@given(SIZES, st.integers(2, 5))
def test_whole_scenes_are_held_out(sizes: list[int], k: int):
    index = make_index(sizes)
    folds, _ = assign_folds(index, "scene", k)
    assert (folds.groupby(index["scene"]).nunique() == 1).all()


@given(SIZES, st.integers(2, 5))
def test_tiles_are_stratified_by_scene(sizes: list[int], k: int):
    index = make_index(sizes)
    folds, notice = assign_folds(index, "tile", k)
    counts = pd.crosstab(index["scene"], folds).reindex(columns=range(k), fill_value=0)
    assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()
    assert bool(notice) == (min(sizes) < k)


def test_fewer_scenes_than_folds_is_told():
    _, notice = assign_folds(make_index([3, 3]), "scene", 5)
    assert notice == "2 scenes make 2 folds, not 5"


def test_auto_keeps_every_area_in_training():
    lone = make_index([4, 4, 4, 4])  # area0 has two scenes, area1 and area2 one each
    folds, notice = assign_folds(lone, "auto", 2)
    pd.testing.assert_series_equal(folds, assign_folds(lone, "tile", 2)[0])
    assert "by tile, since area1, area2 has one scene only" in notice
    pairs = make_index([4] * 6)
    folds, notice = assign_folds(pairs, "auto", 2)
    pd.testing.assert_series_equal(folds, assign_folds(pairs, "scene", 2)[0])
    assert notice == ""


def test_bad_requests():
    with pytest.raises(DataError, match="no way 'scenes'"):
        assign_folds(make_index([3]), "scenes", 2)
    with pytest.raises(DataError, match="1 folds, expected at least 2"):
        assign_folds(make_index([3]), "tile", 1)
