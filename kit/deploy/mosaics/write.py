"""Writes mosaics: a folder with a table and pictures, rows for the terminal, JSON."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2

from kit.console import track
from kit.data.sources.chips import find_chips
from kit.deploy.mosaics.find import find_mosaics
from kit.deploy.mosaics.mosaic import TABLE, Mosaic, chip_rows, read_table, write_table
from kit.deploy.mosaics.pictures import draw_mosaic
from kit.errors import OutputError
from kit.outputs import check_apart, check_name, check_unclaimed
from kit.system.files import locked, replacing

COLUMNS = ("mosaic", "chips", "rows x cols", "joins", "lowest confidence")


def write_mosaics(test: Path, folder: Path, processes: int | None = None) -> list[Mosaic]:
    """Returns the mosaics of a test set, and writes `mosaics.csv` and a picture of each with more than one chip.

    Args:
        test: a STAC catalogue or a folder of chips.
        folder: to write into; the table and pictures of an earlier call are replaced, other files stay.
        processes: that read images; None: one per CPU core.

    Raises:
        CatalogError: the test set is missing or empty.
        RasterError: a chip cannot be read.
        OutputError: the folder was not written by kit mosaic, or lies among the chips.
    """
    chips = find_chips(test)
    check_apart(folder, [test, *(chip.path for chip in chips)], "--out or --root")
    with locked(folder):
        earlier = _pictures(folder)
        mosaics = find_mosaics(chips, processes)
        drawn = [mosaic for mosaic in mosaics if len(mosaic.placed) > 1]
        for name in {f"{mosaic.name}.png" for mosaic in drawn} - earlier:
            if (folder / name).exists():
                raise OutputError(f"{folder / name} exists and was not written by kit mosaic", "move it away")
        for name in earlier:
            (folder / name).unlink(missing_ok=True)
        with replacing(folder / TABLE) as table:  # before the pictures: it says which of them are kit's
            write_table(mosaics, table)
        for mosaic in track(drawn, "draw mosaics"):
            picture = cv2.cvtColor(draw_mosaic(mosaic), cv2.COLOR_RGB2BGR)
            with replacing(folder / f"{mosaic.name}.png") as file:
                file.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return mosaics


def _pictures(folder: Path) -> set[str]:
    """Returns the names of the pictures that kit mosaic wrote into a folder: those of the mosaics in its table."""
    if not (folder / TABLE).is_file():
        check_unclaimed(folder, "kit mosaic", "--out")
        return set()
    chips = Counter(row.mosaic for row in read_table(folder / TABLE))
    return {f"{check_name(name, 'mosaic')}.png" for name, count in chips.items() if count > 1}


def as_rows(mosaics: Sequence[Mosaic]) -> list[tuple[object, ...]]:
    """Returns a row for each mosaic of two or more chips, see `COLUMNS`; those of one chip share the last row."""
    rows: list[tuple[object, ...]] = [
        (m.name, len(m.placed), f"{m.rows} x {m.cols}", len(m.joins), f"{m.confidence:.4f}")
        for m in mosaics
        if len(m.placed) > 1
    ]
    single = sum(len(mosaic.placed) == 1 for mosaic in mosaics)
    return [*rows, ("alone", single, "1 x 1", 0, "")] if single else rows


def to_json(mosaics: Sequence[Mosaic]) -> str:
    """Returns mosaics with their chips and joins as JSON text."""
    records = [
        {
            "mosaic": mosaic.name, "chips": [asdict(row) for row in chip_rows(mosaic)], "rows": mosaic.rows,
            "cols": mosaic.cols, "joins": [asdict(join) for join in mosaic.joins], "confidence": mosaic.confidence,
        }
        for mosaic in mosaics
    ]  # fmt: skip
    return json.dumps(records, indent=1)
