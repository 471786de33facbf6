"""Pairs of neighbours put together to grids: the surest first, and never against what stands already.

A pair joins the pieces that its two chips belong to. That lays other chips of the pieces side by side, too: these must
fit as well. So a false pair is found out, and a pair that is not sure by itself is joined where its neighbours vouch
for it.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np

from kit.deploy.mosaics.matching import Joiner, Matches
from kit.deploy.mosaics.sides import BOTTOM, RIGHT

SURE = 1.0  # margin of a pair that is joined for its own sake
VOUCHED = (
    6.0  # sum of the scores over the root of their number, of two and more pairs: those of false ones have 0, +- 1
)
WEAKEST = 1.0  # score of a pair that comes to lie together: of true ones, one of 1,000 is below 2
WEAK_SHARE = 0.1  # of such pairs may be weaker
LIKELY = 3.0  # score of the pair that leads to others: among four that make VOUCHED one has so much

Cell = tuple[int, int]  # row and column
Pair = tuple[int, int, int]  # direction, first chip, second chip
STEP = {RIGHT: (0, 1), BOTTOM: (1, 0)}


@dataclass
class Piece:
    """Chips that lie together: which chip a cell holds, and how high its rows and how wide its columns are, px."""

    cells: dict[Cell, int]
    heights: dict[int, int]
    widths: dict[int, int]

    def size(self) -> Cell:
        """Returns rows and columns."""
        rows, columns = {row for row, _ in self.cells}, {column for _, column in self.cells}
        return max(rows) - min(rows) + 1, max(columns) - min(columns) + 1


class Layout:
    """Pieces that grow: each chip has one place, and no place two chips.

    Args:
        joiner: compares the chips.

    Attributes:
        pieces: by number.
        piece_of: each chip's piece.
        cell_of: each chip's row and column in its piece.
        scores: of the pairs that were compared.
    """

    def __init__(self, joiner: Joiner) -> None:
        self.joiner = joiner
        sizes = [(border.height_px, border.width_px) for border in joiner.borders]
        self.pieces = {i: Piece({(0, 0): i}, {0: height}, {0: width}) for i, (height, width) in enumerate(sizes)}
        self.piece_of = list(range(len(sizes)))
        self.cell_of: list[Cell] = [(0, 0)] * len(sizes)
        self.scores: dict[Pair, float | None] = {}

    def score(self, pair: Pair) -> float | None:
        """Returns how well two chips continue each other; None where they have too little imagery to tell."""
        if pair not in self.scores:
            self.scores[pair] = self.joiner.score(*pair)
        return self.scores[pair]

    def seams(self, pair: Pair) -> list[Pair] | None:
        """Returns the pairs of chips that come to lie together when a pair is joined; None where there is no place."""
        _, first, second = pair
        one, other = self.pieces[self.piece_of[first]], self.pieces[self.piece_of[second]]
        if one is other:
            return None
        down, right = self.shift(pair)
        found: list[Pair] = []
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
            found += _beside(standing.cells, at, chip)
        return found

    def join(self, pair: Pair) -> None:
        """Lays the smaller of a pair's two pieces beside the larger one."""
        down, right = self.shift(pair)
        into, gone = self.piece_of[pair[1]], self.piece_of[pair[2]]
        if len(self.pieces[into].cells) < len(self.pieces[gone].cells):
            into, gone, down, right = gone, into, -down, -right
        piece, moved = self.pieces[into], self.pieces.pop(gone)
        for (row, column), chip in moved.cells.items():
            cell = row + down, column + right
            piece.cells[cell] = chip
            self.piece_of[chip], self.cell_of[chip] = into, cell
        piece.heights |= {row + down: height for row, height in moved.heights.items()}
        piece.widths |= {column + right: width for column, width in moved.widths.items()}

    def is_open(self, pair: Pair) -> bool:
        """Returns whether both chips still lack the neighbour that the pair would give them."""
        direction, first, second = pair
        (down, right), (row, column), (row_2, column_2) = STEP[direction], self.cell_of[first], self.cell_of[second]
        return (
            self.piece_of[first] != self.piece_of[second]
            and (row + down, column + right) not in self.pieces[self.piece_of[first]].cells
            and (row_2 - down, column_2 - right) not in self.pieces[self.piece_of[second]].cells
        )

    def shift(self, pair: Pair) -> Cell:
        """Returns what is added to the second piece's rows and columns when it is laid beside the first."""
        direction, first, second = pair
        (row, column), (row_2, column_2), (down, right) = self.cell_of[first], self.cell_of[second], STEP[direction]
        return row + down - row_2, column + right - column_2


