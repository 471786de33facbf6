"""Search for the best weighted vote of candidates, on validation pixels.

Source:
    Caruana, Niculescu-Mizil, Crew and Ksikes, Ensemble selection from libraries of models, ICML 2004.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kit.pipeline.compare_runs import PERCENTILES, jaccards, resample
from kit.training.oof import best_threshold

STEPS = 20  # votes at most: weights in steps of 5 %
PARTS = 5  # of the tiles, for nested validation with one or two folds

Votes = tuple[int, ...]  # of each candidate


@dataclass(frozen=True)
class VotePixels:
    """Validation pixels with the predictions of every candidate."""

    values: NDArray[np.uint8]  # probability x 255, uint8 (candidates, pixels)
    building: NDArray[np.bool_]  # the truth, bool (pixels,)
    tile: NDArray[np.int64]  # the number of each pixel's tile, (pixels,)
    part: NDArray[np.int64]  # the part of nested validation that each tile belongs to, 0 and up, (tiles,)
    scene: NDArray[np.int64]  # the number of each tile's scene, (tiles,)

    def levels(self, votes: Votes, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns how many pixels of background, of building have each mean value, (groups, 2, 256).

        Args:
            votes: of each candidate.
            groups: the group of each tile, (tiles,), 0 and up.
        """
        total = np.zeros(len(self.building), np.uint16)  # at most STEPS x 255
        for count, values in zip(votes, self.values, strict=True):
            if count:
                total += np.uint16(count) * values
        level = (2 * total + sum(votes)) // (2 * sum(votes))  # to the nearest
        cells = (groups[self.tile] * 2 + self.building) * 256 + level
        return np.bincount(cells, minlength=512 * (int(groups.max()) + 1)).reshape(-1, 2, 256)


@dataclass(frozen=True)
class NestedScore:
    """Nested scores: chosen on all parts but one, scored on that part, pooled over parts."""

    single: float  # Jaccard of the best single candidate
    vote: float  # Jaccard of the chosen vote
    low: float | None  # lower end of the 95 % interval of the gain; None if every scene has one tile
    high: float | None  # upper end

    @property
    def gain(self) -> float:
        """Gain of the vote over the best single candidate."""
        return self.vote - self.single

    @property
    def holds(self) -> bool:
        """Whether the interval is above 0."""
        return self.low is not None and self.low > 0


class VoteSearch:
    """Chooses votes by their Jaccard index at the best threshold.

    Args:
        pixels: to choose on.
        seconds: prediction time of each candidate.
        budget: limit of the sum over candidates with votes, s.
    """

    def __init__(self, pixels: VotePixels, seconds: Sequence[float], budget: float = math.inf) -> None:
        self.pixels, self.seconds, self.budget = pixels, seconds, budget
        self.parts = int(pixels.part.max()) + 1
        self._levels: dict[Votes, NDArray[np.int64]] = {}

    def cost(self, votes: Votes) -> float:
        """Returns the prediction time of the candidates with votes, s."""
        return math.fsum(seconds for count, seconds in zip(votes, self.seconds, strict=True) if count)

    def threshold(self, votes: Votes, parts: Sequence[int] | None = None) -> tuple[float, float]:
        """Returns the best threshold of a vote and its Jaccard index, on given parts or on all."""
        votes = simplest(votes)
        if votes not in self._levels:
            self._levels[votes] = self.pixels.levels(votes, self.pixels.part)
        levels = self._levels[votes]
        return best_threshold((levels if parts is None else levels[list(parts)]).sum(axis=0))

    def score(self, votes: Votes, parts: Sequence[int] | None = None) -> float:
        """Returns the Jaccard index of a vote at its best threshold, on given parts or on all."""
        return self.threshold(votes, parts)[1]

    def single(self, parts: Sequence[int] | None = None) -> Votes:
        """Returns the best single candidate within the budget; of equals, the first."""
        alone = [self._with(self._none(), candidate) for candidate in range(len(self.seconds))]
        return max((votes for votes in alone if self.cost(votes) <= self.budget), key=lambda v: self.score(v, parts))

    def greedy(self, parts: Sequence[int] | None = None) -> Votes:
        """Returns the votes of forward selection with replacement: each step adds the vote with the largest gain.

        The best state of all steps is returned; of equals, the first.
        """
        votes = best = self.single(parts)
        for _ in range(STEPS - 1):
            grown = [self._with(votes, candidate) for candidate in range(len(votes))]
            votes = max((v for v in grown if self.cost(v) <= self.budget), key=lambda v: self.score(v, parts))
            if self.score(votes, parts) > self.score(best, parts):
                best = votes
        return simplest(best)

    def nested(self) -> NestedScore | None:
        """Returns the scores of nested validation; None if there is one part."""
        if self.parts < 2:
            return None
        tiles = np.arange(len(self.pixels.part))
        counts = np.zeros((len(tiles), 4), np.int64)  # hit and union of the single, of the vote, as `resample` takes it
        for part in range(self.parts):
            others = [other for other in range(self.parts) if other != part]
            held_out = tiles[self.pixels.part == part]
            for column, votes in ((0, self.single(others)), (2, self.greedy(others))):
                threshold, _ = self.threshold(votes, others)
                counts[held_out, column : column + 2] = self._hits(votes, threshold)[held_out]
        single, vote = jaccards(counts.sum(axis=0))
        scenes = [counts[self.pixels.scene == scene] for scene in np.unique(self.pixels.scene)]
        if all(len(scene) < 2 for scene in scenes):
            return NestedScore(float(single), float(vote), None, None)
        random = np.random.default_rng(0)
        drawn = jaccards(np.sum([resample(scene, random) for scene in scenes], axis=0))
        low, high = np.percentile(drawn[:, 1] - drawn[:, 0], PERCENTILES)
        return NestedScore(float(single), float(vote), float(low), float(high))

    def _hits(self, votes: Votes, threshold: float) -> NDArray[np.int64]:
        """Returns each tile's hit and union, (tiles, 2)."""
        levels = self.pixels.levels(simplest(votes), np.arange(len(self.pixels.part)))
        above = levels[:, :, np.arange(256) / 255 > threshold].sum(axis=2)
        return np.stack([above[:, 1], above[:, 0] + levels[:, 1].sum(axis=1)], axis=1)

    def _none(self) -> Votes:
        return (0,) * len(self.seconds)

    @staticmethod
    def _with(votes: Votes, candidate: int) -> Votes:
        """Returns the votes with one more for a candidate."""
        return (*votes[:candidate], votes[candidate] + 1, *votes[candidate + 1 :])


def simplest(votes: Votes) -> Votes:
    """Returns the smallest integers of the same proportions."""
    divisor = math.gcd(*votes)
    return tuple(count // divisor for count in votes)


def parts_of(folds: Sequence[int], scenes: Sequence[str]) -> NDArray[np.int64]:
    """Returns the part of nested validation of each tile, (tiles,): its fold, or with fewer than three folds its scene.

    With two folds as parts, only half of the tiles would be left for the choice. If there is one scene, neighbours in
    the given order form a part. There are at most PARTS parts of scenes or neighbours.
    """
    if len(set(folds)) > 2 or len(set(folds)) > len(set(scenes)):
        return np.unique(folds, return_inverse=True)[1].astype(np.int64)
    if len(set(scenes)) > 1:
        return (np.unique(scenes, return_inverse=True)[1] % PARTS).astype(np.int64)
    return np.arange(len(scenes)) * min(PARTS, len(scenes)) // len(scenes)
