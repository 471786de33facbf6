"""Arranges pairs of neighbours as grids, in order of confidence.

A pair joins the groups of its two chips. This also places other chips of the groups side by side, which must fit as
well. Therefore false pairs are rejected, and an uncertain pair is joined if the chips around it confirm it.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np

from kit.deploy.mosaics.matching import Joiner, Matches
from kit.deploy.mosaics.mosaic import Cell
from kit.deploy.mosaics.sides import BOTTOM, RIGHT

SURE = 1.0  # smallest margin of a pair that is joined without the support of others
SUPPORTED = 6.0  # smallest sum of scores / sqrt(number) of pairs that are joined together; of false ones 0 +- 1
WEAKEST = 1.0  # smallest score of pairs that become neighbours as a result; of 1,000 true pairs, one is below 2
WEAK_SHARE = 0.1  # this share of such pairs may score less
LIKELY = 3.0  # smallest score of the first pair of such a join: one of four that reach SUPPORTED has it
STEP = {RIGHT: (0, 1), BOTTOM: (1, 0)}  # rows and columns from a chip to its neighbour


class ChipPair(NamedTuple):
    """Two chips that may be neighbours."""

    direction: int  # `RIGHT` or `BOTTOM`: the side of the first chip that meets the second
    first: int  # number of the left or upper chip
    second: int  # number of the right or lower chip


@dataclass
class Group:
    """Chips that are laid out together."""

    cells: dict[Cell, int]  # the chip in each cell
    heights: dict[int, int]  # of each row, px
    widths: dict[int, int]  # of each column, px


class Layout:
    """Groups that grow: each chip has one cell, and no cell holds two chips.

    Attributes:
        groups: by number.
        group_of: the number of each chip's group.
        cell_of: each chip's row and column in its group.
        scores: of the pairs that were compared.
    """

    def __init__(self, joiner: Joiner) -> None:
        self.joiner = joiner
        sizes = [(sides.height_px, sides.width_px) for sides in joiner.sides]
        self.groups = {i: Group({(0, 0): i}, {0: height}, {0: width}) for i, (height, width) in enumerate(sizes)}
        self.group_of = list(range(len(sizes)))
        self.cell_of: list[Cell] = [(0, 0)] * len(sizes)
        self.scores: dict[ChipPair, float | None] = {}

    def score(self, pair: ChipPair) -> float | None:
        """Returns how well two chips continue each other; None where they have too little imagery to compare."""
        if pair not in self.scores:
            self.scores[pair] = self.joiner.score(*pair)
        return self.scores[pair]

    def seams(self, pair: ChipPair) -> list[ChipPair] | None:
        """Returns all pairs that become neighbours when a pair is joined; None where its chips cannot be laid so."""
        _, first, second = pair
        one, other = self.groups[self.group_of[first]], self.groups[self.group_of[second]]
        if one is other:
            return None
        down, right = self.shift(pair)
        pairs: list[ChipPair] = []
        moving, sign = (other, 1) if len(other.cells) <= len(one.cells) else (one, -1)
        standing = one if moving is other else other
        for (row, column), chip in moving.cells.items():
            at = row + sign * down, column + sign * right
            if at in standing.cells:
                return None
            sizes = standing.heights.get(at[0]), standing.widths.get(at[1])
            if any(
                a not in (None, b) for a, b in zip(sizes, (moving.heights[row], moving.widths[column]), strict=True)
            ):
                return None
            pairs += _beside(standing.cells, at, chip)
        return pairs

    def join(self, pair: ChipPair) -> None:
        """Lays the smaller of a pair's two groups beside the larger one."""
        down, right = self.shift(pair)
        into, gone = self.group_of[pair.first], self.group_of[pair.second]
        if len(self.groups[into].cells) < len(self.groups[gone].cells):
            into, gone, down, right = gone, into, -down, -right
        group, moved = self.groups[into], self.groups.pop(gone)
        for (row, column), chip in moved.cells.items():
            cell = row + down, column + right
            group.cells[cell] = chip
            self.group_of[chip], self.cell_of[chip] = into, cell
        group.heights |= {row + down: height for row, height in moved.heights.items()}
        group.widths |= {column + right: width for column, width in moved.widths.items()}

    def is_open(self, pair: ChipPair) -> bool:
        """Returns whether both chips still lack the neighbour that the pair would give them."""
        direction, first, second = pair
        (down, right), (row, column), (row_2, column_2) = STEP[direction], self.cell_of[first], self.cell_of[second]
        return (
            self.group_of[first] != self.group_of[second]
            and (row + down, column + right) not in self.groups[self.group_of[first]].cells
            and (row_2 - down, column_2 - right) not in self.groups[self.group_of[second]].cells
        )

    def shift(self, pair: ChipPair) -> Cell:
        """Returns what is added to the second group's rows and columns when it is laid beside the first."""
        direction, first, second = pair
        (row, column), (row_2, column_2), (down, right) = self.cell_of[first], self.cell_of[second], STEP[direction]
        return row + down - row_2, column + right - column_2


