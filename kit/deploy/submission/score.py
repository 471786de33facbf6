"""Predictions against truth: the Jaccard index of building, per chip, per scene and pooled over all pixels."""

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.data.masks import IGNORE, Counts, count, pool
from kit.data.sources.inputs import TIFF_SUFFIXES
from kit.deploy.submission.archive import Entry, entries
from kit.deploy.submission.mask_tiff import decode_mask
from kit.errors import RasterError, ScoreError, SubmissionError

SCENES = "chips.csv"  # columns chip, scene; stands beside the truth where scenes are known


@dataclass(frozen=True)
class Score:
    """How predictions compare with truth.

    Args:
        chips: counts by chip.
        scenes: the scene of each chip, where known.
        unscored: predictions that have no truth.
    """

    chips: dict[str, Counts]
    scenes: dict[str, str]
    unscored: int

    @property
    def pooled(self) -> float:
        """The Jaccard index over all pixels of all chips, 0..1: the challenge's score."""
        return pool(self.chips.values()).jaccard

    def per_scene(self) -> dict[str, Counts]:
        """Returns the pooled counts of each scene, sorted by name; empty where scenes are not known."""
        names = sorted({self.scenes[chip] for chip in self.chips if chip in self.scenes})
        return {
            name: pool(counts for chip, counts in self.chips.items() if self.scenes.get(chip) == name) for name in names
        }

    def to_json(self) -> str:
        """Returns pooled, per scene and per chip scores as JSON text."""
        scored = {
            "pooled": self.pooled,
            **asdict(pool(self.chips.values())),
            "scenes": {name: {"jaccard": c.jaccard, **asdict(c)} for name, c in self.per_scene().items()},
            "chips": {name: {"jaccard": c.jaccard, **asdict(c)} for name, c in self.chips.items()},
            "unscored": self.unscored,
        }
        return json.dumps(scored, indent=2)

    def lines(self) -> list[str]:
        """Returns the text to print: a line a scene, then `pooled 0.8123`."""
        scenes = self.per_scene()
        width = max((len(name) for name in scenes), default=0)
        lines = [f"scene {name:<{width}} {counts.jaccard:.4f}" for name, counts in scenes.items()]
        if self.unscored:
            lines.append(f"without truth: {self.unscored} predictions")
        return [*lines, f"pooled {self.pooled:.4f}"]


def score(predictions: Path, truth: Path) -> Score:
    """Returns the score of predicted masks (0, 1) against true masks (0, 1, 255 ignored).

    Args:
        predictions: a folder or archive of one-band uint8 TIFFs.
        truth: likewise; a `chips.csv` (chip, scene) among them gives the scenes.

    Raises:
        ScoreError: a chip of the truth has no prediction, the sizes differ, or a mask holds other values.
    """
    try:
        found, expected = entries(predictions), entries(truth)
    except SubmissionError as cause:
        raise ScoreError(cause.message, cause.hint) from cause
    masks, labels = _tiffs(found), _tiffs(expected)
    if not labels:
        raise ScoreError(f"no .tif in {truth}", "the truth is a folder or archive of masks, one a chip")
    if missing := sorted(labels.keys() - masks.keys()):
        raise ScoreError(
            f"{len(missing)} of {len(labels)} chips have no prediction in {predictions}, first {missing[0]}",
            "predict them: kit submit",
        )
    chips: dict[str, Counts] = {}
    mismatched: list[str] = []
    for name in sorted(labels):
        mask, true = _read(masks[name], f"prediction {name}"), _read(labels[name], f"truth {name}")
        if mask.shape == true.shape:
            chips[name] = _count(mask, true, name)
        else:
            sizes = [f"{array.shape[1]} x {array.shape[0]} px" for array in (mask, true)]
            mismatched.append(f"{name} is {sizes[0]}, its truth {sizes[1]}")
    if mismatched:
        raise ScoreError(
            f"{len(mismatched)} of {len(labels)} predictions have another size than their truth, first {mismatched[0]}",
            "predict the chips as they are: kit submit",
        )
    return Score(chips, _scenes(expected), len(masks.keys() - labels.keys()))


def _tiffs(found: Iterable[Entry]) -> dict[str, Entry]:
    """Returns the TIFFs by stem."""
    return {Path(name).stem: (name, read) for name, read in found if Path(name).suffix.lower() in TIFF_SUFFIXES}


def _read(entry: Entry, name: str) -> NDArray[Any]:
    """Returns a mask, (H, W); a file that cannot be read is a ScoreError."""
    try:
        return decode_mask(entry[1](), name)
    except RasterError as cause:
        raise ScoreError(cause.message, cause.hint) from cause


def _count(mask: NDArray[Any], true: NDArray[Any], name: str) -> Counts:
    """Returns the counts of one chip: prediction (H, W) of 0 and 1, truth (H, W) of 0, 1 and 255."""
    if not np.isin(mask, (0, 1)).all():
        raise ScoreError(f"prediction {name} holds the value {mask.max()}, expected 0 and 1", "1 is building")
    if not np.isin(true, (0, 1, IGNORE)).all():
        raise ScoreError(f"truth {name} holds values other than 0, 1 and {IGNORE}", "is it a mask?")
    return count(mask == 1, true)


def _scenes(found: Iterable[Entry]) -> dict[str, str]:
    """Returns the scene of each chip from `chips.csv`; nothing without one."""
    for name, read in found:
        if name == SCENES:
            rows = list(csv.DictReader(read().decode().splitlines()))
            if rows and not {"chip", "scene"} <= rows[0].keys():
                raise ScoreError(
                    f"{SCENES} has columns {', '.join(rows[0])}, expected chip and scene", "mend its header"
                )
            return {row["chip"]: row["scene"] for row in rows}
    return {}
