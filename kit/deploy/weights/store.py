"""The folder of weights: its index, and exports that replace all files of a name at once.

An export is written into the hidden folder `.NAME.part`. One rename to `.NAME.new` makes it valid. Then its files move
into place one by one, and the index gets its row. A process that is killed before the rename leaves the old weights;
after it, the new ones: whoever reads or writes weights next completes the moves (`settle`).
"""

import csv
import io
import math
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kit.deploy.trust.zip_records import read_extra
from kit.deploy.weights.card import Card
from kit.errors import KitError, OutputError, WeightsError
from kit.outputs import check_name
from kit.system.files import (
    check_writable,
    locked,
    parse_json,
    read_json,
    read_limited,
    replacing,
    write_json,
    write_remedy,
)

INDEX = "index.csv"
INDEX_COLUMNS = ("name", "recipe", "members", "views", "score", "gsd_m", "created", "file_sha256")
SUFFIXES = (".pt", ".json", ".parity.json", ".pt2", ".onnx", ".gis.onnx", ".stac.json", ".gis.stac.json")
PART, NEW = ".part", ".new"
CONTENTS = "contents.json"  # the suffixes of the files of an export
IN_PLACE = "in-place"  # an empty file in the folder of an export that keeps its row in the index
CARD_LIMIT_BYTES = 16 * 2**20
LOCK_TRIES, LOCK_WAIT_S = 200, 0.05
HINT = "export or fetch the weights again"


@dataclass(frozen=True)
class IndexRow:
    """A row of `index.csv`; numbers that are invalid, for example after editing, are None."""

    name: str  # of the weights
    recipe: str  # the recipe; of several, their names joined by `+`
    members: int | None  # how many networks
    views: str  # `none`, `flips` or `d4`
    score: float | None  # pooled Jaccard out of fold, 0..1
    gsd_m: float | None  # metres per pixel of the training tiles
    created: str  # UTC, ISO 8601
    file_sha256: str  # of `NAME.pt`, in hex

    def cells(self) -> tuple[object, ...]:
        """Returns the row as it is written."""
        score = "" if self.score is None else f"{self.score:.4f}"
        gsd = "" if self.gsd_m is None else f"{self.gsd_m:.4f}"
        return self.name, self.recipe, self.members, self.views, score, gsd, self.created, self.file_sha256


@dataclass(frozen=True)
class Sealed:
    """What all JSON files beside weights have."""

    file_sha256: str  # of `NAME.pt`, in hex


def read_index(weights_dir: Path) -> list[IndexRow]:
    """Returns the rows of `index.csv`, the newest last; an empty list where nothing was exported yet.

    Raises:
        WeightsError: it is not as `list_in_index` writes it.
        OutputError: see `settle`.
    """
    settle(weights_dir)
    return _read_rows(weights_dir)


def _read_rows(weights_dir: Path) -> list[IndexRow]:
    index = weights_dir / INDEX
    if not index.is_file():
        return []
    hint = "correct it, or move it away and export again"
    content = read_limited(index, error=WeightsError, hint=hint)
    try:
        reader = csv.DictReader(io.StringIO(content.decode(), newline=""))
        rows = list(reader)
        if not set(INDEX_COLUMNS) <= set(reader.fieldnames or ()):
            raise ValueError(f"expected the columns {', '.join(INDEX_COLUMNS)}")
        if short := [number for number, row in enumerate(rows, 2) if None in map(row.get, INDEX_COLUMNS)]:
            raise ValueError(f"line {short[0]} has too few columns")
        return [_row(row) for row in rows]
    except (ValueError, csv.Error) as cause:
        raise WeightsError(f"{index} is unreadable: {cause}", hint) from cause


def _row(row: dict[str, str]) -> IndexRow:
    name = row["name"]
    if not name or Path(name).name != name or name[0] == ".":
        raise ValueError(f"{name!r} names no weights")
    if odd := [value for key in INDEX_COLUMNS if not (value := row[key]).isprintable()]:
        raise ValueError(f"{odd[0]!r} holds control characters")
    return IndexRow(
        name, row["recipe"], _whole(row["members"]), row["views"], _number(row["score"]),
        _number(row["gsd_m"]), row["created"], row["file_sha256"],
    )  # fmt: skip


def _number(text: str) -> float | None:
    """Returns a finite number; None for any other text."""
    try:
        return number if math.isfinite(number := float(text)) else None
    except ValueError:
        return None


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 10 else None


def list_in_index(weights_dir: Path, name: str, card: Card, file_sha256: str, in_place: bool = False) -> None:
    """Makes `name` the last row of `index.csv`, and its only one.

    Args:
        weights_dir: the folder of weights.
        name: of the weights.
        card: of the weights.
        file_sha256: of `NAME.pt`, in hex.
        in_place: whether the row stays where it is, and weights without a row get none.
    """
    new = IndexRow(
        name, card.recipe, len(card.members), card.views, card.score, card.gsd_m, card.created, file_sha256
    )  # fmt: skip
    with ExitStack() as stack:
        for attempt in range(LOCK_TRIES):
            try:
                stack.enter_context(locked(weights_dir / INDEX))
                break
            except KitError as cause:
                if isinstance(cause, OutputError) or attempt == LOCK_TRIES - 1:
                    raise
                time.sleep(LOCK_WAIT_S)
        for leftover in weights_dir.glob(".index.*.part.csv"):  # of a killed process
            leftover.unlink(missing_ok=True)
        rows = _read_rows(weights_dir)
        if in_place:
            rows = [new if row.name == name else row for row in rows]
        else:
            rows = [*(row for row in rows if row.name != name), new]
        if not rows:
            return
        temporary = stack.enter_context(replacing(weights_dir / INDEX))
        with temporary.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([INDEX_COLUMNS, *(row.cells() for row in rows)])


