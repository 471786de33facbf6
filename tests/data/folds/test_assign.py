import re

import numpy as np
import pandas as pd
import pytest
from cities import cities, city, nearer, overlaps, scene
from factories import MERCATOR, UTM
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.data.folds.assign import assign_folds, fold_numbers
from kit.errors import DataError

SIZES = st.lists(st.integers(1, 30), min_size=2, max_size=8)
OLDER = "overlaps on the ground were not checked: an older version of kit cut this data set; give kit prepare again"
FOLDS = st.integers(2, 5)


def make_index(sizes: list[int]) -> pd.DataFrame:
    """An index as kit 1 wrote it: nothing tells where tiles lie."""
    rows = [(f"t{s}_{i}", f"area{s % 3}", f"s{s}") for s, size in enumerate(sizes) for i in range(size)]
    return pd.DataFrame(rows, columns=["tile", "area", "scene"])


def split_pairs(pairs: set[tuple[int, int]], folds: "pd.Series[int]") -> list[tuple[int, int]]:
    """Returns the pairs with tiles in two folds."""
    return [(i, j) for i, j in pairs if -1 != folds.iloc[i] != folds.iloc[j] != -1]


@settings(deadline=None)
@given(SIZES, st.sampled_from(["scene", "tile", "area"]), FOLDS)
def test_folds_partition_whatever_the_order(sizes: list[int], by: str, k: int):
    index = make_index(sizes)
    folds, _ = assign_folds(index, by, k)
    assert len(folds) == len(index)
    assert set(folds) <= set(range(k))
    shuffled = index.sample(frac=1, random_state=1)
    again, _ = assign_folds(shuffled, by, k)
    pd.testing.assert_series_equal(again.sort_index(), folds.sort_index())


@settings(max_examples=50, deadline=None)
@given(cities(), st.sampled_from(["auto", "scene", "area", "tile", "block"]), FOLDS, st.integers(0, 99))
def test_folds_on_the_ground_do_not_depend_on_the_order(index: pd.DataFrame, by: str, k: int, seed: int):
    folds, notice = assign_folds(index, by, k)
    assert set(folds) <= set(range(-1, k))
    again, again_notice = assign_folds(index.sample(frac=1, random_state=seed), by, k)
    pd.testing.assert_series_equal(again.sort_index(), folds)
    assert again_notice == notice


@settings(max_examples=40, deadline=None)
@given(cities(), st.sampled_from(["scene", "area", "block"]), FOLDS)
def test_tiles_of_two_folds_do_not_overlap(index: pd.DataFrame, by: str, k: int):
    folds, notice = assign_folds(index, by, k, **({"gap_m": 0} if by == "block" else {}))
    assert not split_pairs(overlaps(index, 1e-5), folds)
    # and no tile is lost that does not overlap a tile of a fold with as much imagery or more
    partners = overlaps(index, 1e-7)
    lost = np.flatnonzero(folds == -1)
    for row in lost:
        rivals = [i + j - row for i, j in partners if row in (i, j) and folds.iloc[i + j - row] != -1]
        assert any(index["valid_fraction"][rival] >= index["valid_fraction"][row] for rival in rivals)
    assert (f"{len(lost)} of {len(index)} tiles are in no fold" in notice) == bool(len(lost))


@settings(max_examples=60, deadline=None)
@given(cities(), FOLDS, st.sampled_from([20.0, 120.0, 300.0]), st.sampled_from([300.0, 640.0]))
def test_blocks_keep_their_distance(index: pd.DataFrame, k: int, gap_m: float, block_m: float):
    folds, _ = assign_folds(index, "block", k, block_m, gap_m)
    assert not split_pairs(nearer(index, 0.98 * gap_m), folds)
    near = nearer(index, 1.01 * gap_m)
    for row in np.flatnonzero(folds == -1):
        assert any(folds.iloc[i + j - row] != -1 for i, j in near if row in (i, j))


@settings(deadline=None)
@given(SIZES, FOLDS)
def test_whole_scenes_are_held_out(sizes: list[int], k: int):
    index = make_index(sizes)
    folds, _ = assign_folds(index, "scene", k)
    assert (folds.groupby(index["scene"]).nunique() == 1).all()


@settings(deadline=None)
@given(SIZES, FOLDS)
def test_tiles_are_stratified_by_scene(sizes: list[int], k: int):
    index = make_index(sizes)
    folds, notice = assign_folds(index, "tile", k)
    counts = pd.crosstab(index["scene"], folds).reindex(columns=range(k), fill_value=0)
    assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()
    assert bool(notice) == (min(sizes) < k)


def test_fewer_scenes_than_folds_is_told():
    _, notice = assign_folds(make_index([3, 3]), "scene", 5)
    assert notice == f"2 scenes make 2 folds, not 5; {OLDER}"


