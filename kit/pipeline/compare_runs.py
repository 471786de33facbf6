"""Compares two runs on their common validation tiles, with bootstrap intervals (`kit compare`)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kit.errors import RunError, nearest
from kit.measures.object_counts import ObjectCounts
from kit.paths import Paths
from kit.pipeline.runs import Run, is_numbered, read_run, run_folder
from kit.training.run_files import command, read_objects, train_again

OOF = "oof.csv"  # of a run: a row per validation tile
KEYS, PIXELS = ["tile", "area", "scene"], ["tp", "fp", "fn"]  # its columns
DRAWS = 2000  # of the bootstrap; 50 are beyond each end of a 95 % interval
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Difference:
    """How two sides differ on some tiles, in a score of 0 to 1."""

    scene: str  # `area/scene`, or `pooled`
    tiles: int  # how many
    first: float  # score over all of them, of the first side
    second: float  # likewise, of the second side
    difference: float  # second - first
    low: float | None  # lower end of its 95 % interval; None if no scene has several tiles
    high: float | None  # where it ends

    def cells(self) -> tuple[object, ...]:
        """Returns a table row; an interval that is not known is blank."""
        return tuple("" if cell is None else cell for cell in vars(self).values())


@dataclass(frozen=True)
class RunComparison:
    """The difference of two sides, each a run or a recipe's finished folds, on their common validation tiles."""

    first: str  # its name
    second: str  # its name
    first_tiles: int  # number of its validation tiles
    second_tiles: int  # likewise
    left_out: tuple[str, ...]  # folds of the recipes that are unfinished or unreadable
    scenes: tuple[Difference, ...]  # a row a scene, by name
    pooled: Difference  # over all scenes
    objects: tuple[Difference, ...]  # F1 of buildings, per scene and pooled; none where an older version trained a run

    def to_json(self) -> str:
        """Returns the comparison as JSON text; `objects` only where both sides counted buildings."""
        return json.dumps({key: value for key, value in asdict(self).items() if key != "objects" or value}, indent=1)

    def columns(self) -> tuple[str, ...]:
        """Returns the titles over the rows' cells."""
        return ("scene", "tiles", self.first, self.second, "difference", "low", "high")

    def notices(self) -> list[str]:
        """Returns which tiles were compared, as text."""
        notices = [f"left out, unfinished or unreadable: {', '.join(self.left_out)}"] if self.left_out else []
        held_out = f"{self.first_tiles} of {self.first}, {self.second_tiles} of {self.second}"
        return [*notices, f"{self.pooled.tiles} validation tiles in common ({held_out})"]

    def verdict(self) -> str:
        """Returns whether the pooled interval excludes 0, as text."""
        difference, low, high = self.pooled.difference, self.pooled.low, self.pooled.high
        if low is None or high is None:
            return f"difference {difference:.4f}, and no interval: every scene has one tile"
        if low > 0:
            return f"{self.second} is better by {difference:.4f} [{low:.4f}, {high:.4f}]"
        if high < 0:
            return f"{self.first} is better by {-difference:.4f} [{-high:.4f}, {-low:.4f}]"
        return f"no significant difference: {difference:.4f} [{low:.4f}, {high:.4f}]"


