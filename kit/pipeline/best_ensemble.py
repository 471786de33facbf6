"""Chooses the best weighted ensemble of finished runs on validation tiles (`kit best`).

The folds of a recipe are one candidate: each tile is predicted by the network that was not trained on it. Only
validation tiles of all candidates are used. The weight of a candidate is divided among its networks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kit.console import say, table, track
from kit.data.dataset import read_tile
from kit.data.index import read_index
from kit.data.masks import BUILDING, IGNORE
from kit.deploy.freeze.ensemble import view_codes
from kit.deploy.weights.store import check_free
from kit.errors import KitError, RunError
from kit.paths import Paths
from kit.pipeline.compare_runs import finished_runs, held_out_counts
from kit.pipeline.export import Exported
from kit.pipeline.export_runs import FileOptions, export_runs, recipe_of
from kit.pipeline.postprocess import ValidationTile, read_votes
from kit.pipeline.prediction_time import seconds_per_view
from kit.pipeline.runs import Run, read_run, run_folder, vote_name
from kit.pipeline.soup import END, make_soups
from kit.pipeline.vote_search import NestedScore, VotePixels, Votes, VoteSearch, parts_of
from kit.training.run_files import read_result, read_settings

LARGEST_PX = 16 * 1024**2  # validation pixels, drawn at random; more would not change the score's digits
TUNING_TILES = 3
COLUMNS = ("candidate", "networks", "weight", "alone", "adds", "seconds")


@dataclass(frozen=True)
class BestOptions:
    """The options of `kit best`."""

    views: str = "flips"  # `none`, `flips` or `d4`
    formats: Sequence[str] = ()  # to write beside TorchScript
    # limit for a chip of 1024 x 1024 px on this machine
    seconds_per_chip: float = math.inf


@dataclass(frozen=True)
class VoteCandidate:
    """Runs that vote together: each tile is predicted by the run that did not train on it."""

    name: str  # see `vote_name`
    runs: tuple[str, ...]  # `<recipe>/fold<k>`
    # counts of the validation tiles, by name, with fold and file of the prediction
    tiles: pd.DataFrame


@dataclass(frozen=True)
class ChosenVote:
    """A chosen vote with its scores."""

    votes: Votes  # of each candidate; without a gain, the best single one
    score: float  # Jaccard index on the tiles of the choice
    best_single: float  # likewise, of the best single candidate
    nested: NestedScore | None  # scores on tiles that were not used for the choice; None if there is one tile
    several: bool  # whether it has more than one candidate

    def __str__(self) -> str:
        scores = f"on the tiles of the choice {self.best_single:.4f} -> {self.score:.4f}"
        if self.nested is None:
            return f"best single candidate -> vote: {scores}; too few tiles to check it on others"
        nested, interval = self.nested, ""
        if nested.low is not None and nested.high is not None:
            interval = f" ({nested.gain:+.4f} [{nested.low:+.4f}, {nested.high:+.4f}])"
        others = f"on other tiles {nested.single:.4f} -> {nested.vote:.4f}{interval}"
        return f"best single candidate -> vote: {others}; {scores}"


def best(runs: Sequence[str], name: str, paths: Paths, options: BestOptions) -> Exported:
    """Chooses the vote of finished runs with the best score on validation tiles, reports and exports it.

    Args:
        runs: `<recipe>/fold<k>`, or a recipe for its finished folds.
        name: of the weights.
        paths: of the working root.
        options: see `BestOptions`.

    Raises:
        RunError: a run is missing, unfinished or damaged, or the runs have no common validation tile or different data.
        KitError: every candidate exceeds the time limit.
        WeightsError: see `export_runs`.
    """
    check_free(paths.weights, name)
    if not options.seconds_per_chip > 0:
        raise KitError(
            f"--seconds-per-chip {options.seconds_per_chip:g}: expected more than 0", "leave it out for no limit"
        )
    views = len(view_codes(options.views))
    candidates = find_candidates(runs, paths)
    tiles = shared_tiles(candidates, paths)
    say(f"{len(candidates)} candidates, {len(tiles)} validation tiles in common")
    seconds = [views * len(candidate.runs) * _seconds(candidate, paths) for candidate in candidates]
    if min(seconds) > options.seconds_per_chip:
        fastest = int(np.argmin(seconds))
        raise KitError(
            f"no candidate predicts a chip in {options.seconds_per_chip:g} s on this machine: the fastest, "
            f"{candidates[fastest].name}, takes {seconds[fastest]:.2f} s with views {options.views}",
            "allow more seconds, fewer views, or give fewer folds of a recipe",
        )
    search = VoteSearch(read_pixels(candidates, tiles), seconds, options.seconds_per_chip)
    choice = choose_vote(search)
    _report(choice, search, candidates)
    chosen = [(candidate, count) for candidate, count in zip(candidates, choice.votes, strict=True) if count]
    members = [run for candidate, _ in chosen for run in candidate.runs]
    weights = [count / len(candidate.runs) for candidate, count in chosen for _ in candidate.runs]
    return export_runs(members, name, paths, options.views, FileOptions(options.formats), weights=weights)


def find_candidates(runs: Sequence[str], paths: Paths) -> list[VoteCandidate]:
    """Returns the candidates; runs of one recipe and fold are also averaged to a soup.

    Raises:
        RunError: see `best`.
    """
    given: dict[str, Run] = {}
    for name in runs:
        for run in finished_runs(name.strip("/"), paths)[0]:
            given[run.run] = run
    folders = [run_folder(run, paths) for run in given]
    _check_data(list(given), folders)
    for soup in make_soups(folders, paths):
        soup_run = read_run(soup)
        given[soup_run.run] = soup_run
    candidates = group_runs(list(given.values()), paths)
    return [candidate for candidate in candidates if not _narrows(candidate, candidates)]


def group_runs(runs: Sequence[Run], paths: Paths) -> list[VoteCandidate]:
    """Returns finished runs by what they vote as.

    Raises:
        RunError: a run is damaged, or runs that vote as one held out the same tile.
    """
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(vote_name(run.run), []).append(run)
    candidates = []
    for name, members in together.items():
        tiles = pd.concat([_predicted(run.run, paths) for run in members], ignore_index=True)
        twice = tiles.loc[tiles["tile"].duplicated(), "tile"]
        if len(twice):
            raise RunError(
                f"{len(twice)} validation tiles belong to several runs of {name}, first {twice.iloc[0]}",
                "the folds changed between them: train again, kit run RECIPE --restart",
            )
        candidates.append(VoteCandidate(name, tuple(run.run for run in members), tiles.set_index("tile")))
    return candidates


def _narrows(candidate: VoteCandidate, candidates: Sequence[VoteCandidate]) -> bool:
    """Returns whether a candidate is a soup that lacks common validation tiles of the others; if so, reports it."""
    if not candidate.name.endswith(END):
        return False
    others = [set(other.tiles.index) for other in candidates if not other.name.endswith(END)]
    lacking = set.intersection(*others) - set(candidate.tiles.index) if others else set()
    if lacking:
        say(f"{candidate.name} is left out: {len(lacking)} validation tiles are in folds without a soup")
    return bool(lacking)


def _predicted(run: str, paths: Paths) -> pd.DataFrame:
    """Returns the counts of a run's validation tiles with their `run`, its `fold` and the `file` of the prediction."""
    folder = run_folder(run, paths)
    result, tiles = read_result(folder), held_out_counts(run, [read_run(folder)], paths)
    files = [folder / "oof" / f"{tile}.tif" for tile in tiles["tile"]]
    return tiles.assign(run=run, fold=0 if result is None else result.fold, file=files)


