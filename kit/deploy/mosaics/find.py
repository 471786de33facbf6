"""The chips of a test set to mosaics: shuffled chips without georeference that once were one image."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import exp

from kit.console import meter
from kit.data.sources.chips import Chip
from kit.deploy.mosaics.layout import STEP, Cell, Layout, Pair, lay_out
from kit.deploy.mosaics.matching import Joiner, Matches
from kit.deploy.mosaics.sides import BOTTOM, RIGHT, Borders, read_borders
from kit.system.cpu import cpu_count
from kit.system.workers import spread

DECAY = 3.0  # the best of some hundred normal deviates stands out by x with a chance of exp(-3 x)


@dataclass(frozen=True)
class Placed:
    """A chip in its mosaic.

    Args:
        chip: the chip.
        row: from the top, 0 first.
        col: from the left, 0 first.
        height_px: of its image; width_px likewise.
        confidence: of its surest join, 0..1; 1 for a chip alone.
    """

    chip: Chip
    row: int
    col: int
    height_px: int
    width_px: int
    confidence: float


@dataclass(frozen=True)
class Join:
    """Two chips that lie side by side.

    Args:
        first: id of the left or upper chip.
        second: id of the right or lower one.
        below: whether the second lies below the first; else to its right.
        score: how well they continue each other, in standard deviations of false pairs; None where nodata hides it.
        confidence: 0..1, how far the score stands above all other pairs with these sides; 0 where only the chips
            around them say that they belong together.
    """

    first: str
    second: str
    below: bool
    score: float | None
    confidence: float


@dataclass(frozen=True)
class Mosaic:
    """Chips that lie together.

    Args:
        name: `m000` and so on, the mosaic with the most chips first.
        placed: its chips, row by row.
        joins: all pairs of them that lie side by side.
    """

    name: str
    placed: tuple[Placed, ...]
    joins: tuple[Join, ...]

    @cached_property
    def at(self) -> dict[Cell, Placed]:
        """The chips by row and column."""
        return {(placed.row, placed.col): placed for placed in self.placed}

    @cached_property
    def by_id(self) -> dict[str, Placed]:
        """The chips by their ids."""
        return {placed.chip.id: placed for placed in self.placed}

    @property
    def rows(self) -> int:
        """How many rows there are, empty places included."""
        return max(placed.row for placed in self.placed) + 1

    @property
    def cols(self) -> int:
        """How many columns there are."""
        return max(placed.col for placed in self.placed) + 1

    @cached_property
    def tops_px(self) -> list[int]:
        """Where each row begins, and, last, the mosaic's height."""
        heights = {placed.row: placed.height_px for placed in self.placed}
        return [0, *accumulate(heights[row] for row in range(self.rows))]

    @cached_property
    def lefts_px(self) -> list[int]:
        """Where each column begins, and, last, the mosaic's width."""
        widths = {placed.col: placed.width_px for placed in self.placed}
        return [0, *accumulate(widths[col] for col in range(self.cols))]

    @property
    def confidence(self) -> float:
        """That of its least sure chip, 0..1."""
        return min(placed.confidence for placed in self.placed)


def find_mosaics(chips: Sequence[Chip], processes: int = 0) -> list[Mosaic]:
    """Returns the mosaics that chips make, the largest first; a chip without a neighbour is one of its own.

    Each chip is read once; kept is what its sides show, some 17 kB of a chip of 1024 px. Neighbours are expected to lie
    edge to edge, unturned and at one scale; a side of fewer than 64 px is not joined.

    Args:
        chips: as `find_chips` returns them.
        processes: that read; by default one a core.

    Raises:
        RasterError: a chip is missing or broken.
    """
    return assemble(chips, read_all(chips, processes or cpu_count()))


def assemble(chips: Sequence[Chip], borders: Sequence[Borders]) -> list[Mosaic]:
    """Returns the mosaics that chips make, see `find_mosaics`.

    Args:
        chips: all of them.
        borders: of each.
    """
    joiner = Joiner(borders)
    matches = {direction: joiner.matches(direction) for direction in (RIGHT, BOTTOM)}
    layout = lay_out(joiner, matches)
    margins = _margins(matches)
    pieces = sorted(layout.pieces.values(), key=lambda piece: (-len(piece.cells), min(piece.cells.values())))
    return [_mosaic(f"m{n:03d}", piece.cells, chips, layout, margins) for n, piece in enumerate(pieces)]


def read_all(chips: Sequence[Chip], processes: int) -> list[Borders]:
    """Returns the sides of each chip.

    Raises:
        RasterError: a chip is missing or broken.
    """
    found: dict[Chip, Borders] = {}
    with meter("read chips", len(chips)) as progress:
        for chip, borders in spread(read_borders, chips, min(processes, max(1, len(chips)))):
            found[chip] = borders
            progress.advance()
    return [found[chip] for chip in chips]


def _margins(matches: dict[int, Matches]) -> dict[Pair, float]:
    return {
        (direction, first, second): margin
        for direction, found in matches.items()
        for first, second, margin in zip(
            found.first.tolist(), found.second.tolist(), found.margin.tolist(), strict=True
        )
    }


def _confidence(margin: float | None) -> float:
    """Returns the confidence of a join, 0..1, from its margin in standard deviations; None: it was no candidate."""
    return 0.0 if margin is None or margin <= 0 else 1 - exp(-DECAY * margin)


def _mosaic(
    name: str, cells: dict[Cell, int], chips: Sequence[Chip], layout: Layout, margins: dict[Pair, float]
) -> Mosaic:
    """Returns a piece of the layout as a mosaic whose rows and columns begin at 0."""
    top, left = (min(cell[axis] for cell in cells) for axis in (0, 1))
    joins = []
    surest = dict.fromkeys(cells.values(), 0.0 if len(cells) > 1 else 1.0)
    for (row, col), first in sorted(cells.items()):
        for direction, (down, right) in STEP.items():
            second = cells.get((row + down, col + right))
            if second is None:
                continue
            confidence = _confidence(margins.get((direction, first, second)))
            score = layout.score((direction, first, second))
            joins.append(Join(chips[first].id, chips[second].id, direction == BOTTOM, score, confidence))
            surest |= {chip: max(surest[chip], confidence) for chip in (first, second)}
    borders = layout.joiner.borders
    placed = [
        Placed(chips[i], row - top, col - left, borders[i].height_px, borders[i].width_px, surest[i])
        for (row, col), i in sorted(cells.items())
    ]
    return Mosaic(name, tuple(placed), tuple(joins))


__all__ = ["Join", "Mosaic", "Placed", "find_mosaics"]
