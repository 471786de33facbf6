"""Mosaics: chips with their rows and columns, and the joins between them. Reads and writes `mosaics.csv`."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from kit.data.sources.chips import Chip
from kit.errors import DataError, KitError, RasterError
from kit.outputs import as_name
from kit.paths import Paths
from kit.system.files import file_version

TABLE = "mosaics.csv"
RESOLUTIONS = "resolutions.csv"  # see `kit.deploy.mosaics.resolution`; its name is here for readers without torch
Cell = tuple[int, int]  # row and column


@dataclass(frozen=True)
class PlacedChip:
    """A chip at its place in a mosaic."""

    chip: Chip
    row: int  # from the top, 0 first
    col: int  # from the left, 0 first
    height_px: int  # of its image
    width_px: int  # of its image
    confidence: float  # of its most certain join, 0..1; 1 for a chip without neighbours
    version: str = ""  # of the file when it was searched, see `file_version`


@dataclass(frozen=True)
class Join:
    """Two chips that lie side by side."""

    first: str  # id of the left or upper chip
    second: str  # id of the right or lower chip
    below: bool  # whether the second lies below the first; else to its right
    # how well they continue each other, in standard deviations of false pairs; None where nodata hides it
    score: float | None
    # 0..1, how far the score stands above all other pairs with these sides; 0 where only the chips around them show
    # that they belong together
    confidence: float


@dataclass(frozen=True)
class Mosaic:
    """Chips that lie together."""

    name: str  # `m000` and so on; the mosaic with the most chips comes first
    placed: tuple[PlacedChip, ...]  # its chips, row by row
    joins: tuple[Join, ...]  # all pairs of them that lie side by side; empty if the mosaic was read from a table

    @cached_property
    def at(self) -> dict[Cell, PlacedChip]:
        """The chips by row and column."""
        return {(placed.row, placed.col): placed for placed in self.placed}

    @cached_property
    def by_id(self) -> dict[str, PlacedChip]:
        """The chips by id."""
        return {placed.chip.id: placed for placed in self.placed}

    @property
    def rows(self) -> int:
        """Number of rows, empty cells included."""
        return max(placed.row for placed in self.placed) + 1

    @property
    def cols(self) -> int:
        """Number of columns, empty cells included."""
        return max(placed.col for placed in self.placed) + 1

    @cached_property
    def tops_px(self) -> list[int]:
        """Where each row begins; the last entry is the mosaic's height."""
        heights = {placed.row: placed.height_px for placed in self.placed}
        return [0, *accumulate(heights[row] for row in range(self.rows))]

    @cached_property
    def lefts_px(self) -> list[int]:
        """Where each column begins; the last entry is the mosaic's width."""
        widths = {placed.col: placed.width_px for placed in self.placed}
        return [0, *accumulate(widths[col] for col in range(self.cols))]

    @property
    def confidence(self) -> float:
        """Confidence of its least certain chip, 0..1."""
        return min(placed.confidence for placed in self.placed)


@dataclass(frozen=True)
class ChipRow:
    """A row of `mosaics.csv`: one chip."""

    chip: str  # its id
    mosaic: str  # name of its mosaic
    row: int  # from the top, 0 first
    col: int  # from the left, 0 first
    height_px: int  # of its image
    width_px: int  # of its image
    top_px: int  # where it begins in the mosaic
    left_px: int  # where it begins in the mosaic
    joins: int  # how many of its sides lie beside another chip
    confidence: float  # see `PlacedChip`
    version: str = ""  # see `PlacedChip`; empty in tables of kit 0.1


CHIP_COLUMNS = tuple(ChipRow.__annotations__)


def chip_rows(mosaic: Mosaic) -> list[ChipRow]:
    """Returns the rows that the table has for a mosaic."""
    joins = Counter(chip for join in mosaic.joins for chip in (join.first, join.second))
    return [
        ChipRow(
            placed.chip.id, mosaic.name, placed.row, placed.col, placed.height_px, placed.width_px,
            mosaic.tops_px[placed.row], mosaic.lefts_px[placed.col], joins[placed.chip.id], placed.confidence,
            placed.version,
        )
        for placed in mosaic.placed
    ]  # fmt: skip


def write_table(mosaics: Sequence[Mosaic], path: Path) -> None:
    """Writes one row per chip, see `ChipRow`."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, CHIP_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in (row for mosaic in mosaics for row in chip_rows(mosaic)):
            writer.writerow(asdict(row) | {"confidence": f"{row.confidence:.4f}"})


def read_table(path: Path) -> list[ChipRow]:
    """Returns the rows of `mosaics.csv`.

    Raises:
        DataError: it is missing, or not as `write_table` writes it.
    """
    hint = "remove it, and run kit mosaic TEST again"
    if not path.is_file():
        raise DataError(f"no table {path}", "run kit mosaic TEST")
    try:
        with path.open(newline="") as file:
            columns, *rows = csv.reader(file)
        if tuple(columns) not in (CHIP_COLUMNS, CHIP_COLUMNS[:-1]):
            found, expected = (", ".join(names) for names in (columns, CHIP_COLUMNS))
            raise DataError(f"{path} has the columns {found!r}, expected {expected!r}", hint)
        kinds = list(ChipRow.__annotations__.values())[: len(columns)]
        return [ChipRow(*(kind(cell) for kind, cell in zip(kinds, row, strict=True))) for row in rows]
    except (ValueError, csv.Error) as cause:
        raise DataError(f"{path} is not a table of kit mosaic: {cause}", hint) from cause


def table_of(test: Path, paths: Paths) -> Path:
    """Returns where `kit mosaic` writes the table of a test set: a folder of chips, or a STAC catalogue."""
    folder = test.parent if test.suffix == ".json" else test
    return paths.mosaics(as_name(folder.resolve().name, "test")) / TABLE


def read_mosaics(path: Path, chips: Sequence[Chip]) -> list[Mosaic] | None:
    """Returns the mosaics in a table; None if there is none, or it was written for other images than these chips'.

    Raises:
        DataError: the table is damaged.
        RasterError: a chip is missing.
    """
    if not path.is_file():
        return None
    rows = read_table(path)
    by_id = {chip.id: chip for chip in chips}
    try:
        versions = {chip.id: file_version(chip.path) for chip in chips}
    except KitError as cause:
        raise RasterError(cause.message, cause.hint) from cause
    if len(rows) != len(chips) or {row.chip: row.version for row in rows} != versions:
        return None
    placed: dict[str, list[PlacedChip]] = {}
    for row in rows:
        place = PlacedChip(
            by_id[row.chip], row.row, row.col, row.height_px, row.width_px, row.confidence, row.version
        )  # fmt: skip
        placed.setdefault(row.mosaic, []).append(place)
    mosaics = [Mosaic(name, tuple(chips_of), ()) for name, chips_of in placed.items()]
    if not all(map(_is_grid, mosaics)):
        raise DataError(f"{path} is damaged: its rows and columns are not those of a grid", "remove it")
    return mosaics


def _is_grid(mosaic: Mosaic) -> bool:
    """Returns whether no cell holds two chips, no row or column is empty, and all chips of one have its size."""
    try:
        return len(mosaic.at) == len(mosaic.placed) and all(
            mosaic.tops_px[placed.row] + placed.height_px == mosaic.tops_px[placed.row + 1]
            and mosaic.lefts_px[placed.col] + placed.width_px == mosaic.lefts_px[placed.col + 1]
            for placed in mosaic.placed
        )
    except KeyError:
        return False