def _check_data(runs: Sequence[str], folders: Sequence[Path]) -> None:
    """Refuses runs of different data or folds: a vote can only be scored on tiles that no member was trained on."""
    settings = [read_settings(folder, ("data",)) for folder in folders]
    for run, other in zip(runs, settings, strict=True):
        if other.data != settings[0].data:
            raise RunError(
                f"{runs[0]} was trained on {settings[0].data}, {run} on {other.data}: no validation tile in common",
                "give runs of one data set",
            )
        if other.data_sha256 != settings[0].data_sha256:
            raise RunError(
                f"the index of {other.data} changed between {runs[0]} and {run}: their folds may differ",
                "train the older one again with --restart, or give runs of one version of the data set",
            )


def shared_tiles(candidates: Sequence[VoteCandidate], paths: Paths) -> pd.DataFrame:
    """Returns the validation tiles of all candidates, sorted by name, as rows of the index.

    Raises:
        RunError: there is none, or masks differ between the runs.
        DataError: the data set is missing.
    """
    first, *others = candidates
    shared = first.tiles
    for other in others:
        kept = shared[shared.index.isin(other.tiles.index)]
        if kept.empty:
            raise RunError(
                f"{first.name} ({', '.join(first.runs)}) and {other.name} ({', '.join(other.runs)}) have no validation "
                "tile in common: their vote cannot be scored",
                "train the same folds of both, or combine them without a score: kit export RUN... --name NAME",
            )
        shared = kept
    for other in others:
        mine, theirs = shared, other.tiles.loc[shared.index]
        differ = (mine["tp"] + mine["fn"]) != (theirs["tp"] + theirs["fn"])
        if differ.any():
            raise RunError(
                f"{differ.sum()} of {len(shared)} tiles have other masks in {first.name} than in {other.name}, first "
                f"{shared.index[differ.to_numpy()][0]}",
                "train the older one again with --restart",
            )
    index = read_index(paths, read_settings(run_folder(first.runs[0], paths), ("data",)).data or "")[1]
    index = index.set_index("tile")
    lost = shared.index.difference(index.index)
    if len(lost):
        raise RunError(
            f"the data set has no tile {lost[0]}: it was cut again after the run", "train again with --restart"
        )
    return index.loc[sorted(shared.index)]


