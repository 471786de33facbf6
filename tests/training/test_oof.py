"""Out of fold: thresholds found by counting, and the files of a fold that agree with each other."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kit.data.dataset import Fold, split_fold
from kit.data.index import read_index
from kit.data.instances import ids_file
from kit.data.masks import Counts, pool
from kit.measures.object_masks import compare_masks
from kit.paths import Paths
from kit.pipeline.postprocess import ValidationTile
from kit.report.tile_counts import count_tile
from kit.training import oof
from kit.training.oof import best_threshold, interleaved, predict_fold, read_levels
from kit.training.run_files import read_objects

pytestmark = pytest.mark.usefixtures("one_thread")

PRECISION = SimpleNamespace(context=nullcontext)


def scored(levels: np.ndarray, threshold: float) -> float:
    """The Jaccard index where all above the threshold is building, pixel by pixel."""
    above = np.arange(256) / 255 > threshold
    background, building = levels
    return Counts(int(building[above].sum()), int(background[above].sum()), int(building[~above].sum())).jaccard


THRESHOLDS = [-1, *((level - 0.5) / 255 for level in range(1, 256))]  # all that part the 256 values otherwise


@st.composite
def counted(draw: st.DrawFn) -> np.ndarray:
    """(2, 256): pixels at a few values, some of them many, at least one of building."""
    levels = np.zeros((2, 256), np.int64)
    places = st.tuples(st.integers(0, 1), st.integers(0, 255), st.integers(1, 10**9))
    for truth, value, pixels in draw(st.lists(places, min_size=1, max_size=30)):
        levels[truth, value] += pixels
    levels[1, draw(st.integers(0, 255))] += 1
    return levels


def single(truth: int, value: int) -> np.ndarray:
    levels = np.zeros((2, 256), np.int64)
    levels[truth, value] = 5
    return levels


@settings(max_examples=60, deadline=None)
@given(counted())
@example(single(1, 0))
@example(single(1, 255))
@example(single(1, 127) + single(0, 128))
@example(single(1, 255) + single(0, 254))
def test_the_best_threshold_is_the_best_of_all(levels: np.ndarray):
    threshold, score = best_threshold(levels)
    assert 0 <= threshold < 1
    assert score == pytest.approx(max(scored(levels, other) for other in THRESHOLDS), rel=1e-12)
    # at 0 all is building: no probability of a network is 0 itself
    assert scored(levels, threshold or -1) == pytest.approx(score, rel=1e-12)


def test_a_threshold_parts_what_can_be_parted():
    random = np.random.default_rng(0)
    truth = random.random(5000) < 0.3
    values = np.where(truth, random.integers(90, 256, 5000), random.integers(0, 60, 5000))
    levels = np.stack([np.bincount(values[truth == kind], minlength=256) for kind in (False, True)])
    threshold, score = best_threshold(levels)
    assert score == 1
    assert 59 / 255 <= threshold < 90 / 255
    assert best_threshold(3 * levels) == (threshold, score)


def test_where_there_is_no_building_none_is_best():
    """As `Counts.jaccard` has it: 1 where nothing was to be found and nothing was found."""
    threshold, score = best_threshold(single(0, 12) + single(0, 3))
    assert score == 1
    assert threshold > 12 / 255


@given(st.integers(0, 40), st.integers(1, 4))
def test_what_ranks_took_in_turns_comes_back_in_order(length: int, size: int):
    items = list(range(length))
    assert interleaved([items[number::size] for number in range(size)]) == items


class Stripes(nn.Module):
    """Calls building what is bright, too seldom, and is wrong in stripes that grow to the right."""

    def forward(self, pixels: Tensor) -> Tensor:
        bright = (pixels.float().mean(dim=1, keepdim=True) - 128) / 128
        columns = torch.arange(pixels.shape[3])
        return 3 * bright - 1 + columns / 24 * (columns / 3).sin()


@pytest.fixture
def fold(workplace: Path) -> Fold:
    """The fold whose scenes have columns without data."""
    _, index = read_index(Paths(workplace), "")
    held_out = int(index.loc[index["area"] == "kam", "fold"].iloc[0])
    found = split_fold(index, held_out)
    assert len(found.valid) > 4
    return found


def known_pixels(fold: Fold) -> dict[str, np.ndarray]:
    """The masks of the held-out tiles, by tile."""
    masks = {}
    for row in fold.valid.itertuples():
        with rasterio.open(row.mask) as mask:
            masks[row.tile] = mask.read(1)
    return masks


def test_the_files_of_a_fold_agree(fold: Fold, tmp_path: Path):
    scenes = predict_fold(Stripes(), PRECISION, fold, tmp_path)
    masks = known_pixels(fold)
    tiles = pd.read_csv(tmp_path / "oof.csv")
    assert tiles["tile"].tolist() == fold.valid["tile"].tolist()
    sums = tiles.groupby(tiles["area"] + "/" + tiles["scene"])[["tp", "fp", "fn"]].sum()
    assert scenes == {name: Counts(*map(int, row)) for name, row in zip(sums.index, sums.to_numpy(), strict=True)}

    levels = read_levels(tmp_path)
    assert levels is not None
    assert levels.shape == (2, 256)
    for truth in (0, 1):
        assert levels[truth].sum() == sum((mask == truth).sum() for mask in masks.values())
    assert any((mask == 255).any() for mask in masks.values())  # which count nowhere
    by_hand = np.zeros((2, 256), np.int64)
    for name, mask in masks.items():
        with rasterio.open(tmp_path / "oof" / f"{name}.tif") as source:
            values = source.read(1)
        assert (values[mask == 255] == 0).all()
        for truth in (0, 1):
            by_hand[truth] += np.bincount(values[mask == truth], minlength=256)
    np.testing.assert_array_equal(levels, by_hand)

    objects = read_objects(tmp_path)
    assert objects is not None
    assert list(objects) == list(masks)
    for name, mask in masks.items():
        with rasterio.open(tmp_path / "oof" / f"{name}.tif") as source:
            assert compare_masks(source.read(1) > 127, mask, 1) == objects[name]  # pixels of 1 m

    pooled = pool(scenes.values())
    assert pooled.tp + pooled.fn == levels[1].sum()
    assert scored(levels, 127.5 / 255) == pytest.approx(pooled.jaccard, abs=1e-9)
    assert 0 < pooled.jaccard < best_threshold(levels)[1]


def test_shares_of_ranks_are_the_fold(fold: Fold, tmp_path: Path):
    whole = predict_fold(Stripes(), PRECISION, fold, tmp_path / "whole")
    tables: list[list[Any]] = []
    levels, counts = [], []
    for number in range(2):
        share = Fold(fold.number, fold.train, fold.valid.iloc[number::2])
        counts += predict_fold(Stripes(), PRECISION, share, tmp_path / str(number)).values()
        tables.append(pd.read_csv(tmp_path / str(number) / "oof.csv").to_dict("records"))
        levels.append(read_levels(tmp_path / str(number)))
    assert interleaved(tables) == pd.read_csv(tmp_path / "whole/oof.csv").to_dict("records")
    np.testing.assert_array_equal(np.sum(levels, axis=0), read_levels(tmp_path / "whole"))
    assert pool(counts) == pool(whole.values())


def test_overlays_are_of_the_worst_and_the_best(fold: Fold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from kit.training import oof

    titles = []
    monkeypatch.setattr(oof, "overlay", lambda *arguments: titles.append(arguments[3]) or np.zeros((4, 4, 3), np.uint8))
    predict_fold(Stripes(), PRECISION, fold, tmp_path)
    tiles = pd.read_csv(tmp_path / "oof.csv").query("tp + fn > 0")
    scores = sorted(tiles["tp"] / tiles[["tp", "fp", "fn"]].sum(axis=1))
    shown = {title.split(":")[0]: float(title.split()[-1]) for title in titles}
    expected = {"worst": scores[0], "median": scores[len(scores) // 2], "best": scores[-1]}
    assert shown == {title: pytest.approx(score, abs=5e-4) for title, score in expected.items()}
    assert shown["worst"] < shown["best"]


def test_nothing_held_out_leaves_no_files(fold: Fold, tmp_path: Path):
    assert predict_fold(Stripes(), PRECISION, Fold("all", fold.train, fold.valid.iloc[:0]), tmp_path) == {}
    assert list(tmp_path.glob("*.csv")) == []
    assert read_levels(tmp_path) is None


def test_the_tiles_drawn_are_mostly_imagery(fold: Fold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Tiles that are nine tenths black show nothing, whatever their score."""
    drawn = []
    monkeypatch.setattr(oof, "overlay", lambda image, mask, *_: drawn.append((mask != 255).mean()) or image)
    valid = fold.valid.copy()
    for place in range(0, len(valid), 2):  # every second tile loses its imagery
        path = tmp_path / f"{place}.tif"
        with rasterio.open(valid["mask"].iloc[place]) as source:
            mask, profile = source.read(1), source.profile
        mask[:, : mask.shape[1] * 9 // 10] = 255
        mask[:9, -2:] = 1
        with rasterio.open(path, "w", **profile) as target:
            target.write(mask, 1)
        valid.iloc[place, valid.columns.get_loc("mask")] = str(path)
    predict_fold(Stripes(), PRECISION, replace(fold, valid=valid), tmp_path)
    assert len(drawn) == 3
    assert min(drawn) >= 0.5
    drawn.clear()
    predict_fold(Stripes(), PRECISION, replace(fold, valid=valid.iloc[::2]), tmp_path)
    assert len(drawn) == 3  # nothing better is there
    assert max(drawn) < 0.2


class Layered(Stripes):
    """Predicts layers: walls in every eighth column."""

    def forward(self, pixels: Tensor) -> Tensor:
        footprint = super().forward(pixels)
        wall = torch.where(torch.arange(pixels.shape[3]) % 8 == 0, 9.0, -9.0).expand_as(footprint)
        return torch.cat([footprint, wall, torch.full_like(footprint, -9)], dim=1)


def test_layers_split_the_buildings_of_a_fold(fold: Fold, tmp_path: Path):
    scenes = predict_fold(Layered(), PRECISION, fold, tmp_path / "layers")
    assert scenes == predict_fold(Stripes(), PRECISION, fold, tmp_path / "one")  # pixels are those of the footprint
    counts, whole = read_objects(tmp_path / "layers"), read_objects(tmp_path / "one")
    assert counts is not None
    assert whole is not None
    assert sum(each.predicted for each in counts.values()) > sum(each.predicted for each in whole.values())
    assert not (tmp_path / "one/inside").exists()
    for row in fold.valid.itertuples():
        with rasterio.open(tmp_path / f"layers/inside/{row.tile}.tif") as source:
            assert not source.read(1)[:, ::8].any()


@pytest.mark.parametrize("network", [Layered, Stripes])
def test_a_report_counts_the_same_buildings(fold: Fold, tmp_path: Path, network: type[Stripes]):
    """True buildings come from `ids/`, predicted ones are split where the network tells neighbours apart."""
    for row in fold.valid.itertuples():  # rows of houses: each column of 8 px is a building
        with rasterio.open(ids_file(row.mask), "r+") as source:
            ids = source.read(1)
            source.write(np.where(ids > 0, 1 + np.arange(ids.shape[1]) // 8, 0).astype(np.uint16), 1)
    predict_fold(network(), PRECISION, fold, tmp_path)
    objects, pixels = read_objects(tmp_path), pd.read_csv(tmp_path / "oof.csv").set_index("tile")
    assert objects is not None
    components = 0
    for row in fold.valid.itertuples():
        building_px = int(pixels.loc[row.tile, ["tp", "fn"]].sum())
        tile = ValidationTile(row.tile, row.mask, row.gsd_m, 0, building_px, (tmp_path / f"oof/{row.tile}.tif",))
        assert count_tile(tile).objects == objects[row.tile]
        ids_file(row.mask).unlink()
        components += count_tile(tile).objects.true
    assert components < sum(each.true for each in objects.values())
