"""The validation tiles of runs with all that the report counts on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kit.console import meter
from kit.data.folds.leaks import NO_FOLD
from kit.data.index import read_index
from kit.errors import DataError, RunError
from kit.paths import Paths
from kit.pipeline.best_ensemble import VoteCandidate, group_runs
from kit.pipeline.compare_runs import finished_runs
from kit.pipeline.postprocess import ValidationTile
from kit.pipeline.runs import Run, run_folder
from kit.report.intervals import blocks_of
from kit.report.tile_counts import TileCounts, count_tile
from kit.system.cpu import cpu_count
from kit.system.files import sha256_of
from kit.system.workers import spread
from kit.training.run_files import read_settings

KINDS = ("new area", "new scene", "same scene")  # what training saw of a validation tile's place
IN_PROCESS = 16  # tiles that are not worth a pool of processes


@dataclass(frozen=True)
class Evidence:
    """Runs that vote as one, and the tiles that they held out."""

    candidate: VoteCandidate
    tiles: pd.DataFrame  # rows of the index with `run`, `kind`, `block`, and `file`, the prediction
    counts: tuple[TileCounts, ...]  # of each row
    block_m: float  # side of a block, metres on the ground; 0 where no tile has a georeference
    notices: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it votes as: the recipe, as a rule."""
        return self.candidate.name

    @property
    def pixels(self) -> NDArray[np.int64]:
        """Pixels tp, fp, fn of each tile, (n, 3)."""
        return np.stack([counts.pixels for counts in self.counts])

    @property
    def levels(self) -> NDArray[np.int64]:
        """Pixels of background, of building by probability, over all tiles, (2, 256)."""
        return np.asarray(np.sum([counts.levels for counts in self.counts], axis=0), np.int64)


def collect(names: Sequence[str], paths: Paths) -> list[Evidence]:
    """Returns the evidence of finished runs, those that vote as one together.

    Args:
        names: `<recipe>/fold<k>`, or a recipe for its finished folds.
        paths: of the working root.

    Raises:
        RunError: a run is missing, unfinished, damaged or held nothing out, or its tiles were cut again.
        DataError: its data set is missing.
    """
    runs: dict[str, Run] = {}
    left_out: list[str] = []
    for name in names:
        finished, others = finished_runs(name.strip("/"), paths)
        runs |= {run.run: run for run in finished}
        left_out += [run.run for run in others]
    notices = (f"unfinished or unreadable, left out: {', '.join(left_out)}",) if left_out else ()
    return [_evidence(candidate, paths, notices) for candidate in group_runs(list(runs.values()), paths)]


def _evidence(candidate: VoteCandidate, paths: Paths, notices: tuple[str, ...]) -> Evidence:
    settings = {run: read_settings(run_folder(run, paths), ("data",)) for run in candidate.runs}
    names = {str(each.data) for each in settings.values()}
    if len(names) > 1:
        raise RunError(
            f"runs of {candidate.name} were trained on several data sets: {', '.join(sorted(names))}",
            "report on the runs of one data set",
        )
    data, index = read_index(paths, names.pop())
    if any(each.data_sha256 not in (None, sha256_of(paths.data(data) / "index.csv")) for each in settings.values()):
        notices += (f"the index of {data} has changed since: what training saw may differ from what is said here",)
    lost = candidate.tiles.index.difference(index["tile"])
    if len(lost):
        raise RunError(f"{data} has no tile {lost[0]}: it was cut again after the run", "train again with --restart")
    tiles = index.set_index("tile", drop=False).loc[candidate.tiles.index]
    tiles = tiles.assign(file=candidate.tiles["file"], run=candidate.tiles["run"])
    parts = []
    for run, held_out in tiles.groupby("run", sort=False):
        trained = index[~index["tile"].isin(held_out["tile"]) & (index["fold"] != NO_FOLD)]
        for added in settings[str(run)].added:
            try:
                trained = pd.concat([trained, read_index(paths, added.name)[1]])
            except DataError:
                notices += (f"the added set {added.name} is not here: its places are not known",)
        parts.append(held_out.assign(kind=_kinds(held_out, trained)))
    tiles = pd.concat(parts)
    blocks, side_m = blocks_of(tiles)
    return Evidence(candidate, tiles.assign(block=blocks), _counts(tiles, candidate), side_m, notices)


def _kinds(held_out: pd.DataFrame, trained: pd.DataFrame) -> list[str]:
    """Returns what training saw of each validation tile's place, see KINDS."""
    areas, scenes = set(trained["area"]), set(trained["area"] + "/" + trained["scene"])
    places = zip(held_out["area"], held_out["scene"], strict=True)
    return [KINDS[(area in areas) + (f"{area}/{scene}" in scenes)] for area, scene in places]


def _counts(tiles: pd.DataFrame, candidate: VoteCandidate) -> tuple[TileCounts, ...]:
    jobs = [
        ValidationTile(
            str(row.tile), str(row.mask), float(row.gsd_m), 0,
            int(candidate.tiles.loc[row.tile, ["tp", "fn"]].sum()), (row.file,),
        )
        for row in tiles.itertuples()
    ]  # fmt: skip
    counted: dict[str, TileCounts] = {}
    processes = cpu_count() if len(jobs) > IN_PROCESS else 1
    with meter(f"count tiles of {candidate.name}", len(jobs)) as running:
        for job, counts in spread(count_tile, jobs, processes, "counting tiles"):
            counted[job.name] = counts
            running.advance()
    return tuple(counted[job.name] for job in jobs)
