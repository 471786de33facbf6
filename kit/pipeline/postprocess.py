"""Chooses threshold, smallest object, smallest hole and the splitting of buildings on validation tiles."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from kit.console import track
from kit.data.index import read_index
from kit.data.instances import read_ids
from kit.data.masks import BACKGROUND, BUILDING, IGNORE
from kit.data.splitting import split_instances
from kit.deploy.weights.card import Postprocess, Splitting
from kit.deploy.weights.cleaning import HOLES, OBJECTS, Cleaning, clean, inner_parts
from kit.errors import DataError, RunError
from kit.measures.object_counts import ObjectCounts, pool_objects
from kit.measures.object_masks import compare_ids, components
from kit.paths import Paths
from kit.training.oof import INSIDE_FOLDER, best_threshold, read_levels
from kit.training.run_files import read_settings

SMALLEST_M2 = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)  # a shed has 4; no building is smaller than 1
HOLE_M2 = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
AROUND = (-0.1, -0.05, 0.0, 0.05)  # offsets from the best threshold: without specks, a lower one may be better
SPLITS = [(inside, smallest_m2) for inside in (0.3, 0.5, 0.6, 0.7, 0.8) for smallest_m2 in (0.0, 1.0, 3.0, 6.0, 10.0)]
LARGEST_SPLIT_PX = 40 * 1024**2  # two seconds a tile of 1024 px
LARGEST_PX = 400 * 1024**2  # read from evenly spread tiles: about a minute on one core


@dataclass(frozen=True)
class Choice:
    """The chosen clean-up."""

    best: Postprocess  # with its scores
    tiles: int  # number of tiles it was chosen on
    held_out: int  # number of validation tiles
    splitting: Splitting | None = None  # of networks that predict layers

    def __str__(self) -> str:
        return "; ".join([self._cleaning(), *([self._split()] if self.splitting else [])])

    def _split(self) -> str:
        best = self.splitting
        assert best is not None
        return f"F1 of buildings by splitting them: {best.f1_before:.4f} -> {best.f1_after:.4f} (kit map)"

    def _cleaning(self) -> str:
        best = self.best
        some = "" if self.tiles == self.held_out else f", on {self.tiles} of {self.held_out} tiles"
        if best.score_after <= best.score_before:
            return f"clean-up of masks: no gain on validation tiles{some}"
        gain = f"{best.score_before:.4f} -> {best.score_after:.4f}"
        return f"{Cleaning.of(best)}: {gain} on validation tiles{some} (kit submit --clean)"


@dataclass(frozen=True)
class ValidationTile:
    """A validation tile with its predictions."""

    name: str  # of the tile
    mask: str  # its file
    gsd_m: float  # metres per pixel
    pixels: int  # how many it has
    building_px: int  # of its mask, as counted by the run
    predictions: tuple[Path, ...]  # files of probability x 255, one per run that validated on it
    weights: tuple[float, ...] = ()  # of these predictions in their mean; empty where all count the same

    @property
    def insides(self) -> tuple[Path, ...]:
        """Files of `inside_of` x 255, of networks that predict layers."""
        return tuple(file.parents[1] / INSIDE_FOLDER / file.name for file in self.predictions)

    @property
    def has_insides(self) -> bool:
        """Whether all networks predict layers."""
        return all(file.is_file() for file in self.insides)


def choose(folders: Sequence[Path], paths: Paths, weights: Sequence[float] = ()) -> Choice | None:
    """Returns the clean-up with the best Jaccard index on validation tiles; None if there are none.

    Threshold and smallest object are chosen together, then the smallest hole. The score is slightly optimistic, since
    it is measured on the tiles of the choice.

    Args:
        folders: of finished runs. Predictions of the same tile are averaged.
        paths: of the working root, with the data sets of the runs.
        weights: of the runs in that mean; empty: equal weights.

    Raises:
        DataError: a data set is missing, or tiles have no ground resolution.
        RunError: tiles were cut again after the run, or cannot be read.
    """
    tiles = held_out_tiles(folders, paths, weights)
    if not tiles:
        return None
    if not all(tile.gsd_m for tile in tiles):
        raise DataError("tiles have no ground resolution", "give it: kit prepare --gsd, in metres per pixel")
    step = -(-sum(tile.pixels for tile in tiles) // LARGEST_PX)
    some = tiles[::step]
    thresholds = _thresholds(folders)
    before, scores = np.zeros(3, np.int64), np.zeros((len(thresholds), len(SMALLEST_M2), 3), np.int64)
    for tile, probability, truth in read_tiles(some, "choose threshold and smallest object"):
        before += _counts(clean(probability), truth)
        scores += [_by_smallest(probability > threshold, truth, tile.gsd_m) for threshold in thresholds]
    t, s = divmod(int(_jaccards(scores).argmax()), len(SMALLEST_M2))  # of equals the first, which changes least
    by_hole = np.zeros((len(HOLE_M2), 3), np.int64)
    for tile, probability, truth in read_tiles(some, "choose holes"):
        by_hole += _by_hole(clean(probability, thresholds[t], SMALLEST_M2[s] / tile.gsd_m**2), truth, tile.gsd_m)
    h = int(_jaccards(by_hole).argmax())
    score_before, score_after = float(_jaccards(before)), float(_jaccards(by_hole[h]))
    best = Postprocess(thresholds[t], SMALLEST_M2[s], HOLE_M2[h], round(score_before, 6), round(score_after, 6))
    return Choice(best, len(some), len(tiles), _choose_splitting(tiles, Cleaning.of(best)))


def _choose_splitting(tiles: Sequence[ValidationTile], cleaning: Cleaning) -> Splitting | None:
    """Returns how to split the clean mask for the best F1 of buildings; None where a network predicts no layers.

    The mask stays as it is, and so does its Jaccard index.
    """
    if not all(tile.has_insides for tile in tiles):
        return None
    some = tiles[:: -(-sum(tile.pixels for tile in tiles) // LARGEST_SPLIT_PX)]
    whole: list[ObjectCounts] = []
    divided: list[list[ObjectCounts]] = [[] for _ in SPLITS]
    for tile, probability, truth in read_tiles(some, "choose splitting"):
        inside = read_inside(tile)
        assert inside is not None
        pixel_m2 = tile.gsd_m**2 or 1.0
        mask = clean(probability, cleaning.threshold, cleaning.smallest_m2 / pixel_m2, cleaning.holes_m2 / pixel_m2) > 0
        true, known = read_ids(tile.mask, truth), truth != IGNORE
        whole.append(compare_ids(components(mask), true, known))
        for counts, (threshold, smallest_m2) in zip(divided, SPLITS, strict=True):
            ids = split_instances(mask, inside > threshold, smallest_m2 / pixel_m2)
            counts.append(compare_ids(ids, true, known))
    scores = [pool_objects(counts).f1 for counts in divided]
    best = int(np.argmax(scores))
    return Splitting(*SPLITS[best], round(pool_objects(whole).f1, 6), round(scores[best], 6))


def held_out_tiles(folders: Sequence[Path], paths: Paths, weights: Sequence[float] = ()) -> list[ValidationTile]:
    """Returns the validation tiles of runs, sorted by data set and name."""
    tiles: dict[tuple[str, str], ValidationTile] = {}
    indexes: dict[str, pd.DataFrame] = {}
    for folder, weight in zip(folders, weights or [1.0] * len(folders), strict=True):
        counted = folder / "oof.csv"
        if not counted.is_file():  # trained on all folds, or by an older version
            continue
        data = str(read_settings(folder, ("data",)).data)
        if data not in indexes:
            indexes[data] = read_index(paths, data)[1].set_index("tile")
        for row in pd.read_csv(counted, dtype={"tile": str}, keep_default_na=False).itertuples():
            if row.tile not in indexes[data].index:
                raise _cut_again(f"{data} has no tile {row.tile}")
            known = indexes[data].loc[row.tile]
            earlier = tiles.get((data, row.tile))
            before, weights_before = (earlier.predictions, earlier.weights) if earlier else ((), ())
            tiles[data, row.tile] = ValidationTile(
                row.tile, known["mask"], float(known["gsd_m"]), int(known["width_px"] * known["height_px"]),
                int(row.tp + row.fn), (*before, folder / "oof" / f"{row.tile}.tif"), (*weights_before, weight),
            )  # fmt: skip
    return [tiles[key] for key in sorted(tiles)]


def _thresholds(folders: Sequence[Path]) -> list[float]:
    """Returns 0.5 and thresholds around the one with the best pixel score."""
    levels = [counts for folder in folders if (counts := read_levels(folder)) is not None]
    best = best_threshold(np.sum(levels, axis=0))[0] if levels else 0.5
    near = {round(min(max(best + step, 0.01), 0.99), 2) for step in AROUND}
    return [0.5, *sorted(near - {0.5})]


def read_tiles(
    some: Sequence[ValidationTile], what: str
) -> Iterator[tuple[ValidationTile, NDArray[np.float32], NDArray[np.uint8]]]:
    """Yields each tile, its probability, float32 (H, W), and its mask, uint8 (H, W)."""
    for tile in track(some, what):
        votes, truth = read_votes(tile)
        yield tile, _mean(votes, tile), truth


def _mean(votes: Sequence[NDArray[np.uint8]], tile: ValidationTile) -> NDArray[np.float32]:
    return np.asarray(np.average(votes, axis=0, weights=tile.weights or None) / 255, np.float32)


def read_inside(tile: ValidationTile) -> NDArray[np.float32] | None:
    """Returns a tile's mean of `inside_of`, (H, W), 0..1; None where a network predicts no layers.

    Raises:
        RunError: a file cannot be read.
    """
    return _mean([_read_band(file, tile) for file in tile.insides], tile) if tile.has_insides else None


def read_votes(tile: ValidationTile) -> tuple[list[NDArray[np.uint8]], NDArray[np.uint8]]:
    """Returns a tile's predictions, probability x 255, and its mask, all uint8 (H, W).

    Raises:
        RunError: a file cannot be read, or the tile was cut again after the run.
    """
    truth, votes = _read_band(tile.mask, tile), [_read_band(file, tile) for file in tile.predictions]
    if any(vote.shape != truth.shape for vote in votes) or (truth == BUILDING).sum() != tile.building_px:
        raise _cut_again(f"tile {tile.name} has another mask now")
    return votes, truth


def _read_band(file: str | Path, tile: ValidationTile) -> NDArray[np.uint8]:
    try:
        with rasterio.open(file) as source:
            band: NDArray[np.uint8] = source.read(1)
    except RasterioError as cause:
        raise RunError(
            f"tile {tile.name} cannot be read: {cause}", "train its fold again: kit run RECIPE --restart"
        ) from cause
    return band


def _cut_again(what: str) -> RunError:
    return RunError(f"{what}: it was cut again after the run", "train again: kit run RECIPE --restart")


def _by_smallest(building: NDArray[np.bool_], truth: NDArray[np.uint8], gsd_m: float) -> NDArray[np.int64]:
    """Returns (tp, fp, fn) for each of SMALLEST_M2, (sizes, 3); connected components are searched once."""
    mask = building.astype(np.uint8)
    labels, areas = inner_parts(mask, OBJECTS)
    lost = _within(labels, areas, truth, np.array(SMALLEST_M2) / gsd_m**2)
    return _counts(mask, truth) + np.stack([-lost[:, 1], -lost[:, 0], lost[:, 1]], axis=1)


def _by_hole(mask: NDArray[np.uint8], truth: NDArray[np.uint8], gsd_m: float) -> NDArray[np.int64]:
    """Returns (tp, fp, fn) for each of HOLE_M2, (sizes, 3); connected components are searched once."""
    labels, areas = inner_parts(1 - mask, HOLES)
    won = _within(labels, areas, truth, np.array(HOLE_M2) / gsd_m**2)
    return _counts(mask, truth) + np.stack([won[:, 1], won[:, 0], -won[:, 1]], axis=1)


def _within(
    labels: NDArray[np.int32], areas: NDArray[np.float64], truth: NDArray[np.uint8], sizes_px: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Returns the pixels of background and of building in components smaller than each size, (sizes, 2)."""
    pixels_by_kind = [np.bincount(labels[truth == kind], minlength=len(areas)) for kind in (BACKGROUND, BUILDING)]
    small = areas[None] < sizes_px[:, None]  # (sizes, parts)
    return np.stack([small @ pixels for pixels in pixels_by_kind], axis=1)


def _counts(mask: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Returns (tp, fp, fn)."""
    hit, building = int(((truth == BUILDING) & (mask == 1)).sum()), int((truth == BUILDING).sum())
    return np.array([hit, int(((truth == BACKGROUND) & (mask == 1)).sum()), building - hit], np.int64)


def _jaccards(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the Jaccard index of (..., 3) counts; 1 where neither truth nor prediction has a building."""
    union = counts.sum(axis=-1)
    return np.asarray(np.where(union, counts[..., 0] / np.maximum(union, 1), 1.0))
