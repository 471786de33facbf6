"""Finds pairs of matching sides, and how far the score of each pair is above that of all others.

A pair's score is a weighted sum of the correlations of its bands, minus the differences of its levels. Scores are in
standard deviations of pairs that cannot be true (`Null`), measured on the same chips with one side read backwards.

Sources: Gallagher, Jigsaw puzzles with pieces of unknown orientation, CVPR 2012 (compares gradients across the seam
rather than pixels, in units of their own spread, and the best match with the second best). Pomeranz, Shemesh and
Ben-Shahar, A fully automated greedy square jigsaw puzzle solver, CVPR 2011 (best buddies: each is the other's best).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

from kit.deploy.mosaics.sides import BOTTOM, FACING, LEAST_PX, RIGHT, ChipSides, Floats, Side, band_slices

Indices = NDArray[np.int64]

# Linear discriminant of 2,500 true and a million false pairs, sides of 128 px, drawn (0.05 to 0.2 m) and real, JPEG 75
WEIGHTS = np.array([1.6, 1.1, 1.0, 0.3, 0.3], np.float32)
LEVEL_WEIGHTS = np.array([0.4, 0.3, 0.3], np.float32)
MOST_CORRELATED = 0.995  # correlations above are clipped: they carry no more information
FLAT = 0.002  # mean square of rounding errors in a band: a fifth of a grey value where contrast is lowest
CANDIDATES = 8  # per side, compared in full
BLOCK = 1024  # sides compared with all others in one matrix product
PAIRS = 4096  # compared in full at a time
NULL_PAIRS = 1000
NULL_PARTS = (1, 2, 4, 8)  # the null is measured on sides, and on parts of them
LEAST_SCORE = 4.5  # false pairs reach this even among few pairs
UNLIKELY = -99.0  # score of sides that cannot be compared


@dataclass(frozen=True)
class Bank:
    """All right, left, bottom or top sides of one length."""

    chips: Indices  # (N,), the chip that each side belongs to
    bands: NDArray[np.float16]  # float16 (N, D), see `Side`
    levels: Floats  # float32 (N, 3)
    valid_px: Indices  # (N,)
    length_px: int  # of the sides


@dataclass(frozen=True)
class Null:
    """Mean and standard deviation of the scores of false pairs, by how many valid pixels they have."""

    valid_px: Floats
    mean: Floats
    spread: Floats

    def standardised(self, scores: Floats, valid_px: Indices) -> Floats:
        """Returns scores in standard deviations above the mean of false pairs."""
        at = np.log(np.maximum(valid_px, 1))
        mean, spread = (np.interp(at, np.log(self.valid_px), values) for values in (self.mean, self.spread))
        return np.asarray((scores - mean) / spread, np.float32)


@dataclass(frozen=True)
class Matches:
    """Pairs of chips that may be neighbours, (N,) each.

    Args:
        first: the left or upper chip.
        second: the right or lower one.
        score: see the module's docstring.
        margin: how far the score lies above that of every other pair with either side, and above what the best of this
            many false pairs would reach; below 0 where another pair is better.
    """

    first: Indices
    second: Indices
    score: Floats
    margin: Floats


class Joiner:
    """Compares the sides of chips.

    Args:
        sides: of each chip.
    """

    def __init__(self, sides: Sequence[ChipSides]) -> None:
        self.sides = sides
        self._banks: dict[tuple[int, int], Bank] = {}
        self._nulls: dict[tuple[int, int], Null] = {}
        self._row_in_bank = np.full((4, len(sides)), -1, np.int64)
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for chip, of_chip in enumerate(sides):
            for side in range(4):
                groups[side, of_chip.length_px(side)].append(chip)
        for (side, length_px), chips in groups.items():
            self._banks[side, length_px] = _bank([sides[chip].sides[side] for chip in chips], chips, length_px)
            self._row_in_bank[side, chips] = np.arange(len(chips))

    def matches(self, direction: int) -> Matches:
        """Returns the best pairs of one direction, `RIGHT` or `BOTTOM`."""
        parts = [self._matches_of(direction, length_px) for side, length_px in sorted(self._banks) if side == direction]
        return Matches(*(np.concatenate([getattr(part, name) for part in parts]) for name in Matches.__annotations__))

    def score(self, direction: int, first: int, second: int) -> float | None:
        """Returns the score of one pair; None where a side has too little imagery, or their lengths differ."""
        length_px = self.sides[first].length_px(direction)
        facing = FACING[direction]
        if self.sides[second].length_px(facing) != length_px:
            return None
        pair = self.sides[first].sides[direction], self.sides[second].sides[facing]
        if min(side.valid_px for side in pair) < LEAST_PX:
            return None
        rows = self._row_in_bank[direction, [first]], self._row_in_bank[facing, [second]]
        return float(self._standardised(direction, length_px, *rows)[0])

    def _standardised(self, direction: int, length_px: int, rows: Indices, others: Indices) -> Floats:
        """Returns the scores of pairs, which are given as rows of two banks."""
        first, second = self._banks[direction, length_px], self._banks[FACING[direction], length_px]
        null = self._null(direction, length_px)
        scores = [np.empty(0, np.float32)]
        for start in range(0, len(rows), PAIRS):
            i, j = rows[start : start + PAIRS], others[start : start + PAIRS]
            valid_px = np.minimum(first.valid_px[i], second.valid_px[j])
            bands = first.bands[i].astype(np.float32), second.bands[j].astype(np.float32)
            raw = _scores(*bands, first.levels[i] - second.levels[j], valid_px, length_px)
            scores.append(null.standardised(raw, valid_px))
        return np.concatenate(scores)

    def _null(self, direction: int, length_px: int) -> Null:
        if (direction, length_px) not in self._nulls:
            first, second = self._banks[direction, length_px], self._banks[FACING[direction], length_px]
            self._nulls[direction, length_px] = _measure_null(first, second)
        return self._nulls[direction, length_px]

    def _matches_of(self, direction: int, length_px: int) -> Matches:
        """Returns the best pairs of the sides of one length."""
        first, second = self._banks[direction, length_px], self._banks[FACING[direction], length_px]
        rows, others = _candidates(first, second)
        score = self._standardised(direction, length_px, rows, others)
        rival = np.full(len(score), best_by_chance(len(first.chips) * len(second.chips)), np.float32)
        for ends in (rows, others):
            rival = np.maximum(rival, _best_other(ends, score))
        return Matches(first.chips[rows], second.chips[others], score, score - rival)


def best_by_chance(pairs: int) -> float:
    """Returns the score that the best of this many false pairs may reach.

    The best of n normal deviates reaches sqrt(2 log n), 5.05 for 350,000. Scores have longer tails: the best of 350,000
    false pairs of sides of 128 px reached 4.8 to 5.7.
    """
    return max(LEAST_SCORE, 1.1 * sqrt(2 * log(max(pairs, 2))))


def _bank(sides: Sequence[Side], chips: Sequence[int], length_px: int) -> Bank:
    return Bank(
        np.array(chips), np.stack([side.bands for side in sides]), np.stack([side.levels for side in sides]),
        np.array([side.valid_px for side in sides]), length_px,
    )  # fmt: skip


def _scores(first: Floats, second: Floats, level_steps: Floats, valid_px: Indices, length_px: int) -> Floats:
    """Returns the scores (P,) of pairs of bands (P, D) with differences of levels (P, 3)."""
    scores = -np.log(2 + np.abs(level_steps)) @ LEVEL_WEIGHTS
    for weight, where, step in zip(WEIGHTS, band_slices(length_px), (1, 2, 5, 5, 5), strict=True):
        one, other = first[:, where], second[:, where]
        energy = np.einsum("pd,pd->p", one, one) + np.einsum("pd,pd->p", other, other) + FLAT * valid_px / step
        alike = 2 * np.einsum("pd,pd->p", one, other) / energy
        scores += weight * np.arctanh(np.clip(alike, -MOST_CORRELATED, MOST_CORRELATED))
    return np.asarray(scores, np.float32)


def _candidates(first: Bank, second: Bank) -> tuple[Indices, Indices]:
    """Returns the likeliest pairs of each side, as rows of the banks, by a matrix product of all with all."""
    one, other = _directions(first), _directions(second)
    keep = min(CANDIDATES, len(other), len(one))
    best_rows = np.zeros((0, len(other)), np.int64)
    best_likeness = np.zeros((0, len(other)), np.float32)
    pairs = []
    for start in range(0, len(one), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(one)))
        likeness = one[rows] @ other.T
        likeness[first.valid_px[rows] < LEAST_PX] = UNLIKELY
        likeness[:, second.valid_px < LEAST_PX] = UNLIKELY
        likeness[first.chips[rows][:, None] == second.chips[None]] = UNLIKELY
        top = np.argpartition(-likeness, keep - 1, axis=1)[:, :keep]
        pairs.append(_likely(np.repeat(rows, keep), top.ravel(), np.take_along_axis(likeness, top, 1).ravel()))
        likeness = np.concatenate([best_likeness, likeness])
        at = np.concatenate([best_rows, np.broadcast_to(rows[:, None], (len(rows), len(other)))])
        top = np.argpartition(-likeness, keep - 1, axis=0)[:keep]
        best_likeness, best_rows = np.take_along_axis(likeness, top, 0), np.take_along_axis(at, top, 0)
    columns = np.broadcast_to(np.arange(len(other)), best_rows.shape)
    pairs.append(_likely(best_rows.ravel(), columns.ravel(), best_likeness.ravel()))
    unique = np.unique(np.concatenate(pairs, axis=1), axis=1)
    return unique[0], unique[1]


def _likely(rows: Indices, columns: Indices, likeness: Floats) -> Indices:
    """Returns (2, N): the pairs that can be compared."""
    comparable = likeness > UNLIKELY
    return np.stack([rows[comparable], columns[comparable]])


def _directions(bank: Bank) -> Floats:
    """Returns the sides' longer waves as vectors (N, D): the product of two is their weighted correlation."""
    parts = []
    for weight, where in zip(WEIGHTS[1:], band_slices(bank.length_px)[1:], strict=True):
        band = bank.bands[:, where].astype(np.float32)
        parts.append(sqrt(weight) * band / (np.linalg.norm(band, axis=1, keepdims=True) + 1))
    return np.concatenate(parts, axis=1)


