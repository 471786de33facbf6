"""Several data sets in one index: what is refused, what never validates, and whose ground is left out."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories import prepare, write_catalog

from kit.data.added import AddedSet, parse_added
from kit.data.dataset import Fold, split_fold
from kit.data.folds.assign import fold_numbers
from kit.data.folds.leaks import ADDED, NO_FOLD
from kit.data.index import read_index
from kit.data.joined_sets import join_sets, on_ground_of, report_unknown_ground
from kit.errors import DataError, KitError
from kit.paths import Paths


def make_index(name: str, columns: range, fold: int = 0, crs: str = "EPSG:32636", weight: float = 1.0) -> pd.DataFrame:
    """Tiles of 100 m in a row, from west to east; without `crs`, they lie nowhere."""
    rows = [
        {
            "tile": f"{name}{i}", "area": name, "scene": "s", "fold": fold, "gsd_m": 0.1, "data": name,
            "weight": weight, "crs": crs, "left": 450_000.0 + 100 * i, "bottom": 0.0, "right": 450_100.0 + 100 * i,
            "top": 100.0,
        }
        for i in columns
    ]  # fmt: skip
    index = pd.DataFrame(rows)
    if not crs:
        index[["left", "bottom", "right", "top"]] = np.nan
    return index


def joined(*parts: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def index() -> pd.DataFrame:
    """Two folds of three tiles, a tile in no fold, and an added set over tiles 1 to 3 and 10 to 12."""
    return joined(
        make_index("tier1", range(3), 0),
        make_index("tier1", range(3, 6), 1),
        make_index("tier1", range(20, 21), NO_FOLD),
        make_index("pseudo1", range(1, 4), ADDED, weight=0.5),
        make_index("pseudo1", range(10, 13), ADDED, weight=0.5),
    )


def test_added_tiles_train_in_every_fold_and_are_never_held_out(index: pd.DataFrame):
    assert fold_numbers(index) == [0, 1]
    for number in (0, 1):
        fold = split_fold(index, number)
        assert set(fold.valid["data"]) == {"tier1"}
        assert {"pseudo110", "pseudo111", "pseudo112"} <= set(fold.train["tile"])
        assert "tier120" not in set(fold.train["tile"])
    everything = split_fold(index, "all")
    assert len(everything.train) == len(index)
    assert everything.valid.empty


@pytest.mark.parametrize("fold", [ADDED, NO_FOLD])
def test_a_fold_that_would_validate_them_is_refused(index: pd.DataFrame, fold: int):
    with pytest.raises(DataError, match=r"fold 0: tile \w+ belongs to no fold, and cannot be validated on"):
        Fold(0, index[index["fold"] == 1], index[index["fold"].isin([0, fold])])
    with pytest.raises(DataError, match=f"no fold {fold} among"):
        split_fold(index, fold)


def test_added_tiles_on_the_ground_of_validation_tiles_do_not_train(
    index: pd.DataFrame, capsys: pytest.CaptureFixture[str]
):
    kept = {0: {"pseudo13"}, 1: {"pseudo11", "pseudo12"}}  # of those over tiles 1 to 3
    counts = {0: 2, 1: 1}
    for number in (0, 1):
        train = split_fold(index, number).train
        near = set(train["tile"][train["data"] == "pseudo1"]) & {"pseudo11", "pseudo12", "pseudo13"}
        assert near == kept[number]
        said = " ".join(capsys.readouterr().err.split())
        assert f"fold {number}: {counts[number]} of 6 tiles of pseudo1 lie on the ground of validation tiles" in said
    split_fold(index, "all")
    assert not capsys.readouterr().err


def test_ground_is_compared_across_coordinate_systems():
    valid = make_index("tier1", range(1))
    there = make_index("pseudo1", range(2), ADDED).assign(crs="EPSG:3857")
    from pyproj import Transformer

    change = Transformer.from_crs("EPSG:32636", "EPSG:3857", always_xy=True)
    there["left"], there["bottom"] = change.transform(there["left"].to_numpy(), there["bottom"].to_numpy())
    there["right"], there["top"] = change.transform(there["right"].to_numpy(), there["top"].to_numpy())
    there.index = pd.Index([7, 9])
    assert on_ground_of(valid, there) == [7]


def test_tiles_without_georeference_are_counted_once(capsys: pytest.CaptureFixture[str]):
    index = joined(
        make_index("tier1", range(2), 0), make_index("tier1", range(2, 3), 1, crs=""),
        make_index("pseudo1", range(3), ADDED, crs=""),
    )  # fmt: skip
    report_unknown_ground(index)
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("tiles without georeference: 1 of 3 of tier1, 3 of 3 of pseudo1.")
    assert len(split_fold(index, 0).train) == 1 + 3  # they train
    report_unknown_ground(index[index["data"] == "tier1"])
    report_unknown_ground(joined(make_index("tier1", range(2)), make_index("pseudo1", range(3), ADDED)))
    split_fold(index, 1)
    assert not capsys.readouterr().err


def test_names_and_weights():
    assert parse_added(["pseudo1", "tier2=0.5"]) == (AddedSet("pseudo1"), AddedSet("tier2", 0.5))
    assert str(AddedSet("tier2", 0.5, "0123456789")) == "tier2=0.5 (01234567)"


@pytest.mark.parametrize("text", ["", "=2", "tier2=", "tier2=0", "tier2=-1", "tier2=much", "tier2=inf", "tier2=nan"])
def test_weights_that_are_none(text: str):
    with pytest.raises(DataError, match="a weight above 0"):
        parse_added([text])


def test_a_set_given_twice():
    with pytest.raises(DataError, match="--add tier2 is given twice"):
        parse_added(["tier2", "tier2=2"])


def test_sets_that_are_missing_equal_or_of_another_resolution(workplace: Path, tmp_path: Path):
    coarse = {"kam": {"d": {"seed": 7, "pixel": 5.0}}}
    write_catalog(tmp_path / "coarse_city", coarse)
    paths = Paths(workplace)
    prepare(tmp_path / "coarse_city", paths, "coarse", grid="native", side_px=64)
    name, index = read_index(paths, "train_tier_1")
    for added, error in (
        ("tier9", "no data set 'tier9'"),
        ("train_tier_1", "--add train_tier_1: this is the data set of --data"),
        ("coarse", r"--add coarse: its tiles have [\d.]+ m per pixel, those of train_tier_1 "),
    ):
        with pytest.raises(KitError, match=error):
            join_sets(paths, name, index, [AddedSet(added)])


def test_the_joined_index_holds_all_sets(workplace: Path, catalog: Path):
    paths = Paths(workplace)
    prepare(catalog, paths, "second", grid="native", side_px=64, by="scene", k=2)
    name, index = read_index(paths, "train_tier_1")
    assert (set(index["data"]), set(index["weight"]), set(index["soft"])) == ({name}, {1.0}, {""})
    together, (added,) = join_sets(paths, name, index, [AddedSet("second", 2.0)])
    assert (added.name, added.weight, len(added.index_sha256)) == ("second", 2.0, 64)
    other = together[together["data"] == "second"]
    assert len(other) == len(together) - len(index) == len(index)
    assert (set(other["fold"]), set(other["weight"])) == ({ADDED}, {2.0})
    pd.testing.assert_frame_equal(together[: len(index)], index)
    alone, none = join_sets(paths, name, index, [])
    assert alone is index
    assert none == ()
