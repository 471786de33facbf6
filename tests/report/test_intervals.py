"""Scores with intervals: by hand, and as wide as blocks of alike tiles ask for."""

import numpy as np
import pandas as pd
import pytest

from kit.report.intervals import BLOCK_SIDES, blocks_of, estimate, ratio

SIDE_M = 100.0


def tiles_in_a_row(number: int, crs: str = "EPSG:32636") -> pd.DataFrame:
    left = 500_000 + SIDE_M * np.arange(number)
    place = {"left": left, "right": left + SIDE_M, "bottom": 0.0, "top": SIDE_M, "crs": crs}
    return pd.DataFrame({"tile": [f"t{n}" for n in range(number)], "area": "kam", "scene": "a", **place})


def test_two_blocks_by_hand():
    """Of two blocks one is drawn twice with probability 1/4: the ends of the interval are the blocks' own scores."""
    made = estimate(np.array([(10, 100), (10, 100), (90, 100)]), np.array([4, 4, 7]))
    assert (made.score, made.low, made.high) == (110 / 300, 0.1, 0.9)
    assert str(made) == "0.3667 [0.100, 0.900]"


def test_one_block_has_no_interval():
    made = estimate(np.array([(10, 100), (90, 100)]), np.array([0, 0]))
    assert (made.score, made.low, made.high) == (0.5, None, None)
    assert str(made) == "0.5000"


def test_tiles_of_a_block_do_not_count_as_independent():
    random = np.random.default_rng(0)
    hits = np.repeat(random.integers(0, 100, 30), 9)  # nine alike tiles a block
    parts = np.stack([hits, np.full_like(hits, 100)], axis=1)
    by_block, by_tile = (estimate(parts, blocks) for blocks in (np.repeat(np.arange(30), 9), np.arange(270)))
    assert by_block.high - by_block.low > 2 * (by_tile.high - by_tile.low)


def test_nothing_to_find_and_nothing_found_is_1():
    assert ratio(np.array([[0, 0], [0, 5]])).tolist() == [1, 0]


def test_neighbours_share_a_block():
    tiles = tiles_in_a_row(24)
    blocks, side_m = blocks_of(tiles)
    assert side_m == pytest.approx(BLOCK_SIDES * SIDE_M, rel=0.01)
    assert (np.diff(blocks) != 0).sum() in (6, 7)
    assert len(np.unique(blocks)) in (6, 7)


def test_tiles_without_a_georeference_stay_with_their_scene():
    tiles = tiles_in_a_row(6)
    tiles.loc[:2, "crs"] = ""
    tiles.loc[:1, "scene"] = "b"
    blocks, _ = blocks_of(tiles)
    assert blocks[0] == blocks[1] != blocks[2]
    assert not {*blocks[:3]} & {*blocks[3:]}
    without, side_m = blocks_of(tiles.drop(columns=["crs", "left", "right", "bottom", "top"]))
    assert side_m == 0
    assert len(set(without)) == 2
