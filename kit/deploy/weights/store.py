"""The weights of a working root: the rows of index.csv, held against the files and cards that lie there."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kit.deploy.weights.card import Card
from kit.errors import WeightsError
from kit.system.files import replacing, sha256_of

INDEX = "index.csv"
INDEX_COLUMNS = ("name", "recipe", "members", "views", "score", "gsd_m", "created", "file_sha256")
COLUMNS = ("weights", "state", "recipe", "members", "views", "score", "gsd_m", "parity", "formats", "created", "sha256")
FORMATS = ("pt", "pt2", "onnx")
SHOWN_SHA256 = 8  # digits


@dataclass(frozen=True)
class Listed:
    """Weights as their row in the index tells them; of a file that is not listed, as its card does.

    Args:
        name: of the weights.
        newest: whether `kit submit` takes them by default.
        state: of the files; empty when all is well.
        recipe: the recipe, or a name for the mixture.
        members: how many networks.
        views: `none`, `flips` or `d4`.
        score: pooled Jaccard out of fold, 0..1.
        gsd_m: metres per pixel of the training tiles.
        created: UTC, ISO 8601.
        file_sha256: of `NAME.pt` as it should be, in hex.
        parity_max_abs: the largest difference in probability from the eager networks, by the card.
        parity_equal_masks: the share of pixels with the same mask, 0..1, by the card.
        formats: suffixes of the files that are there.
        problem: what is wrong with them, in a sentence.
    """

    name: str
    newest: bool = False
    state: Literal["", "missing", "changed", "unlisted", "unreadable"] = ""
    recipe: str | None = None
    members: int | None = None
    views: str | None = None
    score: float | None = None
    gsd_m: float | None = None
    created: str | None = None
    file_sha256: str | None = None
    parity_max_abs: float | None = None
    parity_equal_masks: float | None = None
    formats: tuple[str, ...] = ()
    problem: str | None = None

    def cells(self) -> tuple[object, ...]:
        """Returns a table row, see COLUMNS; what is not known is blank."""
        state = ", ".join(word for word in ("newest" * self.newest, self.state) if word)
        gsd = None if self.gsd_m is None else f"{self.gsd_m:g}"
        parity = None if self.parity_max_abs is None else f"{self.parity_max_abs:.0e}"
        sha256, day = (self.file_sha256 or "")[:SHOWN_SHA256], (self.created or "").partition("T")[0]
        row = (
            self.name, state, self.recipe, self.members, self.views, self.score, gsd, parity, " ".join(self.formats),
            day, sha256,
        )  # fmt: skip
        return tuple("" if cell is None else cell for cell in row)


def read_index(weights_dir: Path) -> list[dict[str, str]]:
    """Returns the rows of `index.csv`, the newest last; none where nothing was exported yet.

    Raises:
        WeightsError: it is not as `list_in_index` writes it.
    """
    index = weights_dir / INDEX
    if not index.is_file():
        return []
    try:
        with index.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        if not set(INDEX_COLUMNS) <= set(reader.fieldnames or ()):
            raise ValueError(f"expected the columns {', '.join(INDEX_COLUMNS)}")
        if short := [number for number, row in enumerate(rows, 2) if None in map(row.get, INDEX_COLUMNS)]:
            raise ValueError(f"line {short[0]} is not whole")
    except (OSError, ValueError, csv.Error) as cause:
        raise WeightsError(f"{index} is unreadable: {cause}", "mend it, or move it away and export again") from cause
    return rows


def list_in_index(weights_dir: Path, name: str, card: Card, file_sha256: str) -> None:
    """Makes `name` the last row of `index.csv`, and its only one.

    Args:
        weights_dir: the folder of weights.
        name: of the weights.
        card: of the weights.
        file_sha256: of `NAME.pt`, in hex.
    """
    others = [row for row in read_index(weights_dir) if row["name"] != name]
    rows: list[Sequence[object]] = [[row[column] for column in INDEX_COLUMNS] for row in others]
    score = "" if card.score is None else f"{card.score:.4f}"
    gsd = f"{card.gsd_m:.4f}"
    rows.append([name, card.recipe, len(card.members), card.views, score, gsd, card.created, file_sha256])
    with replacing(weights_dir / INDEX) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([INDEX_COLUMNS, *rows])


def list_weights(weights_dir: Path) -> list[Listed]:
    """Returns the weights in the order of the index, then those that it does not list, by name.

    Each file is read whole, for its sum.

    Raises:
        WeightsError: the index is unreadable.
    """
    rows = read_index(weights_dir)
    names = {row["name"] for row in rows}
    others = [path for path in sorted(weights_dir.glob("*.pt")) if path.stem not in names]
    return [_listed(weights_dir, row, row is rows[-1]) for row in rows] + [_unlisted(path) for path in others]


def _listed(weights_dir: Path, row: Mapping[str, str], newest: bool) -> Listed:
    """Returns what a row and the card say, and what is wrong with the file."""
    path = weights_dir / f"{row['name']}.pt"
    told = Listed(
        row["name"], newest, recipe=row["recipe"], members=_whole(row["members"]), views=row["views"],
        score=_number(row["score"]), gsd_m=_number(row["gsd_m"]), created=row["created"],
        file_sha256=row["file_sha256"], formats=_formats(path),
    )  # fmt: skip
    if not path.is_file():
        return replace(told, state="missing", problem=f"{path} is listed, but missing: export or fetch it again")
    if (found := sha256_of(path)) != told.file_sha256:
        return replace(
            told,
            state="changed",
            problem=f"{path} has sha256 {found[:SHOWN_SHA256]}..., but is listed with "
            f"{row['file_sha256'][:SHOWN_SHA256]}...: not the same export",
        )
    return _with_card(told, path)


def _unlisted(path: Path) -> Listed:
    """Returns what the card beside a file says."""
    told = _with_card(Listed(path.stem, state="unlisted", file_sha256=sha256_of(path), formats=_formats(path)), path)
    return replace(told, problem=told.problem or f"{path} is not listed: kit submit --weights {path} takes it")


def _with_card(told: Listed, path: Path) -> Listed:
    """Returns the weights with what their card alone tells; without a card beside them, as they are."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return told
    try:
        text = beside.read_text()
        card, expected = Card.from_json(text, str(beside)), json.loads(text).get("file_sha256")
    except (OSError, ValueError, WeightsError) as cause:
        return replace(told, state="unreadable", problem=f"{beside} is unreadable: {cause}")
    if expected != told.file_sha256:
        return replace(told, state="changed", problem=f"{beside} is the card of another file than {path.name}")
    return replace(
        told, recipe=card.recipe, members=len(card.members), views=card.views, score=card.score, gsd_m=card.gsd_m,
        created=card.created, parity_max_abs=card.parity_max_abs, parity_equal_masks=card.parity_equal_masks,
    )  # fmt: skip


def _formats(path: Path) -> tuple[str, ...]:
    return tuple(suffix for suffix in FORMATS if path.with_suffix(f".{suffix}").is_file())


def _number(text: str) -> float | None:
    """Returns a number of the index; None for nothing, and for what was edited away."""
    try:
        return float(text)
    except ValueError:
        return None


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
