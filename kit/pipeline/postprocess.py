"""How masks are best cut, chosen on tiles that the networks had not seen: threshold, smallest object, holes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from kit.console import track
from kit.data.index import read_index
from kit.data.masks import BACKGROUND, BUILDING
from kit.deploy.weights.card import Postprocess
from kit.deploy.weights.cleaning import HOLES, OBJECTS, Cleaning, clean, inner_parts
from kit.errors import RunError
from kit.paths import Paths
from kit.training.oof import best_threshold, read_levels
from kit.training.run_files import read_settings

SMALLEST_M2 = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)  # a shed has 4; smaller than 1 m2 is no building
HOLE_M2 = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
AROUND = (-0.1, -0.05, 0.0, 0.05)  # the best threshold: without specks a lower one may be better
LARGEST_PX = 400 * 1024**2  # pixels that are looked at, evenly spread over the tiles: about a minute on one core


@dataclass(frozen=True)
class Choice:
    """What was chosen, and on how much.

    Args:
        best: the cleaning with the scores that it was chosen by.
        tiles: that were looked at.
        held_out: tiles that there are.
    """

    best: Postprocess
    tiles: int
    held_out: int

    def __str__(self) -> str:
        best = self.best
        some = "" if self.tiles == self.held_out else f", on {self.tiles} of {self.held_out} tiles"
        if best.score_after <= best.score_before:
            return f"cleaning masks gains nothing out of fold{some}"
        how = Cleaning.of(best)
        return f"{how}: {best.score_before:.4f} -> {best.score_after:.4f} out of fold{some} (kit submit --clean)"


@dataclass(frozen=True)
class Held:
    """A tile that was held out.

    Args:
        tile: its name.
        mask: its file.
        gsd_m: metres per pixel.
        pixels: of it.
        building_px: of its mask, as the run counted them.
        predictions: files of probability x 255, one a run that held it out.
    """

    tile: str
    mask: str
    gsd_m: float
    pixels: int
    building_px: int
    predictions: tuple[Path, ...]


def choose(folders: Sequence[Path], paths: Paths) -> Choice | None:
    """Returns the cleaning with the best Jaccard index over all held-out pixels; None where nothing was held out.

    Threshold and smallest object are chosen together, then the size of holes. What is chosen on tiles flatters on the
    same tiles, by little: three numbers, of some hundred possible sets.

    Args:
        folders: of finished runs. A tile that several held out is cut from the mean of what they say.
        paths: of the working root, with the data sets that they trained on.

    Raises:
        DataError: a data set is gone.
        RunError: tiles were cut again since, or cannot be read.
    """
    found = _held_out(folders, paths)
    if not found:
        return None
    step = -(-sum(held.pixels for held in found) // LARGEST_PX)
    some = found[::step]
    thresholds = _thresholds(folders)
    before, scores = np.zeros(3, np.int64), np.zeros((len(thresholds), len(SMALLEST_M2), 3), np.int64)
    for held, probability, truth in _tiles(some, "choose threshold and smallest object"):
        before += _counts(clean(probability), truth)
        scores += [_by_smallest(probability > threshold, truth, held.gsd_m) for threshold in thresholds]
    t, s = divmod(int(_jaccards(scores).argmax()), len(SMALLEST_M2))  # the first of equals: the mildest
    by_hole = np.zeros((len(HOLE_M2), 3), np.int64)
    for held, probability, truth in _tiles(some, "choose holes"):
        by_hole += _by_hole(clean(probability, thresholds[t], SMALLEST_M2[s] / held.gsd_m**2), truth, held.gsd_m)
    h = int(_jaccards(by_hole).argmax())
    first, last = float(_jaccards(before)), float(_jaccards(by_hole[h]))
    best = Postprocess(thresholds[t], SMALLEST_M2[s], HOLE_M2[h], round(first, 6), round(last, 6))
    return Choice(best, len(some), len(found))


def _held_out(folders: Sequence[Path], paths: Paths) -> list[Held]:
    """Returns the tiles that runs held out, by data set and name."""
    found: dict[tuple[str, str], Held] = {}
    indexes: dict[str, pd.DataFrame] = {}
    for folder in folders:
        counted = folder / "oof.csv"
        if not counted.is_file():  # of all folds; or of an older kit
            continue
        data = str(read_settings(folder)["data"])
        if data not in indexes:
            indexes[data] = read_index(paths, data)[1].set_index("tile")
        for row in pd.read_csv(counted, dtype={"tile": str}, keep_default_na=False).itertuples():
            if row.tile not in indexes[data].index:
                raise _cut_again(f"{data} has no tile {row.tile} any more")
            known = indexes[data].loc[row.tile]
            before = found[data, row.tile].predictions if (data, row.tile) in found else ()
            found[data, row.tile] = Held(
                row.tile, known["mask"], float(known["gsd_m"]), int(known["width_px"] * known["height_px"]),
                int(row.tp + row.fn), (*before, folder / "oof" / f"{row.tile}.tif"),
            )  # fmt: skip
    return [found[key] for key in sorted(found)]


def _thresholds(folders: Sequence[Path]) -> list[float]:
    """Returns thresholds around the one that scores best by counts of pixels; 0.5 first."""
    levels = [found for folder in folders if (found := read_levels(folder)) is not None]
    best = best_threshold(np.sum(levels, axis=0))[0] if levels else 0.5
    near = {round(min(max(best + step, 0.01), 0.99), 2) for step in AROUND}
    return [0.5, *sorted(near - {0.5})]


def _tiles(some: Sequence[Held], what: str) -> Iterator[tuple[Held, NDArray[np.float32], NDArray[np.uint8]]]:
    """Yields each tile, its probability, float32 (H, W), and its mask, uint8 (H, W)."""
    for held in track(some, what):
        try:
            with rasterio.open(held.mask) as source:
                truth = source.read(1)
            votes: list[NDArray[Any]] = []
            for file in held.predictions:
                with rasterio.open(file) as source:
                    votes.append(source.read(1))
        except RasterioError as cause:
            raise RunError(f"tile {held.tile} cannot be read: {cause}", "train its fold again: --restart") from cause
        if any(vote.shape != truth.shape for vote in votes) or (truth == BUILDING).sum() != held.building_px:
            raise _cut_again(f"tile {held.tile} has another mask now")
        yield held, np.asarray(np.mean(votes, axis=0) / 255, np.float32), truth


def _cut_again(what: str) -> RunError:
    return RunError(f"{what}: it was cut again since the run", "train again for a choice: kit run RECIPE --restart")


def _by_smallest(found: NDArray[np.bool_], truth: NDArray[np.uint8], gsd_m: float) -> NDArray[np.int64]:
    """Returns (tp, fp, fn) for each of SMALLEST_M2, (sizes, 3): what objects hold is counted once."""
    mask = found.astype(np.uint8)
    labels, areas = inner_parts(mask, OBJECTS)
    lost = _within(labels, areas, truth, np.array(SMALLEST_M2) / gsd_m**2)
    return _counts(mask, truth) + np.stack([-lost[:, 1], -lost[:, 0], lost[:, 1]], axis=1)


def _by_hole(mask: NDArray[np.uint8], truth: NDArray[np.uint8], gsd_m: float) -> NDArray[np.int64]:
    """Returns (tp, fp, fn) for each of HOLE_M2, (sizes, 3)."""
    labels, areas = inner_parts(1 - mask, HOLES)
    won = _within(labels, areas, truth, np.array(HOLE_M2) / gsd_m**2)
    return _counts(mask, truth) + np.stack([won[:, 1], won[:, 0], -won[:, 1]], axis=1)


def _within(
    labels: NDArray[np.int32], areas: NDArray[np.float64], truth: NDArray[np.uint8], sizes_px: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Returns how many pixels of background, of building lie in parts smaller than each size, (sizes, 2)."""
    held = [np.bincount(labels[truth == kind], minlength=len(areas)) for kind in (BACKGROUND, BUILDING)]
    small = areas[None] < sizes_px[:, None]  # (sizes, parts)
    return np.stack([small @ pixels for pixels in held], axis=1)


def _counts(mask: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Returns (tp, fp, fn)."""
    hit, building = int(((truth == BUILDING) & (mask == 1)).sum()), int((truth == BUILDING).sum())
    return np.array([hit, int(((truth == BACKGROUND) & (mask == 1)).sum()), building - hit], np.int64)


def _jaccards(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the Jaccard index of (..., 3) counts; 1 where there is nothing to find and nothing was found."""
    union = counts.sum(axis=-1)
    return np.asarray(np.where(union, counts[..., 0] / np.maximum(union, 1), 1.0))