def read_pixels(candidates: Sequence[VoteCandidate], tiles: pd.DataFrame) -> VotePixels:
    """Returns the validation pixels of tiles; at most `LARGEST_PX`, drawn at random.

    Args:
        candidates: whose predictions are read.
        tiles: rows of the index, see `shared_tiles`.

    Raises:
        RunError: a file is missing or damaged, or a tile was cut again.
    """
    share = min(1.0, LARGEST_PX / float((tiles["width_px"] * tiles["height_px"]).sum()))
    random = np.random.default_rng(0)
    values, building, numbers = [], [], []
    for number, row in enumerate(track(list(tiles.itertuples()), "read validation tiles")):
        counts = candidates[0].tiles.loc[row.Index]
        files = tuple(candidate.tiles.loc[row.Index, "file"] for candidate in candidates)
        tile = ValidationTile(
            str(row.Index), str(row.mask), float(row.gsd_m), 0, int(counts["tp"] + counts["fn"]), files
        )
        votes, truth = read_votes(tile)
        used = truth != IGNORE
        if share < 1:
            used &= random.random(truth.shape) < share
        values.append(np.stack([vote[used] for vote in votes]))
        building.append(truth[used] == BUILDING)
        numbers.append(np.full(int(used.sum()), number))
    scenes = list(tiles["area"] + "/" + tiles["scene"])
    folds = [int(fold) for fold in candidates[0].tiles.loc[tiles.index, "fold"]]
    return VotePixels(
        np.concatenate(values, axis=1), np.concatenate(building), np.concatenate(numbers), parts_of(folds, scenes),
        np.unique(scenes, return_inverse=True)[1],
    )  # fmt: skip


def choose_vote(search: VoteSearch) -> ChosenVote:
    """Returns the vote of several candidates if it gains on tiles not used for the choice, else the best candidate."""
    single, several = search.single(), search.greedy()
    nested = search.nested() if several != single else None
    score, alone = search.score(several), search.score(single)
    if nested is not None and nested.holds:
        return ChosenVote(several, score, alone, nested, True)
    return ChosenVote(single, score, alone, nested, False)


def _seconds(candidate: VoteCandidate, paths: Paths) -> float:
    """Returns the seconds that a network of a candidate takes for one view of a chip."""
    run = candidate.runs[0]
    folder = run_folder(run, paths)
    settings = read_settings(folder, ("recipe", "data"))
    index = read_index(paths, settings.data or "")[1]
    images = [read_tile(row.image, row.mask)[0] for row in index.head(TUNING_TILES).itertuples()]
    return seconds_per_view(recipe_of(run, settings, paths, None), folder, images)


def _report(choice: ChosenVote, search: VoteSearch, candidates: Sequence[VoteCandidate]) -> None:
    """Prints gain and cost of each candidate, and the result."""
    total, rows = sum(choice.votes), []
    for number, (candidate, count) in enumerate(zip(candidates, choice.votes, strict=True)):
        others = tuple(0 if place == number else votes for place, votes in enumerate(choice.votes))
        adds = search.score(choice.votes) - search.score(others) if count and sum(others) else None
        alone = search.score(tuple(int(place == number) for place in range(len(candidates))))
        rows.append((
            candidate.name, len(candidate.runs), f"{count / total:.2f}" if count else "", f"{alone:.4f}",
            "" if adds is None else f"{adds:+.4f}", f"{search.seconds[number]:.2f}",
        ))  # fmt: skip
    table(COLUMNS, rows)
    single = len(candidates) == 1
    say("one candidate: there is nothing to choose" if single else str(choice))
    threshold, _ = search.threshold(choice.votes)
    cost = f"{search.cost(choice.votes):.2f} s per chip of 1024 px here, best threshold {threshold:.2f}"
    if not single and not choice.several:
        chosen = candidates[choice.votes.index(1)].name
        say(f"no significant gain over the best single candidate: exporting {chosen} alone; {cost}")
    else:
        say(f"exported: {cost}")
