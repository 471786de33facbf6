"""Scores with intervals: blocks of ground are resampled, since neighbouring tiles resemble each other.

Source:
    Kuensch, The Jackknife and the Bootstrap for General Stationary Observations, Annals of Statistics 17(3), 1989.
    Roberts et al., Cross-validation strategies for data with temporal, spatial, hierarchical or phylogenetic structure,
    Ecography 40(8), 2017.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kit.data.folds.ground import lay_out
from kit.pipeline.compare_runs import PERCENTILES, resample

BLOCK_SIDES = 4  # sides of a tile to the side of a block


class Estimate(NamedTuple):
    """A score from 0 to 1 with its 95 % interval; None where there is one block."""

    score: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = f" [{self.low:.3f}, {self.high:.3f}]" if self.low is not None else ""
        return f"{self.score:.4f}{interval}"


def blocks_of(tiles: pd.DataFrame) -> tuple[NDArray[np.int64], float]:
    """Returns the number of each tile's block, (n,), and the side of the blocks, metres on the ground.

    Tiles without georeference are in one block with their scene.

    Args:
        tiles: rows of an index.
    """
    ground = lay_out(tiles)
    known, side_m = ground.known, 0.0
    names = (tiles["area"] + "/" + tiles["scene"]).to_numpy(object)
    if known.any():
        side_m = BLOCK_SIDES * float(np.median(ground.sides_m[known]))
        names[known] = [str(place) for place in lay_out(tiles[known]).blocks(side_m)]
    return np.unique(names.astype(str), return_inverse=True)[1].astype(np.int64), side_m


def estimate(parts: NDArray[np.int64], blocks: NDArray[np.int64]) -> Estimate:
    """Returns the ratio of two sums over tiles, with an interval by resampling blocks.

    Args:
        parts: what each tile adds to numerator and denominator, (n, 2). 0/0 is 1.
        blocks: the block of each tile, (n,).
    """
    score = float(ratio(parts.sum(axis=0)))
    _, place = np.unique(blocks, return_inverse=True)
    sums = np.stack([np.bincount(place, weights=column) for column in parts.T], axis=1).astype(np.int64)
    if len(sums) < 2:
        return Estimate(score)
    drawn = ratio(resample(sums, np.random.default_rng(0)))
    low, high = np.percentile(drawn, PERCENTILES)
    return Estimate(score, float(low), float(high))


def ratio(sums: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns numerator / denominator, (..., 2) -> (...); 1 where the denominator is 0."""
    part, whole = sums[..., 0], sums[..., 1]
    return np.divide(part, whole, out=np.ones(np.shape(whole)), where=whole > 0)