def compare(first: str, second: str, paths: Paths) -> RunComparison:
    """Returns how two runs differ, with 95 % percentile intervals of a paired bootstrap over tiles.

    Tiles are drawn with replacement, both sides of a tile together; the pooled row draws within each scene. Tiles of a
    scene are similar, and the influence of the random seed is not included: the intervals are too narrow.

    Args:
        first: `<recipe>/fold<k>`, or a recipe for its finished folds together.
        second: likewise.
        paths: of the working root.

    Raises:
        RunError: a side is missing, unfinished or without counts per tile, or nothing can be compared.

    Source:
        Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    first, second = first.strip("/"), second.strip("/")
    sides: list[pd.DataFrame] = []
    objects: list[dict[str, ObjectCounts]] = []
    left_out: list[str] = []
    for name in (first, second):
        runs, others = finished_runs(name, paths)
        sides.append(held_out_counts(name, runs, paths))
        counted = [read_objects(run_folder(run.run, paths)) for run in runs]
        objects.append({tile: counts for part in counted if part for tile, counts in part.items()})
        left_out += [other.run for other in others if other.run not in left_out]
    both = _common_tiles(sides[0], sides[1], (first, second))
    scenes = _by_scene(both)
    *rows, pooled = _differences({name: _pixels(part) for name, part in scenes.items()})
    buildings: list[Difference] = []
    if all(tile in side for tile in both["tile"] for side in objects):
        buildings = _differences({name: _buildings(part["tile"], objects) for name, part in scenes.items()})
    numbers = (len(sides[0]), len(sides[1]), tuple(left_out))
    return RunComparison(first, second, *numbers, tuple(rows), pooled, tuple(buildings))


def compare_tiles(first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str]) -> Difference:
    """Returns how two sides differ on the tiles that both held out, pooled. See `compare`.

    Args:
        first: counts of its tiles, see `held_out_counts`.
        second: likewise.
        names: of both sides, for errors.

    Raises:
        RunError: they share no tile, or a tile's mask differs between them.
    """
    scenes = _by_scene(_common_tiles(first, second, names))
    return _differences({name: _pixels(part) for name, part in scenes.items()})[-1]


def _common_tiles(first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str]) -> pd.DataFrame:
    """Returns the counts of both sides for each tile that both held out, see `compare_tiles`."""
    both = first.merge(second, on=KEYS, suffixes=("_first", "_second")).sort_values(KEYS)
    if both.empty:
        raise RunError(
            f"{' and '.join(names)} have no validation tile in common",
            "their folds or data sets differ: compare runs of the same --data and --fold",
        )
    _check_truth(both, *names)
    return both


def _by_scene(both: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(name): part for name, part in both.groupby(both["area"] + "/" + both["scene"])}


def finished_runs(name: str, paths: Paths) -> tuple[list[Run], list[Run]]:
    """Returns the finished runs of one side, at least one, and the recipe's other folds."""
    folders = {f"{folder.parent.name}/{folder.name}": folder for folder in paths.run_folders()}
    recipes = {run.split("/")[0] for run in folders}
    if name not in {*folders, *recipes}:
        raise RunError(f"no run {name!r} here", f"{nearest(name, {*folders, *recipes})}; kit runs lists them")
    if name in recipes:
        runs = [read_run(folder) for run, folder in folders.items() if folder.parent.name == name and is_numbered(run)]
        finished = [run for run in runs if run.counts is not None]
        if not finished:
            raise RunError(f"{name} has no finished fold", f"finish some: kit run {name}")
        return finished, [run for run in runs if run.counts is None]
    run = read_run(folders[name])
    if run.problem:
        raise RunError(run.problem, f"train it again: {command(name)} --restart")
    if run.state != "finished":
        raise RunError(f"{name} is not finished", f"finish it: {command(name)}")
    if run.counts is None:
        raise RunError(f"{name} held nothing out", "compare a run that did: kit run RECIPE --fold 0")
    return [run], []


def held_out_counts(name: str, runs: Sequence[Run], paths: Paths) -> pd.DataFrame:
    """Returns the counts of a side's validation tiles, a row per tile: KEYS and PIXELS."""
    tiles = pd.concat([_read_oof(run.run, paths) for run in runs], ignore_index=True)
    twice = tiles.loc[tiles["tile"].duplicated(), "tile"]
    if len(twice):
        raise RunError(
            f"{len(twice)} of {len(tiles)} validation tiles of {name} occur more than once, first {twice.iloc[0]}",
            f"the folds changed between its runs: kit run {runs[0].run.split('/')[0]} --restart; or compare one fold",
        )
    return tiles