def _best_other(ends: Indices, score: Floats) -> Floats:
    """Returns for each pair the best score of another pair with the same end, (N,); `UNLIKELY` where there is none."""
    order = np.lexsort((-score, ends))
    sorted_ends = ends[order]
    is_best = np.r_[True, sorted_ends[1:] != sorted_ends[:-1]]
    start = np.maximum.accumulate(np.where(is_best, np.arange(len(order)), 0))  # of each end's pairs
    behind = np.minimum(start + 1, len(order) - 1)
    second = np.where(sorted_ends[behind] == sorted_ends, score[order][behind], UNLIKELY)
    second = np.where(behind > start, second, UNLIKELY)
    other = np.empty(len(score), np.float32)
    other[order] = np.where(is_best, second, score[order][start])
    return other


def _measure_null(first: Bank, second: Bank) -> Null:
    """Returns the scores of pairs that cannot be true: the second side of each is read backwards."""
    rng = np.random.default_rng(0)
    slices = band_slices(first.length_px)
    backwards = np.concatenate([np.arange(where.stop - 1, where.start - 1, -1) for where in slices])
    rows, others = (_usable(bank) for bank in (first, second))
    rows_of_null = []
    for parts in NULL_PARTS:
        i, j = rng.choice(rows, NULL_PAIRS), rng.choice(others, NULL_PAIRS)
        shown = np.zeros((NULL_PAIRS, slices[-1].stop), np.float32)
        for pair, start in zip(shown, rng.uniform(0, 1 - 1 / parts, NULL_PAIRS), strict=True):
            for where in slices:
                size = where.stop - where.start
                pair[where.start + int(start * size) : where.start + int((start + 1 / parts) * size)] = 1
        one, other = first.bands[i] * shown, second.bands[j][:, backwards] * shown
        valid_px = np.full(NULL_PAIRS, first.length_px // parts)
        raw = _scores(one, other, first.levels[i] - second.levels[j], valid_px, first.length_px)
        rows_of_null.append((first.length_px / parts, raw.mean(), raw.std() + 1e-3))
    return Null(*(np.array(values, np.float32) for values in zip(*rows_of_null[::-1], strict=True)))


def _usable(bank: Bank) -> Indices:
    """Returns the rows of the sides with the most imagery."""
    rows: Indices = np.flatnonzero(bank.valid_px >= 0.9 * bank.length_px)
    return rows if len(rows) else np.arange(len(bank.chips))


__all__ = ["BOTTOM", "RIGHT", "Joiner", "Matches"]