@pytest.mark.parametrize("by", ["scene", "block"])
def test_every_fold_sees_every_area_and_as_many_tiles(by: str):
    """Areas of 48, 12 and 4 tiles far from each other; in blocks of 2 tiles, too."""
    shapes = {"big": (4, 3), "mid": (3, 1), "low": (1, 1)}
    index = city(*(
        scene(f"{area}/s{i}", *shapes[area], x=40 * i, y=40 * place, crs=UTM)
        for place, area in enumerate(shapes) for i in range(4)
    ))  # fmt: skip
    folds, _ = assign_folds(index, by, 2, **({"block_m": 200.0, "gap_m": 0} if by == "block" else {}))
    counts = pd.crosstab(index["area"], folds)
    assert (counts.min(axis=1) >= 0.4 * counts.sum(axis=1)).all(), counts
    sample = make_index([7, 9, 6, 4, 8, 5])  # the sample's: three areas with two scenes each
    assert (pd.crosstab(sample["area"], assign_folds(sample, "scene", 2)[0]) > 0).all(axis=None)


@pytest.mark.parametrize("crs", [UTM, MERCATOR])
@pytest.mark.parametrize("by", ["scene", "area"])
def test_scenes_that_touch_lose_no_tile(by: str, crs: str):
    """Their common edges differ by rounding errors, as tiles half a side apart within a scene do."""
    third = 1 / 3
    index = city(*(
        scene(f"{'ab'[i % 2]}/s{i}", 4, 4, x=third + 4 * i, y=third, crs=crs) for i in range(4)
    ), scene("a/s5", 7, 3, x=third + 4, y=third - 4, crs=crs, step=0.5))  # fmt: skip
    folds, notice = assign_folds(index, by, 2)
    assert set(folds) == {0, 1}
    assert notice == ""


def test_an_edge_that_neighbours_share_goes_to_the_one_with_more_imagery():
    """Two scenes of one XYZ grid, 10 x 10 tiles each: the last column of one is the first of the other."""
    west = scene("kam/w", 10, 10, crs=MERCATOR, valid=(*([1.0] * 9), 0.4))
    east = scene("kam/e", 10, 10, x=9, crs=MERCATOR, valid=(0.6, *([1.0] * 9)))
    folds, notice = assign_folds(city(west, east), "scene", 2)
    assert notice == "10 of 200 tiles are in no fold: they overlap tiles of another fold"
    assert (folds[:100].to_numpy().reshape(10, 10)[:, 9] == -1).all()
    assert sorted(set(folds[100:]) | set(folds[:99:10])) == [0, 1]
    assert fold_numbers(city(west, east).assign(fold=folds)) == [0, 1]


def test_flights_over_the_same_ground_are_held_out_together():
    """In two coordinate systems, and of different resolution; a third scene elsewhere."""
    index = city(
        scene("kam/early", 6, 6),
        scene("kam/late", 5, 5, x=0.3, y=-0.2, crs=MERCATOR),
        scene("kam/apart", 4, 4, x=20),
    )
    folds, notice = assign_folds(index, "scene", 5)
    assert (folds.groupby(index["scene"]).nunique() == 1).all()
    assert folds[0] == folds[36] != folds[61]
    assert notice == "held out together, since they overlap: kam_early + kam_late; 3 scenes make 2 folds, not 5"


@pytest.mark.parametrize(("tiles", "together"), [(4, False), (3, True)])
def test_more_than_a_quarter_of_the_smaller_one_is_too_much(tiles: int, together: bool):
    index = city(scene("kam/large", 6, 5), scene("kam/small", tiles, 1, x=-(tiles - 1)))
    folds, notice = assign_folds(index, "scene", 2)
    assert ("held out together" in notice) == together
    assert (folds == -1).sum() == (not together)


def test_a_tile_that_overlaps_several_counts_once():
    """One of five tiles lies on two of the other scene."""
    index = city(scene("kam/large", 6, 5), scene("kam/small", 5, 1, x=-4.5, y=-0.5))
    folds, notice = assign_folds(index, "scene", 2)
    assert notice == "1 of 35 tiles are in no fold: they overlap tiles of another fold"
    assert folds.iloc[-1] == -1


def test_overlaps_join_in_chains():
    """The smallest and the largest share nothing, but much with the one between them, in either order of names."""
    for small, large in (("s0", "s2"), ("s2", "s0")):
        chain = [scene(f"kam/{small}", 2, 1), scene("kam/s1", 4, 1, x=1), scene(f"kam/{large}", 8, 1, x=3)]
        folds, notice = assign_folds(city(*chain, scene("kam/t", 2, 2, x=30)), "scene", 3)
        assert notice == "held out together, since they overlap: kam_s0 + kam_s1 + kam_s2; 4 scenes make 2 folds, not 3"
        assert list(folds) == [0] * 14 + [1] * 4


