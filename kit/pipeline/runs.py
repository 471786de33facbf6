"""Lists the runs of a working root (`kit runs`)."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from kit.data.masks import Counts, pool
from kit.errors import RunError
from kit.paths import Paths
from kit.training.run_files import SETTINGS, RunSettings, compared, read_log, read_result, read_settings

COLUMNS = ("run", "state", "score", "epoch", "minutes", "data", "encoder", "seed")


@dataclass(frozen=True)
class Run:
    """A run, or the pooled finished folds of a recipe."""

    run: str  # `<recipe>/fold<k>`; the recipe alone where its folds are pooled
    state: Literal["finished", "unfinished", "unreadable", "pooled"]
    # Jaccard index on validation tiles; of an unfinished run, the best in its log
    score: float | None = None
    counts: Counts | None = None  # of the validation tiles of a finished run; None without validation
    epoch: int | None = None  # the best one, from 1
    epochs: int | None = None  # planned
    epochs_done: int | None = None  # in the log of an unfinished run
    minutes: float | None = None  # wall time of training; of a pooled line, the sum
    data: str | None = None  # name of the data set
    encoder: str | None = None  # timm name
    seed: int | None = None  # random seed
    folds: int | None = None  # number of pooled folds
    problem: str | None = None  # why it is unreadable

    def cells(self) -> tuple[object, ...]:
        """Returns a table row, see COLUMNS; unknown values are empty."""
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
    """Returns a run; if its files are damaged, it is unreadable, and `problem` says why."""
    name = f"{folder.parent.name}/{folder.name}"
    try:
        begun = (folder / SETTINGS).is_file()  # written when the first epoch begins
        settings = read_settings(folder) if begun else RunSettings()
        known: dict[str, Any] = compared(settings, ("epochs", "data", "encoder", "seed"))
        if (result := read_result(folder)) is not None:
            counts = pool(result.scenes.values()) if result.scenes else None
            minutes = _minutes(result.seconds)
            return Run(name, "finished", result.score, counts, result.epoch + 1, minutes=minutes, **known)
        rows = read_log(folder)
    except RunError as error:
        return Run(name, "unreadable", problem=error.message)
    best = max((row for row in rows if "jaccard" in row), key=lambda row: row["jaccard"], default=None)
    score, epoch = (best["jaccard"], int(best["epoch"]) + 1) if best else (None, None)
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    spent = _minutes(seconds[-1]) if seconds else None
    return Run(name, "unfinished", score, epoch=epoch, epochs_done=len(rows), minutes=spent, **known)


def _minutes(seconds: float) -> float:
    return round(seconds / 60, 2)


def is_numbered(name: str) -> bool:
    """Returns whether a run has a numbered fold; `all` and renamed folders have not."""
    return name.rpartition("/fold")[2].isdecimal()


def _pooled(recipe: str, runs: Sequence[Run]) -> Run:
    """Returns the pooled line of a recipe's finished folds; data, encoder and seed if they are equal in all."""
    counts = pool(run.counts for run in runs if run.counts is not None)
    minutes = round(sum(run.minutes or 0.0 for run in runs), 2)
    same = {key: getattr(runs[0], key) for key in ("data", "encoder", "seed")}
    shared = {key: value for key, value in same.items() if all(getattr(run, key) == value for run in runs)}
    return Run(recipe, "pooled", counts.jaccard, counts, minutes=minutes, folds=len(runs), **shared)


def vote_name(run: str) -> str:
    """Returns the candidate that a run belongs to: the folds of a recipe are one candidate.

    The suffix of a renamed folder is kept: `lite0/fold3` belongs to `lite0`, `lite0/fold3-seed1` to `lite0-seed1`.
    """
    recipe, _, fold = run.partition("/fold")
    return recipe + re.sub(r"^(\d+|all)", "", fold)


def tile_weights(runs: Sequence[str], weights: Sequence[float]) -> list[float]:
    """Returns the weight of each run's predictions of validation tiles: the sum over its candidate, see `vote_name`.

    Args:
        runs: `<recipe>/fold<k>`.
        weights: of their networks in the vote; empty where all count the same.
    """
    if not weights:
        return []
    together: defaultdict[str, float] = defaultdict(float)
    for run, weight in zip(runs, weights, strict=True):
        together[vote_name(run)] += weight
    return [together[vote_name(run)] for run in runs]


def run_folder(name: str, paths: Paths) -> Path:
    """Returns the folder of a run `<recipe>/fold<k>`; it need not exist.

    Raises:
        RunError: the name is of another form.
    """
    recipe, _, fold = name.strip("/").partition("/")
    if not fold.startswith("fold"):
        raise RunError(f"{name!r} names no run", "expected <recipe>/fold<k>, for example lite0/fold0")
    return paths.run(recipe, fold.removeprefix("fold"))
