"""Finds mosaics: shuffled chips without georeference that once were one image."""

from collections.abc import Sequence
from math import exp
from pathlib import Path

from kit.console import meter, say
from kit.data.sources.chips import Chip
from kit.deploy.mosaics.layout import STEP, ChipPair, Layout, lay_out
from kit.deploy.mosaics.matching import Joiner, Matches
from kit.deploy.mosaics.mosaic import Cell, Join, Mosaic, PlacedChip, read_mosaics, write_table
from kit.deploy.mosaics.sides import BOTTOM, RIGHT, ChipSides, read_sides
from kit.system.cpu import cpu_count
from kit.system.files import replacing
from kit.system.workers import spread

__all__ = ["find_mosaics"]

DECAY = 3.0  # the best of some hundred normal deviates stands out by x with a chance of exp(-3 x)


def find_mosaics(chips: Sequence[Chip], processes: int | None = None) -> list[Mosaic]:
    """Returns the mosaics that chips make, the largest first; a chip without a neighbour is a mosaic of its own.

    Neighbours are expected to lie edge to edge, unturned and at one scale; a side of fewer than 64 px is not joined.

    Args:
        chips: as `find_chips` returns them.
        processes: that read images; None: one per CPU core.

    Raises:
        RasterError: a chip is missing or broken.
    """
    return assemble(chips, read_all(chips, processes or cpu_count()))


def known_mosaics(chips: Sequence[Chip], table: Path | None) -> list[Mosaic]:
    """Returns the mosaics that a table of `kit mosaic` has for chips; without such a table, searches for them.

    Args:
        chips: as `find_chips` returns them.
        table: `mosaics.csv`. It is written if its folder does not exist; a table of other images stays as it is.

    Raises:
        DataError: the table is damaged.
        RasterError: a chip is missing or broken.
    """
    if table is None:
        return find_mosaics(chips)
    if (mosaics := read_mosaics(table, chips)) is not None:
        say(f"mosaics: {table}")
        return mosaics
    if table.is_file():
        say(f"{table} belongs to other images: searching again; kit mosaic replaces the table")
    mosaics = find_mosaics(chips)
    if not table.parent.exists():
        with replacing(table) as file:
            write_table(mosaics, file)
    return mosaics


def assemble(chips: Sequence[Chip], sides: Sequence[ChipSides]) -> list[Mosaic]:
    """Returns the mosaics that chips make, see `find_mosaics`."""
    joiner = Joiner(sides)
    matches = {direction: joiner.matches(direction) for direction in (RIGHT, BOTTOM)}
    layout = lay_out(joiner, matches)
    margins = _margins(matches)
    groups = sorted(layout.groups.values(), key=lambda group: (-len(group.cells), min(group.cells.values())))
    return [_mosaic(f"m{n:03d}", group.cells, chips, layout, margins) for n, group in enumerate(groups)]


def read_all(chips: Sequence[Chip], processes: int) -> list[ChipSides]:
    """Returns the sides of each chip.

    Raises:
        RasterError: a chip is missing or broken.
    """
    sides: dict[Chip, ChipSides] = {}
    with meter("read chips", len(chips)) as progress:
        for chip, of_chip in spread(read_sides, chips, min(processes, max(1, len(chips))), "reading chips"):
            sides[chip] = of_chip
            progress.advance()
    return [sides[chip] for chip in chips]


def _margins(matches: dict[int, Matches]) -> dict[ChipPair, float]:
    return {
        ChipPair(direction, first, second): margin
        for direction, best in matches.items()
        for first, second, margin in zip(best.first.tolist(), best.second.tolist(), best.margin.tolist(), strict=True)
    }


def _confidence(margin: float | None) -> float:
    """Returns the confidence of a join, 0..1, from its margin in standard deviations; None for a pair not compared."""
    return 0.0 if margin is None or margin <= 0 else 1 - exp(-DECAY * margin)


def _mosaic(
    name: str, cells: dict[Cell, int], chips: Sequence[Chip], layout: Layout, margins: dict[ChipPair, float]
) -> Mosaic:
    """Returns a group of the layout as a mosaic whose rows and columns begin at 0."""
    top, left = (min(cell[axis] for cell in cells) for axis in (0, 1))
    joins = []
    confidences = dict.fromkeys(cells.values(), 0.0 if len(cells) > 1 else 1.0)
    for (row, col), first in sorted(cells.items()):
        for direction, (down, right) in STEP.items():
            second = cells.get((row + down, col + right))
            if second is None:
                continue
            pair = ChipPair(direction, first, second)
            confidence = _confidence(margins.get(pair))
            joins.append(Join(chips[first].id, chips[second].id, direction == BOTTOM, layout.score(pair), confidence))
            confidences |= {chip: max(confidences[chip], confidence) for chip in (first, second)}
    sides = layout.joiner.sides
    placed = [
        PlacedChip(
            chips[i], row - top, col - left, sides[i].height_px, sides[i].width_px, confidences[i], sides[i].version
        )
        for (row, col), i in sorted(cells.items())
    ]
    return Mosaic(name, tuple(placed), tuple(joins))