def _read_oof(run: str, paths: Paths) -> pd.DataFrame:
    recipe, _, fold = run.partition("/fold")
    file = paths.run(recipe, fold) / OOF
    if not file.is_file():
        raise RunError(
            f"{run} has no {OOF}: an older version of kit wrote it", f"train it again: {command(run)} --restart"
        )
    try:
        types = dict.fromkeys(KEYS, "str") | dict.fromkeys(PIXELS, "int64")
        return pd.read_csv(file, dtype=types, keep_default_na=False)[KEYS + PIXELS]
    except (OSError, ValueError, TypeError, LookupError, OverflowError) as cause:  # pandas' errors are ValueErrors
        raise RunError(f"{file} is damaged: {str(cause).splitlines()[0]}", train_again(file.parent)) from cause


def _check_truth(both: pd.DataFrame, first: str, second: str) -> None:
    """Refuses tiles whose number of building pixels, tp + fn, differs between the sides."""
    truth = [both[f"tp_{side}"] + both[f"fn_{side}"] for side in ("first", "second")]
    other = both.loc[truth[0] != truth[1], "tile"]
    if len(other):
        raise RunError(
            f"{len(other)} of {len(both)} tiles have other masks in {first} than in {second}, first {other.iloc[0]}",
            "the data differ: compare runs of one data set, or train the older one again with --restart",
        )


def _pixels(tiles: pd.DataFrame) -> NDArray[np.int64]:
    """Returns what each tile adds to the Jaccard index, (tiles, 4): hit and union of the first, of the second side."""
    columns = []
    for side in ("first", "second"):
        hit = tiles[f"tp_{side}"]
        columns += [hit, hit + tiles[f"fp_{side}"] + tiles[f"fn_{side}"]]
    return np.stack(columns, axis=1)


def _buildings(tiles: pd.Series, sides: Sequence[dict[str, ObjectCounts]]) -> NDArray[np.int64]:
    """Returns what each tile adds to F1, (tiles, 4): twice the matches and all buildings, first side, second side."""
    counts = [[side[tile] for side in sides] for tile in tiles]
    cells = [[(2 * each.matched[0], each.true + each.predicted) for each in pair] for pair in counts]
    return np.array(cells, np.int64).reshape(-1, 4)


def resample(pixels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Returns the sums over tiles drawn with replacement, as many as there are, (DRAWS, 4).

    Args:
        pixels: what each tile adds, (tiles, 4).
        random: draws how often each tile is taken.
    """
    tiles = len(pixels)
    times = random.multinomial(tiles, np.full(tiles, 1 / tiles), size=DRAWS)  # (DRAWS, tiles)
    return times @ pixels


def _differences(scenes: dict[str, NDArray[np.int64]]) -> list[Difference]:
    """Returns the differences of each scene, then of all together, with intervals.

    Args:
        scenes: what each tile of a scene adds, (tiles, 4).
    """
    random = np.random.default_rng(0)
    drawn = {name: resample(parts, random) for name, parts in scenes.items()}
    rows = [_difference(name, parts, drawn[name], len(parts) > 1) for name, parts in scenes.items()]
    several = any(row.tiles > 1 for row in rows)
    parts = np.concatenate(list(scenes.values()))
    return [*rows, _difference("pooled", parts, np.sum(list(drawn.values()), axis=0), several)]


def _difference(scene: str, pixels: NDArray[np.int64], drawn: NDArray[np.int64], several: bool) -> Difference:
    first, second = (float(score) for score in jaccards(pixels.sum(axis=0)))
    low = high = None
    if several:
        scores = jaccards(drawn)
        low, high = (float(bound) for bound in np.percentile(scores[:, 1] - scores[:, 0], PERCENTILES))
    return Difference(scene, len(pixels), first, second, second - first, low, high)


def jaccards(sums: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns hit / union of both sides, (..., 4) -> (..., 2); 1 where the union is empty, as in `Counts`."""
    hit, union = sums[..., 0::2], sums[..., 1::2]
    return np.divide(hit, union, out=np.ones(hit.shape), where=union > 0)
