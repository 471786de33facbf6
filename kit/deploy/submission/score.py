"""Scores predictions against truth: the Jaccard index of building per chip, per scene, and pooled over all pixels."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.data.masks import BUILDING, IGNORE, Counts, pool
from kit.data.sources.inputs import TIFF_SUFFIXES
from kit.deploy.submission.archive import read_files
from kit.deploy.submission.mask_tiff import decode_mask
from kit.errors import RasterError, ScoreError, SubmissionError
from kit.measures.object_counts import ObjectCounts, pool_objects
from kit.measures.object_masks import boundary_width, compare_masks
from kit.system.cpu import cpu_count

SCENES = "chips.csv"  # columns chip, scene; beside the truth where the scenes are known
VALUES = (0, BUILDING, IGNORE)  # of a mask, in the order of a table's rows and columns
Reader = Callable[[], bytes]


@dataclass(frozen=True)
class Score:
    """How predictions compare with truth."""

    chips: dict[str, Counts]  # counts by chip
    scenes: dict[str, str]  # the scene of each chip, where known
    unscored: int  # predictions without truth
    objects: dict[str, ObjectCounts] = field(default_factory=dict)  # counts of buildings by chip

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

    def object_rows(self) -> dict[str, ObjectCounts]:
        """Returns the counts of buildings per scene, where scenes are known, and pooled."""
        rows = {
            scene: pool_objects(counts for chip, counts in self.objects.items() if self.scenes.get(chip) == scene)
            for scene in self.per_scene()
        }
        return {**rows, "pooled": pool_objects(self.objects.values())}

    def to_json(self) -> str:
        """Returns pooled, per scene and per chip scores as JSON text."""
        record = {
            "pooled": self.pooled,
            **asdict(pool(self.chips.values())),
            "scenes": {name: {"jaccard": c.jaccard, **asdict(c)} for name, c in self.per_scene().items()},
            "chips": {name: {"jaccard": c.jaccard, **asdict(c)} for name, c in self.chips.items()},
            "unscored": self.unscored,
            "objects": {name: counts.measures() for name, counts in self.object_rows().items()},
        }
        return json.dumps(record, indent=2)

    def lines(self) -> list[str]:
        """Returns the text to print: one line per scene, then `pooled 0.8123`."""
        scenes = self.per_scene()
        width = max((len(name) for name in scenes), default=0)
        lines = [f"scene {name:<{width}} {counts.jaccard:.4f}" for name, counts in scenes.items()]
        if self.unscored:
            lines.append(f"without truth: {self.unscored} predictions")
        return [*lines, f"pooled {self.pooled:.4f}"]


def score(predictions: Path, truth: Path, gsd_m: float = 0.0) -> Score:
    """Returns the score of predicted masks against true masks.

    Building is 1 in a mask. In a set of masks in which none holds a 1, building is 255. Beside 1, 255 is no data in the
    truth, and refused in predictions. An object is a connected component of a mask.

    Args:
        predictions: a folder or archive of one-band TIFFs or PNGs, matched with the truth by stem.
        truth: likewise; a `chips.csv` (chip, scene) among them gives the scenes.
        gsd_m: ground resolution of the masks, m per pixel; 0 where unknown: then boundaries are not measured.

    Raises:
        ScoreError: a chip of the truth has no prediction, sizes differ, or a mask holds unclear values.
    """
    try:
        predicted_files, true_files = read_files(predictions), read_files(truth)
    except SubmissionError as cause:
        raise ScoreError(cause.message, cause.hint) from cause
    masks, labels = _masks(predicted_files, predictions), _masks(true_files, truth)
    if not labels:
        raise ScoreError(f"no .tif or .png in {truth}", "the truth is a folder or archive of masks, one per chip")
    if missing := sorted(labels.keys() - masks.keys()):
        others = sorted(masks.keys() - labels.keys())
        there = f"; {len(others)} masks there have other names, first {others[0]}" if others else ""
        raise ScoreError(
            f"{len(missing)} of {len(labels)} chips have no prediction in {predictions}, first {missing[0]}{there}",
            "predict them: kit submit; predictions are .tif or .png, named like the truth",
        )
    tables: dict[str, NDArray[np.int64]] = {}
    mismatched: list[str] = []
    for name in sorted(labels):
        mask, true = _read(masks[name], f"prediction {name}"), _read(labels[name], f"truth {name}")
        if mask.shape == true.shape:
            tables[name] = np.bincount((3 * mask + true).ravel(), minlength=9).reshape(3, 3)
        else:
            sizes = [f"{array.shape[1]} x {array.shape[0]} px" for array in (mask, true)]
            mismatched.append(f"{name} is {sizes[0]}, its truth {sizes[1]}")
    if mismatched:
        raise ScoreError(
            f"{len(mismatched)} of {len(labels)} predictions have another size than their truth, first {mismatched[0]}",
            "predict the chips as they are: kit submit",
        )
    building_row = 1 + _is_255_building({name: table.sum(1) for name, table in tables.items()}, "prediction", False)
    built = 1 + _is_255_building({name: table.sum(0) for name, table in tables.items()}, "truth", True)
    counts = {name: _counts(table, building_row, built) for name, table in tables.items()}
    values = np.array([0, *([BUILDING, IGNORE] if built == 1 else [0, BUILDING])], np.uint8)  # by place among VALUES

    def objects(name: str) -> ObjectCounts:
        mask, true = _read(masks[name], f"prediction {name}"), _read(labels[name], f"truth {name}")
        return compare_masks(mask == building_row, values[true], boundary_width(gsd_m))

    with ThreadPoolExecutor(cpu_count()) as pool_of_threads:
        compared = dict(zip(tables, pool_of_threads.map(objects, tables), strict=True))
    return Score(counts, _scenes(true_files), len(masks.keys() - labels.keys()), compared)


def _masks(files: Mapping[str, Reader], folder: Path) -> dict[str, Reader]:
    """Returns the readers of the TIFFs, or of the PNGs where there are no TIFFs, by stem."""
    for suffixes in (TIFF_SUFFIXES, (".png",)):
        names: dict[str, str] = {}
        for name in files:
            path = PurePosixPath(name)
            if path.suffix.lower() not in suffixes:
                continue
            if path.stem in names:
                raise ScoreError(
                    f"{folder} holds two masks of {path.stem}: {names[path.stem]} and {name}", "remove one of them"
                )
            names[path.stem] = name
        if names:
            break
    return {stem: files[name] for stem, name in names.items()}


def _read(read: Reader, name: str) -> NDArray[np.uint8]:
    """Returns where a mask holds each of VALUES, by its place among them, (H, W)."""
    try:
        band: NDArray[Any] = decode_mask(read(), name)
    except (RasterError, SubmissionError) as cause:
        raise ScoreError(cause.message, cause.hint) from cause
    places = np.zeros(band.shape, np.uint8)
    for place, value in enumerate(VALUES):
        places[band == value] = place
    if not (strange := band[(places == 0) & (band != 0)]).size:
        return places
    raise ScoreError(
        f"{name} holds the value {strange.max()}, expected 0 and 1, or 0 and 255",
        "1 is building; or 255 where no mask holds a 1",
    )


def _is_255_building(pixels: Mapping[str, NDArray[np.int64]], kind: str, may_ignore: bool) -> bool:
    """Returns whether 255 means building in a set of masks, rather than no data.

    Args:
        pixels: how many pixels of each mask hold each of VALUES.
        kind: `prediction` or `truth`, for the error.
        may_ignore: whether 255 may mean no data, as it does in a mask that holds 1 as well.
    """
    groups: dict[tuple[bool, bool], list[str]] = defaultdict(list)
    for name, (_, ones, others) in pixels.items():
        groups[bool(ones), bool(others)].append(name)
    only_1, only_255, both = groups[True, False], groups[False, True], groups[True, True]
    if not only_255 and (may_ignore or not both):
        return False
    if not only_1 and not both:
        return True
    if may_ignore and both:  # this set uses 255 for no data
        return False
    first, second = (only_1 or both)[0], (only_255 or both)[0]
    raise ScoreError(
        f"{len(only_1 or both)} masks hold 1, first {kind} {first}, and {len(only_255 or both)} hold the value 255, "
        f"first {kind} {second}: is building 1 or 255?",
        "write all of them alike: building is 1" + (", and 255 is no data" if may_ignore else ""),
    )


def _counts(table: NDArray[np.int64], building_row: int, built: int) -> Counts:
    """Returns the counts of a chip.

    Args:
        table: pixels by value of the prediction (row) and of the truth (column), each of VALUES.
        building_row: the row of building.
        built: the column of building.
    """
    tp = int(table[building_row, built])
    predicted, true = (
        int(table[building_row, : built + 1].sum()),
        int(table[:, built].sum()),
    )  # further columns are no data
    return Counts(tp, predicted - tp, true - tp)


def _scenes(files: Mapping[str, Reader]) -> dict[str, str]:
    """Returns the scene of each chip from `chips.csv`; nothing without one."""
    if SCENES not in files:
        return {}
    hint = "expected a CSV in UTF-8 with the columns chip and scene"
    try:
        reader = csv.DictReader(io.StringIO(files[SCENES]().decode("utf-8-sig"), newline=""))
        rows = list(reader)
    except (ValueError, csv.Error, SubmissionError) as cause:
        raise ScoreError(f"{SCENES} cannot be read: {cause}", hint) from cause
    if reader.fieldnames and not {"chip", "scene"} <= set(reader.fieldnames):
        raise ScoreError(f"{SCENES} has columns {', '.join(reader.fieldnames)!s:.80}, expected chip and scene", hint)
    return {row["chip"]: row["scene"] for row in rows if row["chip"] and row["scene"]}
