"""Tests a recipe: builds it, trains a few steps, exports it, estimates cost, draws crops (`kit check`)."""

import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback, CancelFitException, CancelValidException

from kit.console import say
from kit.data.added import AddedSet
from kit.data.dataset import Fold, split_fold
from kit.data.folds.assign import fold_numbers
from kit.data.index import read_index
from kit.data.joined_sets import join_sets
from kit.data.masks import IGNORE, SOFT_STEPS
from kit.data.tiles.options import PrepareOptions, Style
from kit.data.tiles.prepare import prepare
from kit.deploy.proof.images import SMALL_CASES
from kit.deploy.weights.card import Card, Member
from kit.errors import RecipeError
from kit.models.pretrained import Source
from kit.paths import Paths
from kit.pipeline.cost import SIDE_PX, Cost, cost_of
from kit.pipeline.export import ExportRequest, export_ensemble
from kit.sample.sample import draw_sample
from kit.system.devices import pick_device
from kit.training.fit import Setup, build, rebuild, train
from kit.training.length import count_epochs
from kit.training.overlays import crop_sheet, save_png
from kit.training.recipe import Recipe, load_recipe, strict_augmentation
from kit.training.tiny import shrink_batch

STEPS, ENOUGH_S = 4, 30.0  # steps at most, and seconds after which no more are timed; the first is a warm-up
SHEET_CROPS = 12
DRAWN_SHRINK = 2  # small scenes are enough
TIER_1_TILES, TIER_1_FOLDS = 16_246, 5  # the challenge's, at 0.1 m


@dataclass(frozen=True)
class RecipeCheck:
    """The report of `kit check`."""

    rows: list[tuple[str, str]]  # property, value
    sheet: Path  # picture of augmented crops


class Trial(Callback):
    """Lets a recipe's own fit run for a few steps, and notes what they say.

    Args:
        tiny: on tiny crops, see `kit.training.tiny`; one step.
    """

    order = -40  # before all others, which see the cropped batch
    run_valid = False

    def __init__(self, tiny: bool) -> None:
        self.tiny = tiny
        self.seconds: list[float] = []

    def before_validate(self) -> None:
        """Skips validation."""
        raise CancelValidException

    def before_batch(self) -> None:
        """Starts the time; with `tiny`, selects the crops with most imagery, and their middle."""
        if self.tiny:
            shrink_batch(self.learn)
        self.image, self.target = self.x, self.y
        self.start = time.perf_counter()

    def after_pred(self) -> None:
        """Records the logits; computes the second loss of a `LossSwitch`, so that it fails early."""
        self.outputs = self.pred if isinstance(self.pred, tuple) else (self.pred,)
        if hasattr(self.learn, "loss_switch") and not self.seconds:
            self.learn.loss_switch.later(self.pred, self.y)

    def after_backward(self) -> None:
        """Records parameters without a gradient."""
        self.unreached = [name for name, p in self.model.named_parameters() if p.requires_grad and p.grad is None]

    def after_batch(self) -> None:
        """Records the time of the step; stops the fit after enough steps."""
        self.last_loss = self.loss.item()  # waits for the device
        self.seconds.append(time.perf_counter() - self.start)
        self.steps_per_epoch = len(self.dls.train)
        slow = len(self.seconds) > 1 and sum(self.seconds) > ENOUGH_S
        if self.tiny or slow or len(self.seconds) >= STEPS:
            raise CancelFitException


def check(
    name: str,
    paths: Paths,
    data: str = "",
    device: str = "",
    compiled: bool = False,
    tiny: bool = False,
    added: Sequence[AddedSet] = (),
) -> RecipeCheck:
    """Builds a recipe with random encoder weights, trains a few steps, exports it, and estimates its cost.

    Args:
        name: of the recipe, or its path.
        paths: of the working root.
        data: name of the data set; by default the only one, or drawn tiles if there is none.
        device: empty: a GPU if there is one.
        compiled: use torch.compile.
        tiny: use tiny crops; takes seconds, gives no estimates.
        added: data sets that train beside it, as in `kit run`.

    Raises:
        RecipeError: an augmentation has an unknown argument, the loss is not finite, or the recipe fails.
        KitError: see the stages.
    """
    recipe = load_recipe(name, paths)
    with _data(paths, data, added) as (data_name, index), strict_augmentation():
        number = min(fold_numbers(index), default="all")  # pseudo-labels belong to no fold
        fold = split_fold(index, number, device=pick_device(device), workers=0)
        return _tried(recipe, fold, data_name, paths, compiled, tiny)


