"""The search for the best vote: against trying all, under a budget, and on noise."""

import math
from itertools import product

import numpy as np
import pytest

from kit.data.masks import count
from kit.pipeline.vote_search import STEPS, VotePixels, VoteSearch, parts_of, simplest

TILES, SIDE = 12, 40


def pixels_of(noises: list[float], seed: int = 0, shared: float = 0.0) -> VotePixels:
    """Tiles of random houses, and candidates that see them through noise, a share of it the same for all."""
    random = np.random.default_rng(seed)
    n = TILES * SIDE * SIDE
    building = random.random(n) < 0.2
    common = random.normal(0, 1, n)
    signal = np.where(building, 0.62, 0.38)
    seen = [signal + noise * (shared * common + (1 - shared) * random.normal(0, 1, n)) for noise in noises]
    values = np.stack([np.rint(255 * np.clip(one, 0, 1)).astype(np.uint8) for one in seen])
    tile = np.repeat(np.arange(TILES), SIDE * SIDE)
    return VotePixels(values, building, tile, np.arange(TILES) % 4, np.arange(TILES) % 3)


def scored(pixels: VotePixels, weights: tuple[int, ...]) -> float:
    """The Jaccard index of a vote at its best threshold, by trying all."""
    mean = np.average(pixels.values, axis=0, weights=weights)
    truth = pixels.building.astype(np.uint8)
    return max(count(np.floor(mean + 0.5) > threshold, truth).jaccard for threshold in range(-1, 256))


def test_a_vote_is_scored_as_by_trying_all_thresholds():
    pixels = pixels_of([0.2, 0.3])
    search = VoteSearch(pixels, [1.0, 1.0])
    for votes in ((1, 0), (0, 1), (3, 2)):
        threshold, score = search.threshold(votes)
        assert score == pytest.approx(scored(pixels, votes), abs=1e-9)
        mean = np.average(pixels.values, axis=0, weights=votes) / 255
        assert count(mean > threshold, pixels.building.astype(np.uint8)).jaccard == pytest.approx(score, abs=2e-3)
    assert search.threshold((2, 4)) == search.threshold((1, 2))


@pytest.mark.parametrize("noises", [[0.2, 0.2], [0.2, 0.3], [0.15, 0.3, 0.2]])
def test_greedy_finds_what_trying_all_finds(noises: list[float]):
    search = VoteSearch(pixels_of(noises), [1.0] * len(noises))
    every = {simplest(votes) for votes in product(range(6), repeat=len(noises)) if any(votes)}
    best = max(search.score(votes) for votes in every)
    votes = search.greedy()
    assert search.score(votes) >= best - 5e-4
    assert search.score(votes) > search.score(search.single()) + 0.01
    assert sum(votes) <= STEPS
    order = np.argsort(noises, kind="stable")
    assert list(np.argsort([-count for count in votes], kind="stable")) == list(order) or len(set(noises)) == 1


def test_the_budget_is_kept():
    pixels = pixels_of([0.2, 0.2, 0.25])
    search = VoteSearch(pixels, [3.0, 2.0, 1.0], budget=3.5)
    votes = search.greedy()
    assert 0 < search.cost(votes) <= 3.5
    assert votes[0] == 0  # it leaves no room for another: the two others together are better
    assert votes[1]
    assert votes[2]
    assert VoteSearch(pixels, [3.0, 2.0, 1.0], budget=1.5).greedy() == (0, 0, 1)
    assert all(VoteSearch(pixels, [3.0, 2.0, 1.0]).greedy())


def test_real_gain_holds_on_other_tiles():
    search = VoteSearch(pixels_of([0.2, 0.2, 0.2]), [1.0] * 3)
    nested = search.nested()
    assert nested is not None
    assert nested.holds
    assert nested.low < nested.gain < nested.high
    assert nested.gain == pytest.approx(search.score(search.greedy()) - search.score(search.single()), abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_a_vote_with_noise_gains_nothing_on_other_tiles(seed: int):
    """One candidate sees the houses; the others see nothing, or what it sees with noise that all share."""
    random = np.random.default_rng(seed)
    pixels = pixels_of([0.12, 0.12], seed, shared=1.0)
    noise = random.integers(0, 256, pixels.values[0].shape, dtype=np.uint8)
    jitter = np.clip(pixels.values[1].astype(int) + random.integers(-2, 3, noise.shape), 0, 255).astype(np.uint8)
    pixels = VotePixels(
        np.stack([pixels.values[0], noise, jitter]), pixels.building, pixels.tile, pixels.part, pixels.scene
    )
    search = VoteSearch(pixels, [1.0] * 3)
    nested = search.nested()
    assert nested is not None
    assert search.score(search.greedy()) >= search.score(search.single())  # on its own tiles it seems to gain
    assert not nested.holds
    assert abs(nested.gain) < 3e-3


def test_one_part_or_lone_tiles_prove_nothing():
    pixels = pixels_of([0.2, 0.2])
    whole = VotePixels(pixels.values, pixels.building, pixels.tile, np.zeros(TILES, np.int64), pixels.scene)
    assert VoteSearch(whole, [1.0, 1.0]).nested() is None
    lone = VotePixels(pixels.values, pixels.building, pixels.tile, pixels.part, np.arange(TILES))
    nested = VoteSearch(lone, [1.0, 1.0]).nested()
    assert nested is not None
    assert (nested.low, nested.holds) == (None, False)
    assert math.isfinite(nested.gain)


def test_parts():
    assert parts_of([4, 2, 4, 1], ["a", "b", "c", "d"]).tolist() == [2, 1, 2, 0]
    assert parts_of([0, 1, 1, 0], ["a", "b", "c", "a"]).tolist() == [0, 1, 2, 0]  # with two folds, scenes
    assert parts_of([0, 1], ["a", "a"]).tolist() == [0, 1]
    assert parts_of([0, 0, 0], ["a", "b", "a"]).tolist() == [0, 1, 0]
    assert parts_of([0] * 7, ["a"] * 7).tolist() == [0, 0, 1, 2, 2, 3, 4]
    assert parts_of([0], ["a"]).tolist() == [0]


def test_tiles_without_buildings():
    nothing = VotePixels(
        np.zeros((2, 8), np.uint8), np.zeros(8, bool), np.repeat(np.arange(2), 4), np.arange(2), np.zeros(2, np.int64)
    )
    search = VoteSearch(nothing, [1.0, 1.0])
    assert search.greedy() == (1, 0)
    nested = search.nested()
    assert nested is not None
    assert nested.gain == 0