def read_beside(path: Path) -> tuple[Card, str]:
    """Returns the card in `NAME.json` and the checksum of `NAME.pt` that stands there.

    Raises:
        WeightsError: it is missing, damaged or no card.
    """
    content = read_limited(path, CARD_LIMIT_BYTES, WeightsError, HINT)
    return Card.from_json(content, str(path)), parse_json(content, Sealed, str(path), WeightsError, HINT).file_sha256


def read_checksum(path: Path) -> str:
    """Returns the checksum of `NAME.pt`, in hex, that stands in a JSON file beside it.

    Raises:
        WeightsError: there is none.
    """
    content = read_limited(path, CARD_LIMIT_BYTES, WeightsError, HINT)
    return parse_json(content, Sealed, str(path), WeightsError, HINT).file_sha256


def check_free(weights_dir: Path, name: str) -> None:
    """Checks that weights of this name may be written: there are none, or they are kit's.

    Raises:
        OutputError: the name is invalid, the folder cannot be written, or a file of that name is neither listed in
            `index.csv` nor carries a card.
    """
    path = weights_dir / f"{check_name(name)}.pt"
    check_writable(weights_dir)
    if any(row.name == name for row in read_index(weights_dir)):
        return
    for file in (weights_dir / f"{name}{suffix}" for suffix in SUFFIXES):
        if file.exists() and not _is_ours(path):
            raise OutputError(
                f"{file} exists and was not written by kit", "choose another --name, or move that file away"
            )


def _is_ours(weights: Path) -> bool:
    try:
        return read_extra(weights, "card.json") is not None
    except WeightsError:
        return False


@contextmanager
def staged(weights_dir: Path, name: str, in_place: bool = False) -> Iterator[Path]:
    """Yields an empty folder; the files NAME.SUFFIX written into it replace all files of that name at the block's end.

    Leftovers of killed exports of that name are removed. When the block fails nothing changes.

    Args:
        weights_dir: the folder of weights.
        name: of the weights.
        in_place: whether the weights keep their place in the index, see `list_in_index`.

    Raises:
        KitError: another process exports weights of that name.
        OutputError: the folder cannot be written.
    """
    check_writable(weights_dir)
    part = weights_dir / f".{name}{PART}"
    with locked(weights_dir / name):
        settle(weights_dir, name)
        _remove_leftovers(weights_dir, name)
        try:
            part.mkdir()
            yield part
            if in_place:
                (part / IN_PLACE).touch()
            write_json(part / CONTENTS, [suffix for suffix in SUFFIXES if (part / f"{name}{suffix}").exists()])
            part.replace(part.with_suffix(NEW))
        except OSError as cause:
            if cause.errno is None or isinstance(cause, FileNotFoundError):
                raise
            raise OutputError(f"cannot write {weights_dir}: {cause.strerror}", write_remedy(cause)) from cause
        finally:
            shutil.rmtree(part, ignore_errors=True)
        settle(weights_dir, name)


def settle(weights_dir: Path, name: str = "") -> None:
    """Moves the files of valid exports into place.

    Several processes may do so at once: each move is one rename, which only one of them gets done.

    Args:
        weights_dir: the folder of weights.
        name: of the only weights that are looked at; empty for all.

    Raises:
        OutputError: the folder cannot be written.
    """
    for folder in sorted(weights_dir.glob(f".*{NEW}")):
        if name in ("", folder.stem[1:]):
            try:
                _move_in(folder)
            except OSError as cause:
                raise OutputError(
                    f"{weights_dir} holds an unfinished export of {folder.stem[1:]} that cannot be completed: "
                    f"{cause.strerror}",
                    "make the folder writable, or export again",
                ) from cause


def _move_in(folder: Path) -> None:
    """Moves the files of one valid export into place, removes what it does not have, lists it, removes the folder."""
    weights_dir, name = folder.parent, folder.stem[1:]
    if not (folder / CONTENTS).is_file():  # all was moved, or another process is about to finish
        shutil.rmtree(folder, ignore_errors=True)
        return
    contents = read_json(folder / CONTENTS, list[str], error=WeightsError, hint=f"remove {folder}, and export again")
    for suffix in SUFFIXES:
        if suffix in contents:
            with suppress(FileNotFoundError):  # moved before
                (folder / f"{name}{suffix}").replace(weights_dir / f"{name}{suffix}")
        else:
            (weights_dir / f"{name}{suffix}").unlink(missing_ok=True)
    card, sha256 = read_beside(weights_dir / f"{name}.json")
    list_in_index(weights_dir, name, card, sha256, (folder / IN_PLACE).exists())
    shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(weights_dir: Path, name: str) -> None:
    """Removes what killed exports of a name left, also those of kit 0.1.0."""
    leftover = re.compile(rf"\.{re.escape(name)}((\.parity)?\.\d+\.part\.\w+|{re.escape(PART)})")
    for path in list(weights_dir.glob(".*")):
        if leftover.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