@contextmanager
def _data(paths: Paths, name: str, added: Sequence[AddedSet]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields a data set's name, and its index joined with those of the added ones.

    Where there is none, some tiles are drawn, listed over and over until they are as many as the challenge's, and
    removed in the end: estimates are then for the challenge.
    """
    if name or added or paths.data_names():
        known, index = read_index(paths, name)
        yield known, join_sets(paths, known, index, added)[0]
        return
    say("no data set here: drawing some tiles")
    with TemporaryDirectory() as folder:
        root = Path(folder)
        draw_sample(root / "sample", shrink=DRAWN_SHRINK)
        prepare(root / "sample" / "train_tier_1", Paths(root), PrepareOptions(style=Style(grid="native", layers=True)))
        _, index = read_index(Paths(root))
        places = np.arange(TIER_1_TILES)
        yield "the challenge's tier 1", index.iloc[places % len(index)].assign(fold=places % TIER_1_FOLDS)


def _tried(recipe: Recipe, fold: Fold, data: str, paths: Paths, compiled: bool, tiny: bool) -> RecipeCheck:
    learn = build(recipe, fold, Setup(source=Source(pretrained=False), compiled=compiled))
    if hasattr(learn, "distillation"):
        learn.distillation.teacher = _undecided
    trial = Trial(tiny)
    epochs = sum(count_epochs(recipe, learn))
    learn.add_cb(trial)
    sheet = paths.check_sheet(recipe.name)
    _draw_sheet(learn.dls.train.dataset, sheet)
    if fold.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(fold.device)
    train(recipe, learn)
    if not math.isfinite(trial.last_loss):
        raise RecipeError(
            f"{recipe.name}: the loss is {trial.last_loss} after {len(trial.seconds)} steps",
            "lower the rate in fit(), and look at the loss",
        )
    memory_gb = _peak_memory_gb(fold.device)
    rows = [
        *_network_rows(learn, trial, cost_of(recipe)),
        ("device", f"{fold.device}, {learn.precision.name_of_precision}, {torch.get_num_threads()} thread(s)"),
    ]
    if not tiny:
        rows += [("peak memory", f"{memory_gb:.1f} GB"), *_time_rows(learn, trial, epochs, fold, data)]
    rows.append(("export", _export_row(recipe, learn, fold)))
    return RecipeCheck(rows, sheet)


def _undecided(pixels: torch.Tensor) -> torch.Tensor:
    """A stand-in for a teacher: one member with probability 0.5 everywhere."""
    return torch.full_like(pixels[:, :1], 0.5, dtype=torch.float32)


def _draw_sheet(dataset: Any, path: Path) -> None:
    """Draws the first crops of an epoch."""
    crops = []
    for place in range(SHEET_CROPS):
        image, mask = dataset[(place, place % len(dataset))]
        if getattr(dataset, "soft", False):  # probability x 254: drawn at a threshold of 0.5
            mask = torch.where(mask == IGNORE, mask, mask.gt(SOFT_STEPS / 2).to(mask.dtype))
        crops.append((np.ascontiguousarray(image.permute(1, 2, 0)), mask.numpy()))
    save_png(crop_sheet(crops), path)


def _network_rows(learn: Any, trial: Trial, cost: Cost) -> list[tuple[str, str]]:
    def described(tensor: torch.Tensor) -> str:
        return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"

    parameters = list(learn.model.parameters())
    unreached = f", but {len(trial.unreached)} get no gradient, first {trial.unreached[0]}" if trial.unreached else ""
    return [
        ("encoder", f"{cost.encoder}, maps at 1/{', 1/'.join(map(str, learn.model.strides))}"),
        ("image", described(trial.image)),
        ("target", described(trial.target)),
        ("logits", " and ".join(map(described, trial.outputs))),
        ("loss", f"{trial.last_loss:.4f} after {len(trial.seconds)} steps from random weights"),
        ("parameters", f"{cost.params_m} million in {len(parameters)} tensors{unreached}"),
        ("cost", f"{cost.gflop_512} GFLOP for an image of {SIDE_PX} x {SIDE_PX} px"),
    ]


def _time_rows(learn: Any, trial: Trial, epochs: int, fold: Fold, data: str) -> list[tuple[str, str]]:
    """Returns the time of a step, an epoch and a fold on this machine, without loading data."""
    step_s = median(trial.seconds[1:])
    tile = learn.dls.train.dataset.read(0)[0]
    model, precision = learn.model.eval(), learn.precision
    batch = torch.from_numpy(tile.transpose(2, 0, 1).copy())[None].to(fold.device)
    tile_s = []
    for _ in range(2):
        start = time.perf_counter()
        with torch.inference_mode(), precision.context():
            float(model(batch.contiguous(memory_format=torch.channels_last)).sum())
        tile_s.append(time.perf_counter() - start)
    steps, held_out = trial.steps_per_epoch, len(fold.valid)
    epoch_s = steps * step_s + held_out * min(tile_s)
    return [
        ("step", f"{step_s:.2f} s, {step_s / len(trial.image):.3f} s a crop"),
        ("validation", f"{min(tile_s):.2f} s a tile of {tile.shape[1]} x {tile.shape[0]} px"),
        ("epoch", f"{in_words(epoch_s)}: {steps:,} steps, {held_out:,} validation tiles of {data}"),
        ("fold", f"{in_words(epochs * epoch_s)}: {epochs} epochs"),
    ]


def in_words(seconds: float) -> str:
    """Returns a duration in at most two units, for example `3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _peak_memory_gb(device: torch.device) -> float:
    """Returns the peak memory of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _export_row(recipe: Recipe, learn: Any, fold: Fold) -> str:
    """Exports the network; returns the file's size and its difference from the network."""
    model = rebuild(recipe).model
    model.load_state_dict({key: value.cpu() for key, value in learn.model.state_dict().items()})
    image = learn.dls.train.dataset.read(0)[0]
    side = 2 * model.pad_multiple
    record = Member(recipe.name, fold.number, fold.seed, "0" * 64, None)
    with TemporaryDirectory() as folder:
        gsd_m = float(fold.train["gsd_m"].median())
        tiles = [np.ascontiguousarray(image[:side, : side - 7])]
        request = ExportRequest("check", recipe.name, "none", None, gsd_m, tiles, SMALL_CASES)
        exported = export_ensemble(Path(folder), [model], [record], request)
        size_mb, card = exported.path.stat().st_size / 1e6, exported.card
    return f"{size_mb:.0f} MB of TorchScript, {_parity(card)}"


def _parity(card: Card) -> str:
    return f"at most {card.parity_max_abs:.0e} from the network, {card.parity_equal_masks:.2%} of mask pixels equal"
