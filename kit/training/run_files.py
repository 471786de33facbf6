"""What a run leaves in its folder, and how it is read again: without torch, so that listings are quick."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.data.masks import Counts
from kit.errors import RunError

SETTINGS, LOG, BEST, RESULT = "settings.json", "log.csv", "best.safetensors", "result.json"


@dataclass(frozen=True)
class Result:
    """What a finished run scored on its held-out fold.

    Args:
        recipe: its name.
        fold: number, or `all`.
        score: pooled Jaccard of the held-out tiles; None where nothing was held out.
        scenes: counts per `area/scene`.
        seconds: of the fit, validation included.
        epoch: the one whose weights were kept.
        best_sha256: of best.safetensors, in hex; empty in results of older versions.
    """

    recipe: str
    fold: int | str
    score: float | None
    scenes: dict[str, Counts]
    seconds: float
    epoch: int
    best_sha256: str = ""


def read_result(folder: Path) -> Result | None:
    """Returns the result of a finished run, or None."""
    file = folder / RESULT
    if not file.is_file():
        return None
    record = json.loads(file.read_text())
    record["scenes"] = {name: Counts(**counts) for name, counts in record["scenes"].items()}
    return Result(**record)


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns the settings of a run.

    Raises:
        RunError: there is no such run.
    """
    file = folder / SETTINGS
    if not file.is_file():
        raise RunError(f"no run at {folder}", "train it first: kit run RECIPE")
    settings: dict[str, Any] = json.loads(file.read_text())
    return settings