def lay_out(joiner: Joiner, matches: dict[int, Matches]) -> Layout:
    """Returns the chips put together as far as they surely belong together.

    Args:
        joiner: of the chips.
        matches: what it found, by direction.
    """
    layout = Layout(joiner)
    margins: dict[Pair, float] = {}
    for direction, found in matches.items():
        rows = (values.tolist() for values in (found.first, found.second, found.score, found.margin))
        for first, second, score, margin in zip(*rows, strict=True):
            margins[direction, first, second] = margin
            layout.scores[direction, first, second] = score
    for pair in sorted((pair for pair, margin in margins.items() if margin >= SURE), key=lambda pair: -margins[pair]):
        seams = layout.seams(pair)
        if seams is not None and _fit(layout, seams):
            layout.join(pair)
    while vouched := _vouched(layout, margins):
        for pair in vouched:
            if layout.is_open(pair) and _strength(layout, pair) >= VOUCHED:
                layout.join(pair)
    return layout


def _vouched(layout: Layout, margins: dict[Pair, float]) -> list[Pair]:
    """Returns pairs that are not sure by themselves but fit several neighbours, better than any rival; best first."""
    likely = [pair for pair in margins if (layout.score(pair) or 0) >= LIKELY and layout.is_open(pair)]
    strengths = {pair: _strength(layout, pair) for pair in likely}
    strengths = {pair: strength for pair, strength in strengths.items() if strength >= VOUCHED}
    places = {pair: (layout.piece_of[pair[1]], layout.piece_of[pair[2]], layout.shift(pair)) for pair in strengths}
    takers: dict[tuple[int, int, bool], list[Pair]] = defaultdict(list)  # of each side
    for pair in strengths:
        for side in _sides(pair):
            takers[side].append(pair)

    def rival(pair: Pair) -> float:
        others = (other for side in _sides(pair) for other in takers[side] if places[other] != places[pair])
        return max((strengths[other] for other in others), default=-np.inf)

    alone = [pair for pair, strength in strengths.items() if strength >= rival(pair) + SURE]
    return sorted(alone, key=lambda pair: -strengths[pair])


def _strength(layout: Layout, pair: Pair) -> float:
    """Returns how well two pieces fit by several seams; minus infinity where they do not, or by one alone."""
    seams = layout.seams(pair)
    if not seams or len(known := _known(layout, seams)) < 2 or not _fit(layout, seams):
        return -np.inf
    return sum(known) / sqrt(len(known))


def _fit(layout: Layout, seams: list[Pair]) -> bool:
    """Returns whether (nearly) all chips that come to lie together may be neighbours."""
    known = _known(layout, seams)
    return sum(score < WEAKEST for score in known) <= WEAK_SHARE * len(known)


def _known(layout: Layout, seams: list[Pair]) -> list[float]:
    return [score for score in map(layout.score, seams) if score is not None]


def _beside(cells: dict[Cell, int], at: Cell, chip: int) -> Iterator[Pair]:
    """Yields the pairs that a chip makes with its neighbours when it is laid into a cell."""
    row, column = at
    for direction, (down, right) in STEP.items():
        if (before := cells.get((row - down, column - right))) is not None:
            yield direction, before, chip
        if (behind := cells.get((row + down, column + right))) is not None:
            yield direction, chip, behind


def _sides(pair: Pair) -> tuple[tuple[int, int, bool], tuple[int, int, bool]]:
    """Returns the two sides that a pair would take: direction, chip, whether it is the first of the two."""
    direction, first, second = pair
    return (direction, first, True), (direction, second, False)