def test_areas_that_overlap_are_held_out_together():
    index = city(scene("kam/a", 4, 4), scene("ent/b", 4, 4, x=1, y=1), scene("jin/c", 3, 3, x=30))
    folds, notice = assign_folds(index, "area", 2)
    assert notice == "held out together, since they overlap: ent + kam"
    assert (folds[:32] == folds[0]).all()


def test_auto_keeps_every_area_in_training():
    lone = make_index([4, 4, 4, 4])  # area0 has two scenes, area1 and area2 one each
    folds, notice = assign_folds(lone, "auto", 2)
    pd.testing.assert_series_equal(folds, assign_folds(lone, "tile", 2)[0])
    assert "by tile, since area1, area2 have one scene only: out-of-fold scores will be optimistic" in notice
    assert "kit folds --by block avoids it" in notice
    pairs = make_index([4] * 6)
    folds, notice = assign_folds(pairs, "auto", 2)
    pd.testing.assert_series_equal(folds, assign_folds(pairs, "scene", 2)[0])
    assert notice == OLDER


def test_auto_sees_that_scenes_cannot_be_held_apart():
    index = city(
        scene("kam/early", 3, 3), scene("kam/late", 3, 3), scene("znz/a", 3, 3, x=9), scene("znz/b", 3, 3, x=19)
    )
    folds, notice = assign_folds(index, "auto", 2)
    assert "by tile, since the scenes of kam overlap" in notice
    pd.testing.assert_series_equal(folds, assign_folds(index, "tile", 2)[0])


def test_blocks_of_one_scene():
    """Half the borders of some 6 blocks of 8 x 8 tiles lie between two folds: a tile's width is lost there, no more."""
    index = scene("kam/a", 24, 16)
    folds, notice = assign_folds(index, "block", 2)
    assert set(folds) == {-1, 0, 1}
    assert 16 <= (folds == -1).sum() <= 90
    assert re.match(r"\d+ blocks of 800 m with a gap of one tile; ", notice)


def test_too_wide_a_gap_is_told():
    index = scene("kam/a", 12, 12)
    folds, notice = assign_folds(index, "block", 5, 300, 900)
    assert (folds == -1).sum() > 48
    assert "that is more than a third: try a larger --block-m or a smaller --gap-m" in notice
    gone = sorted(set(range(5)) - set(folds))
    assert f"no tile is left in fold {', '.join(map(str, gone))}: try a larger" in notice


def test_too_large_blocks_are_told():
    folds, notice = assign_folds(scene("kam/a", 3, 3, x=1, y=-1), "block", 5, 1e6, 0)
    assert set(folds) == {0}
    assert (
        notice
        == "1 blocks of 1000000 m with a gap of 0 m; 1 blocks make 1 folds, not 5: a smaller --block-m makes more"
    )


def test_a_tile_without_georeference_is_told():
    index = city(scene("kam/a", 3, 3), scene("kam/b", 3, 3, x=0.5), scene("kam/c", 2, 1))
    index.loc[index["scene"] == "c", ["crs", "left", "bottom", "right", "top"]] = ["", *[np.nan] * 4]
    folds, notice = assign_folds(index, "scene", 2)
    assert "2 of 20 tiles have no georeference: overlaps with other tiles were not checked" in notice
    assert folds[0] == folds[9] != folds[18]
    with pytest.raises(DataError, match=r"2 of 20 tiles have no georeference, which .* first kam_c_r0_c0"):
        assign_folds(index, "block", 2)


def test_blocks_need_the_ground():
    with pytest.raises(DataError, match=r"6 of 6 tiles have no georeference, which .* first t0_0") as caught:
        assign_folds(make_index([3, 3]), "block", 2)
    assert "georeferenced images" in caught.value.hint


@pytest.mark.parametrize("by", ["scene", "block"])
def test_folds_are_proven_apart_before_they_are_handed_out(by: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kit.data.folds.assign.without_leaks", lambda index, folds, *_: (folds, []))
    with pytest.raises(DataError, match=r"of fold . and .* of fold . overlap on the ground"):
        assign_folds(city(scene("kam/a", 12, 12, step=0.9), scene("kam/b", 9, 9, x=10)), by, 2)


def test_bad_requests():
    with pytest.raises(DataError, match="folds cannot be made by 'scenes'"):
        assign_folds(make_index([3]), "scenes", 2)
    with pytest.raises(DataError, match="1 folds, expected at least 2"):
        assign_folds(make_index([3]), "tile", 1)
    with pytest.raises(DataError, match="folds by scene have neither blocks nor gaps"):
        assign_folds(make_index([3]), "scene", 2, gap_m=0)
    with pytest.raises(DataError, match="blocks of 0 m, expected more than 0"):
        assign_folds(make_index([3]), "block", 2, 0)
    with pytest.raises(DataError, match="a gap of nan m, expected 0 or more"):
        assign_folds(make_index([3]), "block", 2, 100, float("nan"))
