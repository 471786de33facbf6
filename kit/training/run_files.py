"""The files in a run's folder. Reading them does not import torch, so that listings are fast."""

import csv
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from kit.data.added import AddedSet
from kit.data.masks import Counts
from kit.errors import RunError
from kit.measures.object_counts import ObjectCounts
from kit.system.files import read_json, read_limited, sha256_of, write_json

SETTINGS, LOG, BEST, RESULT = "settings.json", "log.csv", "best.safetensors", "result.json"
OBJECTS = "objects.csv"  # counts of the buildings on each validation tile

AtLeast0 = Annotated[int, Ge(0)]


@dataclass(frozen=True)
class Result:
    """The result of a finished run."""

    recipe: str  # name of its runs: the recipe's, unless `--name` gave another
    fold: int | str  # number, or `all`
    score: Annotated[float, Ge(0), Le(1)] | None  # pooled Jaccard of the validation tiles; None where there are none
    scenes: dict[str, Counts]  # counts per `area/scene`
    seconds: Annotated[float, Ge(0)]  # of the fit, validation included
    epoch: AtLeast0  # the one whose weights were kept, from 0
    best_sha256: str = ""  # of best.safetensors, in hex; empty in results of older versions


@dataclass(frozen=True)
class RunSettings:
    """The content of `settings.json`. Values are None if an older version did not write them."""

    kit_version: str | None = None
    recipe: str | None = None
    recipe_path: str | None = None
    recipe_sha256: str | None = None
    data: str | None = None  # data set of `--data`, which gives folds and validation, and the checksum of its index
    data_sha256: str | None = None
    added: tuple[AddedSet, ...] = ()  # data sets that only train, each with its weight and the checksum of its index
    fold: int | str | None = None
    seed: int | None = None
    minutes: float | None = None  # see `LengthOptions`; 0 if the recipe decides
    epochs_option: int | None = None  # see `LengthOptions`; 0 if the recipe decides
    steps_option: int | None = None  # see `LengthOptions`; 0 if the recipe decides
    precision_option: str | None = None  # `--precision`; empty where kit chose
    encoder_source: str | None = None
    start_from: str | None = None
    start_sha256: str | None = None
    teacher_sha256: str | None = None
    compiled: bool | None = None
    threads: int | None = None
    ranks: int | None = None
    # median ground sampling distance of the training tiles of `data`, m per px
    gsd_m: Annotated[float, Ge(0)] | None = None
    encoder: str | None = None
    encoder_weights: str | None = None
    batch_size: int | None = None
    workers: int | None = None
    device: str | None = None
    torch_version: str | None = None
    epochs: AtLeast0 | None = None  # over all fits
    steps_per_epoch: int | None = None  # of a run without a time budget
    precision: str | None = None


def read_result(folder: Path) -> Result | None:
    """Returns the result of a run; None if it has not finished.

    Raises:
        RunError: the file is damaged.
    """
    file = folder / RESULT
    if not file.is_file():
        return None
    result = read_json(file, Result, error=RunError, hint=train_again(folder))
    if any(min(counts.tp, counts.fp, counts.fn) < 0 for counts in result.scenes.values()):
        raise RunError(f"{file} is damaged: field scenes: counts below 0", train_again(folder))
    return result


def read_settings(folder: Path, needed: Sequence[str] = ()) -> RunSettings:
    """Returns the settings of a run.

    Args:
        folder: of the run.
        needed: fields that must have a value.

    Raises:
        RunError: there is no such run, or the file is damaged.
    """
    file = folder / SETTINGS
    if not file.is_file():
        raise RunError(f"no run at {folder}", "train it first: kit run RECIPE")
    settings = read_json(file, RunSettings, error=RunError, hint=train_again(folder))
    if missing := [name for name in needed if getattr(settings, name) is None]:
        raise RunError(f"{file} is damaged: field {missing[0]}: missing", train_again(folder))
    return settings


def write_settings(folder: Path, settings: RunSettings) -> None:
    """Writes `settings.json`, without the values that are None."""
    write_json(folder / SETTINGS, {key: value for key, value in asdict(settings).items() if value is not None})


def read_log(folder: Path) -> list[dict[str, float]]:
    """Returns a row per finished epoch, without values that are not finite; an empty list if there is no log.

    Raises:
        RunError: the file is damaged.
    """
    file = folder / LOG
    if not file.is_file():
        return []
    content = read_limited(file, error=RunError, hint=train_again(folder))
    try:
        lines = csv.reader(content.decode().splitlines())
        names = next(lines, [])
        rows = [dict(zip(names, line, strict=True)) for line in lines]
    except (ValueError, csv.Error) as cause:
        raise RunError(f"{file} is damaged: {cause}", train_again(folder)) from cause
    if "epoch" not in names:
        raise RunError(f"{file} is damaged: column epoch: missing", train_again(folder))
    return [_numbers(row, number, file) for number, row in enumerate(rows, start=1)]


def read_objects(folder: Path) -> dict[str, ObjectCounts] | None:
    """Returns the counts of the buildings on each validation tile; None for a run of an older version.

    Raises:
        RunError: the file is damaged.
    """
    file = folder / OBJECTS
    if not file.is_file():
        return None
    content = read_limited(file, error=RunError, hint=train_again(folder))
    try:
        return {row["tile"]: ObjectCounts.from_row(row) for row in csv.DictReader(content.decode().splitlines())}
    except (ValueError, LookupError, TypeError, csv.Error) as cause:
        raise RunError(f"{file} is damaged: {cause}", train_again(folder)) from cause


def _numbers(row: dict[str, str], number: int, file: Path) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, text in row.items():
        try:
            value = float(text or "nan")
        except ValueError as cause:
            raise RunError(
                f"{file} is damaged: row {number}, column {name}: {text[:40]!r} is not a number",
                train_again(file.parent),
            ) from cause
        if math.isfinite(value):
            values[name] = value
        elif name == "epoch":
            raise RunError(f"{file} is damaged: row {number}: no epoch", train_again(file.parent))
    return values


def check_best(folder: Path, result: Result) -> str:
    """Returns the SHA-256 of a finished run's weights, in hex.

    Raises:
        RunError: they are missing or damaged.
    """
    file = folder / BEST
    if not file.is_file():
        raise RunError(f"{folder} has no {BEST}", train_again(folder))
    sha256 = sha256_of(file)
    if result.best_sha256 and sha256 != result.best_sha256:
        raise RunError(
            f"{file} is damaged: sha256 {sha256[:12]}..., expected {result.best_sha256[:12]}...",
            f"restore it from a copy, or {train_again(folder)}",
        )
    return sha256


def command(run: str) -> str:
    """Returns the command that trains a run `<recipe>/fold<k>`."""
    recipe, _, fold = run.partition("/fold")
    return f"kit run {recipe} --all" if fold == "all" else f"kit run {recipe} --fold {fold}"


def train_again(folder: Path) -> str:
    """Returns the hint for a damaged file in a run's folder."""
    name = recipe = folder.parent.name
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        recipe = str(json.loads((folder / SETTINGS).read_text())["recipe"])
    named = "" if recipe == name else f" --name {name}"
    return f"train again: {command(f'{recipe}/{folder.name}')}{named} --restart"


def compared(settings: RunSettings, names: Sequence[str]) -> dict[str, Any]:
    """Returns some settings by name."""
    return {name: getattr(settings, name) for name in names}
