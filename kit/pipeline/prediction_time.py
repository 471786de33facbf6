"""Measures the prediction time of a run's network for a chip on this machine, once."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kit.deploy.engine.memo import recall, remember
from kit.deploy.engine.tuning import tune
from kit.deploy.freeze.ensemble import freeze, portable
from kit.deploy.weights import torchscript
from kit.deploy.weights.card import Member
from kit.deploy.weights.load import Weights
from kit.pipeline.export import ExportRequest, draft_card
from kit.system.devices import pick_device, processor_name
from kit.training.fit import load_best, rebuild
from kit.training.recipe import Recipe

CHIP_PX = 1024  # side of a test chip
RUNS = 2  # the fastest counts


def seconds_per_view(recipe: Recipe, folder: Path, images: Sequence[NDArray[np.uint8]]) -> float:
    """Returns the prediction time of a network for one view of a chip of 1024 x 1024 px, s, tuned as in `kit submit`.

    It is measured once per recipe, device and number of threads.

    Args:
        recipe: of the run.
        folder: of the run.
        images: to tune on, uint8 (H, W, 3).
    """
    device = pick_device()
    machine = f"{processor_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    key = f"{recipe.name} {recipe.sha256} {machine}"
    if (known := recall("seconds", key, float)) is not None:
        return known
    network = rebuild(recipe).model
    load_best(network, folder)
    weights = tune(_frozen(network, f"{recipe.name} {recipe.sha256}", str(device)), lambda: images)
    seconds = _measured(weights)
    remember("seconds", key, seconds)
    return seconds


def _frozen(network: torch.nn.Module, name: str, device: str) -> Weights:
    """Returns a single network as weights of one view, on a device."""
    eager = portable(network)
    pad_multiple = int(eager.pad_multiple)  # type: ignore[arg-type]
    request = ExportRequest(name, name, "none", None, 1.0)
    card = draft_card([eager], [Member(name, 0, 0, "", None)], request, pad_multiple)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pt"
        torchscript.save(freeze([eager], "none", pad_multiple), path)
        return Weights(torchscript.load(path, device), card, path, f"time of {name}", device)


def _measured(weights: Weights) -> float:
    """Returns the seconds for a chip, the fastest of `RUNS` once warmed up."""
    chip = np.random.default_rng(0).integers(0, 256, (1, 3, CHIP_PX, CHIP_PX), dtype=np.uint8)
    batch, seconds = torch.from_numpy(chip).to(weights.device), []
    with torch.inference_mode():
        weights.module(batch)
        for _ in range(RUNS):
            start = time.perf_counter()
            weights.module(batch)[0, 0, 0, 0].item()  # waits for the GPU
            seconds.append(time.perf_counter() - start)
    return min(seconds)
