"""The ground resolution of every mosaic of a test set, estimated once and kept in a table."""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.console import meter, say
from kit.deploy.mosaics.find import Mosaic
from kit.deploy.mosaics.resolution import estimate_gsd
from kit.deploy.weights.load import Weights
from kit.errors import DataError
from kit.system.files import file_version, replacing

TABLE = "resolutions.csv"
COLUMNS = ("mosaic", "chips", "gsd_m", "low_m", "high_m", "made_from")
ALIKE = 1.1  # a mosaic within this factor of the training resolution is seen as it is: estimates are no better


@dataclass(frozen=True)
class Found:
    """A mosaic's resolution, a row of the table.

    Args:
        mosaic: its name.
        chips: how many it has.
        gsd_m: metres per pixel; None where too few buildings are in sight, and for a chip alone.
        low_m: the least that it may be.
        high_m: the most.
        made_from: what it was estimated from: another one where weights or chips are others.
    """

    mosaic: str
    chips: int
    gsd_m: float | None
    low_m: float | None
    high_m: float | None
    made_from: str

    def factor(self, trained_gsd_m: float) -> float:
        """Returns by how much the mosaic is enlarged to be seen as in training; 1 where it may be just the same."""
        if self.gsd_m is None or self.low_m is None or self.high_m is None:
            return 1.0
        ratio = self.gsd_m / trained_gsd_m
        is_other = not self.low_m <= trained_gsd_m <= self.high_m and not 1 / ALIKE < ratio < ALIKE
        return ratio if is_other else 1.0


def find_resolutions(weights: Weights, mosaics: Sequence[Mosaic], table: Path) -> list[Found]:
    """Returns the resolution of each mosaic of two chips and more; those in the table are not estimated again.

    Args:
        weights: set up to predict.
        mosaics: as found.
        table: where they are kept, written anew.

    Raises:
        RasterError: a chip is missing or broken.
    """
    known = _read(table)
    joined = [mosaic for mosaic in mosaics if len(mosaic.placed) > 1]
    todo = sum(_made_from(weights, mosaic) not in known for mosaic in joined)
    rows = []
    with meter("estimate resolutions", todo) as progress:
        for mosaic in joined:
            made_from = _made_from(weights, mosaic)
            if made_from not in known:
                known[made_from] = _estimate(weights, mosaic, made_from)
                _write(table, list(known.values()))
                progress.advance()
            rows.append(known[made_from])
            _tell(rows[-1], weights.card.gsd_m)
    _write(table, rows)
    return rows


def _estimate(weights: Weights, mosaic: Mosaic, made_from: str) -> Found:
    count = len(mosaic.placed)
    try:
        seen = estimate_gsd(weights, mosaic)
    except DataError:  # hardly any building in sight
        return Found(mosaic.name, count, None, None, None, made_from)
    gsd_m, low_m, high_m = (round(metres, 4) for metres in (seen.gsd_m, seen.low_m, seen.high_m))  # as the table has it
    return Found(mosaic.name, count, gsd_m, low_m, high_m, made_from)


def _tell(found: Found, trained_gsd_m: float) -> None:
    if found.gsd_m is None:
        say(f"{found.mosaic}, {found.chips} chips: too few buildings in sight to tell its resolution, seen as it is")
        return
    factor = found.factor(trained_gsd_m)
    seen = "seen as it is" if factor == 1 else f"seen at {factor:.2f} times its size"
    span = f"{found.low_m:.3f} to {found.high_m:.3f}"
    say(f"{found.mosaic}, {found.chips} chips: {found.gsd_m:.3f} m per pixel ({span}), {seen}")


def _made_from(weights: Weights, mosaic: Mosaic) -> str:
    chips = " ".join(f"{placed.chip.id} {file_version(placed.chip.path)}" for placed in mosaic.placed)
    return hashlib.sha256(f"{weights.sha256} {mosaic.name} {chips}".encode()).hexdigest()


def _read(table: Path) -> dict[str, Found]:
    """Returns the rows of a table by what they were made from; none where there is none, or it is damaged."""
    try:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {row["made_from"]: _parsed(row) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _parsed(row: dict[str, str]) -> Found:
    gsd_m, low_m, high_m = (float(row[name]) if row[name] else None for name in ("gsd_m", "low_m", "high_m"))
    return Found(row["mosaic"], int(row["chips"]), gsd_m, low_m, high_m, row["made_from"])


def _write(table: Path, rows: Sequence[Found]) -> None:
    with replacing(table) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            numbers = ("" if number is None else f"{number:.4f}" for number in (row.gsd_m, row.low_m, row.high_m))
            writer.writerow([row.mosaic, row.chips, *numbers, row.made_from])
