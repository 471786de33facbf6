"""The runs of a working root, as their folders tell them."""

import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from kit.data.masks import Counts, pool
from kit.errors import RunError
from kit.paths import Paths
from kit.training.run_files import LOG, RESULT, SETTINGS, read_result, read_settings

COLUMNS = ("run", "state", "score", "epoch", "minutes", "data", "encoder", "seed")


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it, or the finished folds of a recipe together.

    Args:
        run: `<recipe>/fold<k>`; the recipe alone where its folds are pooled.
        state: what it is.
        score: Jaccard over the held-out pixels; of an unfinished run the best that its log has so far.
        counts: held-out pixels of a finished run; None where nothing was held out.
        epoch: the best one, from 1.
        epochs: how many were planned.
        epochs_done: how many the log of an unfinished run has.
        minutes: wall time of training; of a pooled line, the sum.
        data: name of the data set.
        encoder: timm name.
        seed: of every random choice.
        folds: how many were pooled.
        problem: why it is unreadable.
    """

    run: str
    state: Literal["finished", "unfinished", "unreadable", "pooled"]
    score: float | None = None
    counts: Counts | None = None
    epoch: int | None = None
    epochs: int | None = None
    epochs_done: int | None = None
    minutes: float | None = None
    data: str | None = None
    encoder: str | None = None
    seed: int | None = None
    folds: int | None = None
    problem: str | None = None

    def cells(self) -> tuple[object, ...]:
        """Returns a table row, see COLUMNS; what is not known is blank."""
        state: str = self.state
        if self.state == "unfinished":
            state = f"epoch {self.epochs_done} of {self.epochs or '?'}" if self.epochs_done else "no epoch yet"
        elif self.state == "pooled":
            state = f"{self.folds} folds"
        epoch = f"{self.epoch}/{self.epochs or '?'}" if self.epoch else ""
        minutes = None if self.minutes is None else f"{self.minutes:.1f}"
        row = (self.run, state, self.score, epoch, minutes, self.data, self.encoder, self.seed)
        return tuple("" if cell is None else cell for cell in row)


def list_runs(paths: Paths) -> list[Run]:
    """Returns all runs by recipe and fold; several finished folds of a recipe are followed by a pooled line."""
    listed: list[Run] = []
    for recipe, folders in groupby(paths.run_folders(), key=lambda folder: folder.parent.name):
        runs = [read_run(folder) for folder in folders]
        folds = [run for run in runs if run.counts is not None and is_numbered(run.run)]
        listed += [*runs, _pooled(recipe, folds)] if len(folds) > 1 else runs
    return listed


def read_run(folder: Path) -> Run:
    """Returns a run; one whose files were cut short or edited by hand is unreadable, and says why."""
    name = f"{folder.parent.name}/{folder.name}"
    try:
        with reading(folder / SETTINGS):  # written when the first epoch begins
            settings = read_settings(folder) if (folder / SETTINGS).is_file() else {}
            told = {key: settings.get(key) for key in ("epochs", "data", "encoder", "seed")}
        with reading(folder / RESULT):
            result = read_result(folder)
            if result is not None:
                counts = pool(result.scenes.values()) if result.scenes else None
                score, minutes = _number(result.score), _minutes(result.seconds)
                return Run(name, "finished", score, counts, result.epoch + 1, minutes=minutes, **told)
        with reading(folder / LOG):
            rows = _read_log(folder / LOG)
            best = max((row for row in rows if "jaccard" in row), key=lambda row: row["jaccard"], default=None)
            score, epoch = (best["jaccard"], int(best["epoch"]) + 1) if best else (None, None)
            seconds = [row["seconds"] for row in rows if "seconds" in row]
        spent = _minutes(seconds[-1]) if seconds else None
        return Run(name, "unfinished", score, epoch=epoch, epochs_done=len(rows), minutes=spent, **told)
    except RunError as error:
        return Run(name, "unreadable", problem=error.message)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turns whatever a file that is not as kit wrote it raises into a RunError."""
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, AttributeError, csv.Error) as cause:
        reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
        run = f"{file.parent.parent.name}/{file.parent.name}"
        raise RunError(f"{file} is unreadable: {reason}", f"train it again: {command(run)} --restart") from cause


def command(run: str) -> str:
    """Returns the command that trains `<recipe>/fold<k>`."""
    recipe, _, fold = run.partition("/fold")
    return f"kit run {recipe} --all" if fold == "all" else f"kit run {recipe} --fold {fold}"


def _read_log(file: Path) -> list[dict[str, float]]:
    """Returns a row per finished epoch, without the values that are not known; no row where there is no log yet."""
    if not file.is_file():
        return []
    with file.open(newline="") as stream:
        reader = csv.DictReader(stream)
        if "epoch" not in (reader.fieldnames or ()):
            raise ValueError("no column epoch")
        rows = list(reader)
    return [{key: number for key, text in row.items() if (number := _number(text)) is not None} for row in rows]


def _number(value: Any) -> float | None:
    """Returns a finite number, or None for NaN and nothing."""
    number = float("nan") if value in (None, "") else float(value)
    return number if math.isfinite(number) else None


def _minutes(seconds: float) -> float:
    return round(seconds / 60, 2)


def is_numbered(name: str) -> bool:
    """Whether a run held out a fold of a number; `all`, and folders that were moved aside, are not a recipe's folds."""
    return name.rpartition("/fold")[2].isdecimal()


def _pooled(recipe: str, runs: Sequence[Run]) -> Run:
    """Returns the line of a recipe's finished folds; data, encoder and seed where they are the same in all."""
    counts = pool(run.counts for run in runs if run.counts is not None)
    minutes = round(sum(run.minutes or 0.0 for run in runs), 2)
    same = {key: getattr(runs[0], key) for key in ("data", "encoder", "seed")}
    shared = {key: value for key, value in same.items() if all(getattr(run, key) == value for run in runs)}
    return Run(recipe, "pooled", counts.jaccard, counts, minutes=minutes, folds=len(runs), **shared)


def run_folder(name: str, paths: Paths) -> Path:
    """Returns the folder of a run `<recipe>/fold<k>`; it need not exist.

    Raises:
        RunError: the name is of another form.
    """
    recipe, _, fold = name.strip("/").partition("/")
    if not fold.startswith("fold"):
        raise RunError(f"{name!r} names no run", "expected <recipe>/fold<k>, for example lite0/fold0")
    return paths.run(recipe, fold.removeprefix("fold"))
