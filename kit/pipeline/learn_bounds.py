"""When a vote may end, learnt on tiles that the network which looks first had not seen."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from kit.console import track
from kit.data.dataset import read_tile
from kit.data.index import read_index
from kit.data.masks import BUILDING, IGNORE
from kit.deploy.adaptive.calibrate import PassSums, learn, look, seconds_a_pass
from kit.deploy.adaptive.vote import stages
from kit.deploy.freeze.ensemble import VIEWS, Core, portable
from kit.deploy.weights.card import Bounds
from kit.errors import RunError
from kit.paths import Paths
from kit.training.result import read_settings

TILES = 24  # evenly spread, of all networks that look first; every one is seen by all networks in all views


def learn_bounds(models: Sequence[nn.Module], folders: Sequence[Path], views: str, pad: int, paths: Paths) -> Bounds:
    """Returns when the vote of trained networks may end.

    The tiles are those that the cheapest network held out, and where others are of its recipe, theirs, too: each looks
    first on its own tiles. Those that look later may have trained on these, which flatters the full vote: the loss that
    is measured is rather too large than too small.

    Args:
        models: the networks.
        folders: of their runs, in the same order.
        views: `none`, `flips` or `d4`.
        pad: height and width are padded to a multiple of this, px.
        paths: of the working root, with the data sets that they trained on.

    Raises:
        DataError: the data set is gone.
        RunError: the cheapest networks held nothing out, or their tiles were cut again.
    """
    networks = [Core(portable(model)).eval() for model in models]
    with torch.inference_mode():
        recipes = [read_settings(folder)["recipe"] for folder in folders]
        seconds = best_of_each([seconds_a_pass(network, pad) for network in networks], recipes)
        order = np.argsort(seconds, kind="stable").tolist()
        alike = [member for member in order if recipes[member] == recipes[order[0]]]
        rows = [(first, row) for first in alike for row in _held_out(folders[first], TILES // len(alike), paths)]
        tiles, buildings = [], []
        for first, row in track(rows, "learn when to end"):
            image, mask = read_tile(row["image"], row["mask"])
            steps = stages([first, *(other for other in order if other != first)], VIEWS[views])
            tiles.append(PassSums(look(networks, steps, image, pad), mask != IGNORE))
            buildings.append(mask == BUILDING)
    return learn(tiles, buildings, order, VIEWS[views], seconds, pad)


def best_of_each(seconds: Sequence[float], recipes: Sequence[str]) -> list[float]:
    """Returns for each network the shortest time among those of its recipe: which one looks first is not by chance."""
    timed = list(zip(seconds, recipes, strict=True))
    return [min(took for took, other in timed if other == own) for own in recipes]


def _held_out(folder: Path, count: int, paths: Paths) -> list[pd.Series]:
    """Returns up to `count` rows of the index, at least one: tiles that a run held out, evenly spread."""
    counted = folder / "oof.csv"
    if not counted.is_file():
        raise RunError(f"{folder} held nothing out", "--adaptive needs a fold: kit run RECIPE --fold 0")
    _, index = read_index(paths, str(read_settings(folder)["data"]))
    names = pd.read_csv(counted, dtype={"tile": str}, keep_default_na=False)["tile"]
    rows = index[index["tile"].isin(names)].sort_values("tile")
    if rows.empty:
        raise RunError(f"the tiles that {folder} held out were cut again since", "train it again: --restart")
    places = np.unique(np.linspace(0, len(rows) - 1, max(1, count)).round().astype(int))
    return [rows.iloc[place] for place in places]
