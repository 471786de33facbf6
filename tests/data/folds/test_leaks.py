"""Tiles of no fold: who stays, that they neither train nor are held out, and that two folds are proven apart."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cities import cities, city, overlaps, scene
from factories import MERCATOR
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.data.dataset import split_fold
from kit.data.folds.leaks import check_apart, leaking
from kit.data.index import read_index, refold
from kit.errors import DataError
from kit.paths import Paths
from kit.pipeline.run import RunOptions, folds_of

Cli = Callable[..., tuple[int, str, str]]


@given(
    st.lists(st.sampled_from([1.0, 0.5]), min_size=2, max_size=12),
    st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=30),
)
def test_no_pair_is_left_and_no_tile_is_lost_in_vain(valid: list[float], drawn: set[tuple[int, int]]):
    index = pd.DataFrame({"tile": [f"t{i:02}" for i in range(len(valid))], "valid_fraction": valid})
    pairs = [(i, j) for i, j in drawn if i < j < len(valid)]
    out = set(leaking(index, np.array(pairs, np.int64).reshape(-1, 2)))
    assert not [pair for pair in pairs if not out & set(pair)]
    for row in out:
        rivals = [i + j - row for i, j in pairs if row in (i, j)]
        assert any(r not in out and (-valid[r], r) < (-valid[row], row) for r in rivals)


def test_of_two_the_one_with_less_imagery_goes_then_the_later_id():
    index = pd.DataFrame({"tile": ["b", "a", "c"], "valid_fraction": [1.0, 1.0, 0.5]})
    assert leaking(index, np.array([[0, 1]])) == [0]
    assert leaking(index, np.array([[0, 2]])) == [2]
    assert leaking(index, np.array([[0, 1], [0, 2]])) == [0]  # c stays: what it overlaps has gone


@settings(max_examples=50, deadline=None)
@given(cities(), st.integers(2, 3), st.integers(0, 99))
def test_overlaps_of_folds_are_found(index: pd.DataFrame, k: int, seed: int):
    folds = np.random.default_rng(seed).integers(-1, k, len(index))
    surely, perhaps = (
        any(-1 != folds[i] != folds[j] != -1 for i, j in overlaps(index, share)) for share in (1e-5, 1e-7)
    )
    if not perhaps:
        check_apart(index.assign(fold=folds))
    elif surely:
        with pytest.raises(DataError, match=r"of fold \d and .* of fold \d overlap on the ground"):
            check_apart(index.assign(fold=folds))


def test_the_first_pair_is_named():
    index = city(scene("kam/a", 2, 2), scene("kam/b", 2, 2, x=0.3, crs=MERCATOR)).assign(fold=[0] * 4 + [1] * 4)
    for rows in (index, index[::-1]):
        with pytest.raises(DataError, match=r"^kam_a_r0_c0 of fold 0 and kam_b_r0_c0 of fold 1 overlap .* pairs more$"):
            check_apart(rows)
    check_apart(index.assign(fold=[0] * 4 + [-1] * 4))
    check_apart(index.drop(columns="crs"))  # nowhere


def test_tiles_of_no_fold_train_only_where_nothing_is_held_out():
    index = scene("kam/a", 6, 1).assign(fold=[0, 0, -1, 1, 2, -1])
    fold = split_fold(index, 0)
    assert list(fold.train["fold"]) == [1, 2]
    assert list(fold.valid["fold"]) == [0, 0]
    assert len(split_fold(index, "all").train) == 6
    assert folds_of(RunOptions(), index) == (0, 1, 2)
    with pytest.raises(DataError, match=r"no fold -1 among \[0, 1, 2\]"):
        split_fold(index, -1)
    with pytest.raises(DataError, match="fold 1 is the only one: nothing is left to train on"):
        split_fold(index[index["fold"].isin([-1, 1])], 1)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """The index of a data set without images: a scene of 20 x 12 tiles."""
    paths = Paths(tmp_path)
    index = scene("kam/a", 20, 12, x=0.123456789)
    index = index.assign(tier=1, width_px=64, height_px=64, gsd_m=0.1, n_footprints=0)
    index["image"] = index["mask"] = "images/" + index["tile"] + ".tif"
    index.insert(4, "fold", 0)
    paths.data("one").mkdir(parents=True)
    index.to_csv(paths.data("one") / "index.csv", index=False)
    return paths


def test_the_command_lists_tiles_of_no_fold_last(paths: Paths, cli: Cli):
    code, out, err = cli(
        "folds", "one", "--by", "block", "-k", 3, "--block-m", 500, "--gap-m", 100, "--root", paths.root
    )
    assert code == 0
    assert "blocks of 500 m with a gap of 100 m; " in err
    head, *rows, last = out.splitlines()
    assert head.split() == ["fold", "tiles", "buildings", "scenes"]
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "none"]
    assert {tuple(row.split()[2:]) for row in rows} == {("20.0%", "kam/a")}
    assert sum(int(row.split()[1]) for row in rows) == 240
    assert last == str(paths.data("one") / "index.csv")
    _, index = read_index(paths, "one")
    assert set(index["fold"]) == {-1, 0, 1, 2}
    check_apart(index)


def test_the_command_tells_what_it_cannot_do(paths: Paths, cli: Cli):
    code, _, err = cli("folds", "one", "--by", "scene", "--gap-m", 100, "--root", paths.root)
    assert code == 1
    assert "folds by scene have neither blocks nor gaps" in err


def test_the_other_columns_keep_their_bytes(paths: Paths):
    file = paths.data("one") / "index.csv"
    before = file.read_text()
    refold(paths, "one", "block", 2)
    assert file.read_text() != before
    refold(paths, "one", "scene", 2)
    assert file.read_text() == before
