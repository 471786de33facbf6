"""Mosaics as a table, as pictures and as JSON."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2

from kit.console import track
from kit.data.sources.chips import find_chips
from kit.deploy.mosaics.find import Mosaic, find_mosaics
from kit.deploy.mosaics.pictures import draw_mosaic
from kit.errors import DataError, OutputError
from kit.outputs import check_apart, check_name, check_unclaimed
from kit.system.files import locked, replacing

TABLE = "mosaics.csv"
COLUMNS = ("mosaic", "chips", "rows x cols", "joins", "lowest confidence")
CHIP_COLUMNS = ("chip", "mosaic", "row", "col", "height_px", "width_px", "top_px", "left_px", "joins", "confidence")


def write_mosaics(test: Path, folder: Path, processes: int = 0) -> list[Mosaic]:
    """Returns the mosaics of a test set, and writes `mosaics.csv` and a picture of each with more than one chip.

    Args:
        test: a STAC catalogue or a folder of .tif chips.
        folder: to write into; the table and pictures of an earlier call are replaced, other files stay.
        processes: that read; by default one a core.

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
                raise OutputError(f"{folder / name} exists, and kit mosaic did not write it", "move it away")
        for name in earlier:
            (folder / name).unlink(missing_ok=True)
        with replacing(folder / TABLE) as table:  # first: it names the pictures that are kit's
            write_table(mosaics, table)
        for mosaic in track(drawn, "draw mosaics"):
            picture = cv2.cvtColor(draw_mosaic(mosaic), cv2.COLOR_RGB2BGR)
            with replacing(folder / f"{mosaic.name}.png") as file:
                file.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return mosaics


def _pictures(folder: Path) -> set[str]:
    """Returns the names of the pictures in a folder that kit mosaic wrote: those of the mosaics in its table.

    Raises:
        OutputError: the folder holds files, and no table.
        DataError: the table is not kit's.
    """
    if not (folder / TABLE).is_file():
        check_unclaimed(folder, "kit mosaic", "--out")
        return set()
    chips = Counter(row["mosaic"] for row in read_table(folder / TABLE))
    return {f"{check_name(name, 'mosaic')}.png" for name, count in chips.items() if count > 1}


def write_table(mosaics: Sequence[Mosaic], path: Path) -> None:
    """Writes a row a chip, see `CHIP_COLUMNS`."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CHIP_COLUMNS)
        for mosaic in mosaics:
            for row in chip_rows(mosaic):
                writer.writerow([f"{row['confidence']:.4f}" if name == "confidence" else row[name] for name in row])


def chip_rows(mosaic: Mosaic) -> list[dict[str, Any]]:
    """Returns what the table says about each chip of a mosaic, by `CHIP_COLUMNS`."""
    joins = [chip for join in mosaic.joins for chip in (join.first, join.second)]
    rows = []
    for placed in mosaic.placed:
        cells = (
            placed.chip.id, mosaic.name, placed.row, placed.col, placed.height_px, placed.width_px,
            mosaic.tops_px[placed.row], mosaic.lefts_px[placed.col], joins.count(placed.chip.id), placed.confidence,
        )  # fmt: skip
        rows.append(dict(zip(CHIP_COLUMNS, cells, strict=True)))
    return rows


def as_rows(mosaics: Sequence[Mosaic]) -> list[tuple[object, ...]]:
    """Returns a row for each mosaic of more than one chip, see `COLUMNS`; the chips that are alone share the last."""
    rows: list[tuple[object, ...]] = [
        (m.name, len(m.placed), f"{m.rows} x {m.cols}", len(m.joins), f"{m.confidence:.4f}")
        for m in mosaics
        if len(m.placed) > 1
    ]
    alone_ = sum(len(mosaic.placed) == 1 for mosaic in mosaics)
    return [*rows, ("alone", alone_, "1 x 1", 0, "")] if alone_ else rows


def to_json(mosaics: Sequence[Mosaic]) -> str:
    """Returns mosaics with their chips and joins as JSON text."""
    told = [
        {
            "mosaic": mosaic.name, "chips": chip_rows(mosaic), "rows": mosaic.rows, "cols": mosaic.cols,
            "joins": [asdict(join) for join in mosaic.joins], "confidence": mosaic.confidence,
        }
        for mosaic in mosaics
    ]  # fmt: skip
    return json.dumps(told, indent=1)


def read_table(path: Path) -> list[dict[str, str]]:
    """Returns the rows of `mosaics.csv`.

    Raises:
        DataError: it is missing, or not as `write_table` writes it.
    """
    hint = "make it: kit mosaic TEST"
    if not path.is_file():
        raise DataError(f"no table {path}", hint)
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != CHIP_COLUMNS:
        raise DataError(f"{path} has the columns {reader.fieldnames}, expected {', '.join(CHIP_COLUMNS)}", hint)
    return rows