def lay_out(joiner: Joiner, matches: dict[int, Matches]) -> Layout:
    """Returns the chips laid out as far as they certainly belong together."""
    layout = Layout(joiner)
    margins: dict[ChipPair, float] = {}
    for direction, best in matches.items():
        columns = (values.tolist() for values in (best.first, best.second, best.score, best.margin))
        for first, second, score, margin in zip(*columns, strict=True):
            pair = ChipPair(direction, first, second)
            margins[pair], layout.scores[pair] = margin, score
    for pair in sorted((pair for pair, margin in margins.items() if margin >= SURE), key=lambda pair: -margins[pair]):
        seams = layout.seams(pair)
        if seams is not None and _fit(layout, seams):
            layout.join(pair)
    while supported := _supported(layout, margins):
        for pair in supported:
            if layout.is_open(pair) and _strength(layout, pair) >= SUPPORTED:
                layout.join(pair)
    return layout


def _supported(layout: Layout, margins: dict[ChipPair, float]) -> list[ChipPair]:
    """Returns uncertain pairs that several neighbours confirm, more than any rival; the best first."""
    likely = [pair for pair in margins if (layout.score(pair) or 0) >= LIKELY and layout.is_open(pair)]
    strengths = {pair: _strength(layout, pair) for pair in likely}
    strengths = {pair: strength for pair, strength in strengths.items() if strength >= SUPPORTED}
    places = {
        pair: (layout.group_of[pair.first], layout.group_of[pair.second], layout.shift(pair)) for pair in strengths
    }
    takers: dict[tuple[int, int, bool], list[ChipPair]] = defaultdict(list)  # the pairs that would use a side
    for pair in strengths:
        for side in _sides(pair):
            takers[side].append(pair)

    def rival(pair: ChipPair) -> float:
        others = (other for side in _sides(pair) for other in takers[side] if places[other] != places[pair])
        return max((strengths[other] for other in others), default=-np.inf)

    alone = [pair for pair, strength in strengths.items() if strength >= rival(pair) + SURE]
    return sorted(alone, key=lambda pair: -strengths[pair])


def _strength(layout: Layout, pair: ChipPair) -> float:
    """Returns how well two groups fit along several seams; minus infinity where they do not, or share only one."""
    seams = layout.seams(pair)
    if not seams or len(known := _known(layout, seams)) < 2 or not _fit(layout, seams):
        return -np.inf
    return sum(known) / sqrt(len(known))


def _fit(layout: Layout, seams: list[ChipPair]) -> bool:
    """Returns whether (nearly) all chips that would be laid side by side may be neighbours."""
    known = _known(layout, seams)
    return sum(score < WEAKEST for score in known) <= WEAK_SHARE * len(known)


def _known(layout: Layout, seams: list[ChipPair]) -> list[float]:
    return [score for score in map(layout.score, seams) if score is not None]


def _beside(cells: dict[Cell, int], at: Cell, chip: int) -> Iterator[ChipPair]:
    """Yields the pairs that a chip makes with its neighbours when it is laid into a cell."""
    row, column = at
    for direction, (down, right) in STEP.items():
        if (before := cells.get((row - down, column - right))) is not None:
            yield ChipPair(direction, before, chip)
        if (behind := cells.get((row + down, column + right))) is not None:
            yield ChipPair(direction, chip, behind)


def _sides(pair: ChipPair) -> tuple[tuple[int, int, bool], tuple[int, int, bool]]:
    """Returns the two sides that a pair would use: direction, chip, whether it is the first of the two."""
    direction, first, second = pair
    return (direction, first, True), (direction, second, False)
