"""What averaging over views changes: some validation tiles are predicted again."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from kit.console import track
from kit.data.dataset import read_tile
from kit.data.masks import Counts, count, pool
from kit.deploy.freeze.ensemble import VIEWS, unview, view
from kit.models.targets import building_logits
from kit.paths import Paths
from kit.pipeline.export_runs import recipe_of
from kit.pipeline.runs import run_folder
from kit.system.devices import pick_device
from kit.system.energy import cpu_energy_j
from kit.training.fit import load_best, rebuild
from kit.training.run_files import read_settings


@dataclass(frozen=True)
class ViewGain:
    """How a number of views scored on some tiles."""

    views: str  # `none`, `flips` or `d4`
    passes: int  # predictions of each tile
    tiles: int
    jaccard: float
    seconds: float  # per tile, reading aside
    energy_j: float | None  # per tile, of the CPU packages; None where it cannot be read


def view_gains(tiles: pd.DataFrame, paths: Paths) -> list[ViewGain]:
    """Returns what each set of views scores, each tile predicted by the network that held it out.

    Args:
        tiles: rows of the index with `run`.
        paths: of the working root.

    Raises:
        RunError: a recipe is gone or has changed, or the weights do not fit it.
    """
    counts: dict[str, list[Counts]] = {name: [] for name in VIEWS}
    seconds, joules = dict.fromkeys(VIEWS, 0.0), dict.fromkeys(VIEWS, 0.0)
    measured = cpu_energy_j() is not None
    device = pick_device()
    networks = {str(run): _network(str(run), paths).to(device) for run in tiles["run"].unique()}
    for row in track(list(tiles.itertuples()), "predict views"):
        image, mask = read_tile(row.image, row.mask)
        pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].to(device)
        total = torch.zeros(1, 1, *mask.shape, device=device)
        start, energy = time.perf_counter(), cpu_energy_j()
        for code in VIEWS["d4"]:
            total += _probability(networks[str(row.run)], pixels, code)
            for name, codes in VIEWS.items():
                if code == codes[-1]:
                    predicted = (total[0, 0] / len(codes)).cpu().numpy() > 0.5
                    counts[name].append(count(predicted, mask))
                    seconds[name] += time.perf_counter() - start
                    joules[name] += (cpu_energy_j() or 0.0) - (energy or 0.0)
    n = len(tiles)
    return [
        ViewGain(
            name, len(codes), n, pool(counts[name]).jaccard, seconds[name] / n, joules[name] / n if measured else None
        )
        for name, codes in VIEWS.items()
    ]


def some_tiles(tiles: pd.DataFrame, number: int) -> pd.DataFrame:
    """Returns tiles, with buildings where there are such, drawn at random, the same ones in each call."""
    built = tiles[tiles["building_fraction"] > 0]
    built = built if len(built) else tiles
    return built.sample(min(number, len(built)), random_state=np.random.default_rng(0))


def _network(run: str, paths: Paths) -> nn.Module:
    folder = run_folder(run, paths)
    model: nn.Module = rebuild(recipe_of(run, read_settings(folder, ("recipe",)), paths, None)).model
    load_best(model, folder)
    return model.eval()


def _probability(network: nn.Module, pixels: torch.Tensor, code: int) -> torch.Tensor:
    with torch.inference_mode():
        return unview(building_logits(network(view(pixels, code)).float()).sigmoid(), code)


def energy_line(gains: Sequence[ViewGain]) -> str:
    """Returns in words what energy was measured."""
    if not gains or gains[0].energy_j is None:
        return "Energy: this machine's counters (RAPL, /sys/class/powercap) are missing or not readable."
    return "Energy is that of the CPU packages (RAPL) while a tile was predicted, other programs included."
