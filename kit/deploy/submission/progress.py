"""The records in a submission's folder: finished chips, the finished submission, `submission.csv`."""

import csv
import hashlib
import io
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self, TypeVar

from kit.errors import KitError, SubmissionError
from kit.system.files import file_version, read_json, read_limited, replacing, write_bytes, write_json

PROGRESS = ".progress.csv"
RANK_PROGRESS = ".progress.*.csv"  # of the ranks other than 0
FINISHED = ".finished.json"
TABLE = "submission.csv"
TABLE_COLUMNS = ("chip", "building_px", "building_fraction", "mean_confidence")
CHECKSUM = "crc32"  # of a row's other cells: a damaged row is recomputed


@dataclass(frozen=True)
class ProgressRow:
    """A row of a progress file; its fields are str, int or float."""

    chip: str
    made_by: str

    def to_line(self) -> str:
        """Returns the row as a line of CSV, with its checksum."""
        cells = [str(getattr(self, field.name)) for field in fields(self)]
        return _line([*cells, _checksum(cells)])

    @classmethod
    def from_line(cls, line: str) -> "Self | None":
        """Returns the row in a line; None where the line is incomplete or damaged."""
        if not line.endswith("\n"):
            return None
        try:
            *cells, checksum = next(csv.reader([line], strict=True))
            if checksum != _checksum(cells):
                return None
            kinds = [field.type for field in fields(cls)]
            return cls(*(kind(cell) for kind, cell in zip(kinds, cells, strict=True)))  # type: ignore[operator]
        except (csv.Error, ValueError, StopIteration):
            return None

    @classmethod
    def header(cls) -> list[str]:
        """Returns the names of the columns."""
        return [*(field.name for field in fields(cls)), CHECKSUM]


@dataclass(frozen=True)
class Done(ProgressRow):
    """A finished chip: one row of the progress file.

    Args:
        chip: its id.
        made_by: the weights, how their networks compute, and the cleaning, see `Job.identity`.
        image: version of the chip's image and of the images around it.
        height_px: of the chip.
        width_px: of the chip.
        building_px: of the mask.
        mean_confidence: mean of max(p, 1 - p), 0.5..1.
    """

    image: str
    height_px: int
    width_px: int
    building_px: int
    mean_confidence: float


Row = TypeVar("Row", bound=ProgressRow)


def _line(cells: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _checksum(cells: Iterable[str]) -> str:
    return f"{zlib.crc32(chr(0).join(cells).encode(errors='replace')):08x}"


def read_progress(folder: Path, made_by: str, kind: type[Row]) -> dict[str, Row]:
    """Returns the finished chips of all ranks, by id; damaged rows and those made in another way are left out.

    Args:
        folder: of the submission.
        made_by: see `Done`.
        kind: of the rows.
    """
    rows: dict[str, Row] = {}
    for path in (folder / PROGRESS, *sorted(folder.glob(RANK_PROGRESS))):
        if path.is_file():
            text = read_limited(path, error=SubmissionError, hint="remove it: its chips are predicted again")
            for line in text.decode(errors="replace").split("\n")[:-1]:
                row = kind.from_line(f"{line}\n")
                if row is not None and row.made_by == made_by:
                    rows[row.chip] = row
    return rows


def write_progress(
    folder: Path, rows: Iterable[ProgressRow] = (), kind: type[ProgressRow] = Done, name: str = PROGRESS
) -> None:
    """Rewrites a progress file, with rows of one kind."""
    text = "".join([_line(kind.header()), *(row.to_line() for row in rows)])
    write_bytes(folder / name, text.encode())


def write_table(rows: Iterable[Done], path: Path) -> None:
    """Writes `submission.csv`."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(TABLE_COLUMNS)
        for row in rows:
            fraction = f"{row.building_px / (row.height_px * row.width_px):.6f}"
            table.writerow([row.chip, row.building_px, fraction, f"{row.mean_confidence:.6f}"])


@dataclass(frozen=True)
class Finished:
    """A finished submission: what it was made from, what it consists of, and the result of its check."""

    request: str  # the weights, the options and the machine, in one text
    chips: str  # digest of the chips' ids and the versions of their images
    masks: str  # digest of the chips' ids and the versions of their masks
    files: dict[str, str]  # versions of the archive and the tables, by name
    building_fraction: float  # of all pixels, 0..1
    empty: int  # chips without a building pixel
    crc32: str = ""  # of the other fields: a damaged record is no record

    def write(self, folder: Path) -> None:
        """Writes the record into a submission's folder."""
        write_json(folder / FINISHED, vars(self) | {"crc32": self.checksum()})

    def checksum(self) -> str:
        """Returns the checksum of the other fields."""
        return _checksum(str(value) for name, value in vars(self).items() if name != "crc32")

    def holds(self, chips: str, masks: Mapping[str, Path], folder: Path, tables: Iterable[str] = ()) -> bool:
        """Returns whether chips, masks, archive and tables are as they were; it reads none of them."""
        try:
            is_same = self.chips == chips and self.masks == digest(masks)
            return is_same and file_versions(folder, tables).items() <= self.files.items()
        except KitError:  # something is missing
            return False


def read_finished(folder: Path) -> Finished | None:
    """Returns the record of a finished submission; None where there is none, or it is damaged."""
    try:
        record = read_json(folder / FINISHED, Finished)
    except KitError:
        return None
    return record if record.crc32 == record.checksum() else None


def archive_of(folder: Path) -> Path:
    """Returns the archive of a submission's folder, beside it."""
    return folder.with_name(f"{folder.name}.tgz")


def file_versions(folder: Path, tables: Iterable[str]) -> dict[str, str]:
    """Returns the versions of a submission's archive and tables, by name.

    Raises:
        KitError: one of them is missing.
    """
    return {path.name: file_version(path) for path in (archive_of(folder), *(folder / name for name in tables))}


def digest(files: Mapping[str, Path]) -> str:
    """Returns a text that changes when one of the files is written again, or another one belongs to an id.

    Raises:
        KitError: a file is missing.
    """
    lines = "\n".join(f"{name}/{file_version(path)}" for name, path in sorted(files.items()))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
