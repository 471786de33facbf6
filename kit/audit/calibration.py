"""How well right labels agree with predictions of weights that have not seen them: the scale for a tile's score."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from kit.audit.predicted import Voter
from kit.audit.tile_scores import agree, image_of, tile_jaccard
from kit.console import track
from kit.data.audits import data_checksum
from kit.data.index import read_index
from kit.data.masks import count
from kit.deploy.engine.memo import recall, remember
from kit.deploy.weights.load import Weights
from kit.errors import KitError
from kit.paths import Paths
from kit.pipeline.postprocess import held_out_tiles, read_tiles
from kit.pipeline.pseudo_quality import member_runs
from kit.training.run_files import read_settings

__all__ = ["RightTiles", "calibrate", "spread_rows"]

MOST_TILES = 60  # of a data set given by name, evenly spread
MOST_VALIDATION = 400  # validation tiles, whose predictions need only be read


@dataclass(frozen=True)
class RightTiles:
    """Tiles whose labels are right, beside their prediction."""

    name: str = ""  # what tiles they are, in words
    jaccards: list[float] = field(default_factory=list)  # see `kit.audit.tile_scores.tile_jaccard`
    notice: str = ""  # what the user should know


def calibrate(weights: Weights, vote: Voter, threshold: float, paths: Paths, on: str, audited: str) -> RightTiles:
    """Returns the agreement of right labels with predictions.

    Args:
        weights: whose runs are looked for below the working root.
        vote: predicts with them.
        threshold: building is where the probability is above it.
        paths: of the working root.
        on: data set whose labels are right; empty: the tiles that the runs of the weights held out.
        audited: name of the data set that is compared.

    Raises:
        DataError: there is no data set of that name.
    """
    runs = member_runs(weights.card, paths)
    trained_on = {read_settings(folder).data for folder in runs.values()}
    warning = f"the weights were trained on {audited}, whose labels they may have learnt with their faults"
    notice = warning if audited in trained_on else ""
    if on:
        on, index = read_index(paths, on)
        some = list(spread_rows(index, MOST_TILES))
        key = f"{weights.sha256} {weights.plan} {threshold} {on} {data_checksum(paths.data(on) / 'index.csv')}"
        values = recall("calibration", key, list[float])
        if values is None:
            values = [
                agree(row, vote(image_of(row))[0], threshold).jaccard for row in track(some, f"calibrate on {on}")
            ]
            remember("calibration", key, values)
        if on in trained_on:
            notice = f"the weights were trained on {on}: its tiles agree better than tiles that they have not seen"
        return RightTiles(f"{len(some)} tiles of {on}", values, notice)
    if not runs:
        return RightTiles(
            notice="scores are not calibrated: the runs of the weights are not here; they are Jaccard indices. "
            "Name a data set whose labels are right: --calibrate-on"
        )
    try:
        tiles = held_out_tiles(list(runs.values()), paths)
        some_tiles = tiles[:: max(1, -(-len(tiles) // MOST_VALIDATION))]
        values = [
            tile_jaccard(count(probability > threshold, truth), tile.gsd_m)
            for tile, probability, truth in read_tiles(some_tiles, "calibrate on validation tiles")
        ]
    except KitError as cause:
        return RightTiles(notice=f"scores are not calibrated: {cause.message}. They are Jaccard indices")
    return RightTiles(f"{len(values)} validation tiles of {', '.join(sorted(map(str, trained_on)))}", values, notice)


def spread_rows(index: pd.DataFrame, most: int) -> Iterator[Any]:
    """Yields up to so many rows of an index, at equal distances."""
    step: int = max(1, -(-len(index) // most))
    yield from index[::step].itertuples()
