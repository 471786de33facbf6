"""What a solution costs before anything is trained: computing, hours on some cards, disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch

from kit.data.dataset import Fold
from kit.deploy.freeze.ensemble import view_codes
from kit.errors import KitError
from kit.models.losses import check_soft_targets
from kit.paths import Paths
from kit.pipeline.cost import SIDE_PX, cost_of
from kit.solutions.rounds import Training, load_solution
from kit.solutions.stages import Stage
from kit.training.fit import rebuild
from kit.training.length import count_epochs
from kit.training.recipe import Recipe, known_solutions, load_recipe

CHIP_PX = TILE_PX = 1024
BACKWARD = 3  # a training step computes about three times as much as a prediction
# TFLOP/s that networks of this kind reach in mixed precision, not measured. 2nd place reports 300 hours of V100s, in
# which `open_cities` would take 2.7 TFLOP/s.
CARDS = {"T4": 3.0, "V100": 8.0, "A100": 18.0, "H100": 35.0}
# bytes per parameter: weights; a checkpoint holds them with their average and the optimizer's two
WEIGHTS_B, CHECKPOINT_B = 4, 20
CHIP_MB, MASK_MB, OOF_MB = 2.5, 0.03, 0.3  # of 1024 x 1024 px: lossless image with mask, mask, probability


@dataclass(frozen=True)
class DataSize:
    """How much there is to train on and to predict."""

    tiles: int  # of the data set with the true labels
    folds: int  # how many it has
    added: Mapping[str, int]  # tiles of other data sets, by name
    chips: int  # of the test set


CHALLENGE = DataSize(16_246, 5, {}, 11_481)  # tier 1 and the test set
SAMPLE_CITY = DataSize(41, 2, {}, 12)


@dataclass(frozen=True)
class RecipeFigures:
    """What a recipe does, as far as it shows without data."""

    params_m: float  # parameters, millions
    gflop_512: float  # see `kit.pipeline.cost.Cost`
    epochs: int  # of its fits together
    fits: int  # how many these are
    crop_px: int  # side of a crop
    batch: int  # crops per step
    crops_per_tile: float  # of an epoch
    distils: bool  # whether it learns from a teacher
    refuses_soft: str  # why it cannot learn from soft labels; empty where it can


@dataclass(frozen=True)
class StageCost:
    """What a stage costs."""

    gflop: float  # multiplications and additions
    disk_gb: float  # of what it writes

    def hours(self, card: str) -> float:
        """Returns about how long it takes on a card of `CARDS`."""
        return self.gflop / 1000 / CARDS[card] / 3600


@cache
def figures_of(recipe: Recipe) -> RecipeFigures:
    """Returns the figures of a recipe, whose network is built without memory."""
    with torch.device("meta"):
        learn = rebuild(recipe)
    learn.opt = SimpleNamespace(hypers=[{"lr": 0.0}], set_hyper=lambda *_: None)
    epochs = count_epochs(recipe, learn)
    cost = cost_of(recipe)
    crop_px, batch = _crops(recipe)
    sampler = getattr(learn, "balanced_sampler", None)
    refuses = ""
    try:
        check_soft_targets(learn.loss_func)
        if hasattr(learn, "loss_switch"):
            check_soft_targets(learn.loss_switch.later)
    except KitError as cause:
        refuses = cause.message
    return RecipeFigures(
        cost.params_m, cost.gflop_512, sum(epochs), len(epochs), crop_px, batch,
        float(sampler.crops_per_tile) if sampler else 1.0, hasattr(learn, "distillation"), refuses,
    )  # fmt: skip


def _crops(recipe: Recipe) -> tuple[int, int]:
    """Returns side and number of the crops of a step; of a recipe that needs data to say so, usual ones."""
    row = {"image": "", "mask": "", "soft": "", "data": "", "tile": "", "area": "", "scene": "", "weight": 1.0}
    size = {"width_px": TILE_PX, "height_px": TILE_PX, "gsd_m": 0.075, "fold": 0}
    rows = pd.DataFrame([row | size])
    try:
        train: Any = recipe.data(Fold("all", rows, rows.iloc[:0], workers=0)).train
        image = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
        return train.dataset.transform(image=image, mask=image[..., 0])["image"].shape[0], train.bs
    except (KitError, AttributeError):
        return SIDE_PX, 8


def costs(stages: Sequence[Stage], recipes: Mapping[str, Recipe], size: DataSize) -> list[StageCost]:
    """Returns what each stage costs.

    Args:
        stages: of a solution.
        recipes: by the name that trainings give.
        size: of the data.
    """
    figures = {name: figures_of(recipe) for name, recipe in recipes.items()}
    return [_cost(stage, figures, size) for stage in stages]


def _cost(stage: Stage, figures: Mapping[str, RecipeFigures], size: DataSize) -> StageCost:
    if isinstance(stage.source, Training):
        return _of_training(stage, stage.source, figures, size)
    networks = [(figures[each.source.recipe], _networks(each, size)) for each in _trained(stage)]  # type: ignore[union-attr]
    params = sum(each.params_m * count for each, count in networks) / 1000  # billions: GB a byte
    if stage.kind == "export":
        return StageCost(0.0, params * WEIGHTS_B)
    if stage.kind == "score":
        return StageCost(0.0, 0.0)
    forward = sum(each.gflop_512 * count for each, count in networks) * (CHIP_PX / SIDE_PX) ** 2 * _views(stage)
    return StageCost(size.chips * forward, size.chips * (CHIP_MB if stage.kind == "label" else MASK_MB) / 1000)


def _of_training(stage: Stage, training: Training, figures: Mapping[str, RecipeFigures], size: DataSize) -> StageCost:
    own, networks = figures[training.recipe], _networks(stage, size)
    labelled = sum(size.chips for each in stage.inputs if each.kind == "label") + sum(size.added.values())
    held_out = 0.0 if "all" in training.folds else size.tiles / max(size.folds, 1)
    epochs = training.epochs or own.epochs
    crops = training.steps * own.batch or epochs * (size.tiles - held_out + labelled) * own.crops_per_tile
    step = own.gflop_512 * BACKWARD + sum(_forward(each, figures, size) for each in stage.inputs)
    whole = (TILE_PX / SIDE_PX) ** 2 * own.gflop_512
    gflop = crops * step * (own.crop_px / SIDE_PX) ** 2 + (epochs + 1) * held_out * whole
    disk_gb = own.params_m / 1000 * (WEIGHTS_B + CHECKPOINT_B) + held_out * OOF_MB / 1000
    return StageCost(networks * gflop, networks * disk_gb)


def _forward(stage: Stage, figures: Mapping[str, RecipeFigures], size: DataSize) -> float:
    """Returns GFLOP of a teacher for a crop of 512 px."""
    if stage.kind != "export":
        return 0.0
    networks = 0.0
    for each in stage.inputs:
        assert isinstance(each.source, Training)
        networks += figures[each.source.recipe].gflop_512 * _networks(each, size)
    return networks * len(view_codes(stage.settings["views"]))


def describe_solutions(paths: Paths) -> list[dict[str, object]]:
    """Returns a row per solution, as `kit.pipeline.cost.describe_recipes`: of the last round's networks together."""
    rows: list[dict[str, object]] = []
    for name in sorted(known_solutions(paths)):
        solution = load_solution(name, paths)
        loaded = [(load_recipe(each.recipe, paths), each) for each in solution.rounds[-1].trainings]
        numbers = [(figures_of(recipe), len(each.folds) or CHALLENGE.folds) for recipe, each in loaded]
        params_m = sum(each.params_m * count for each, count in numbers)
        gflop = sum(each.gflop_512 * count for each, count in numbers)
        networks = f"{sum(n for _, n in numbers)} networks, {len(solution.rounds)} rounds"
        row = {"recipe": name, "encoder": networks, "params_m": round(params_m, 2), "gflop_512": round(gflop, 2)}
        rows.append({**row, "purpose": solution.purpose})
    return rows


def _trained(stage: Stage) -> list[Stage]:
    """Returns the trainings whose networks a stage uses."""
    stages = [stage] if stage.kind == "export" else [each for each in stage.inputs if each.kind == "export"]
    return [each for export in stages for each in export.inputs]


def _views(stage: Stage) -> int:
    return max((len(view_codes(each.settings["views"])) for each in stage.inputs if each.kind == "export"), default=0)


def _networks(stage: Stage, size: DataSize) -> int:
    return len(stage.settings["folds"]) or size.folds
