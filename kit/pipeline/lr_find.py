"""Finds a learning rate by a short training with a rising rate, and plots the loss (`kit lr-find`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import steep, valley
from torch import Tensor

from kit.console import Meter, meter, say
from kit.data.added import AddedSet
from kit.data.dataset import split_fold
from kit.data.index import read_index
from kit.data.joined_sets import join_sets
from kit.errors import KitError, RecipeError
from kit.models.pretrained import Source, weights_used
from kit.paths import Paths
from kit.system.devices import pick_device
from kit.training.callbacks import LossSwitch
from kit.training.curves import draw_rates
from kit.training.distillation import Distillation
from kit.training.fit import Setup, build
from kit.training.recipe import Recipe, load_recipe, strict_augmentation

SUGGESTIONS = {"valley": valley, "steep": steep}
WARM_SHARE, LAST_STEPS = 0.1, 5  # steps that fastai ignores: while the smoothed loss settles, and when it explodes
MIN_STEPS = 10  # in between, for a useful suggestion


@dataclass(frozen=True)
class SuggestedRates:
    """Suggested learning rates."""

    rates: dict[str, float]  # by name of the rule
    picture: Path  # of the loss over the learning rate


class Advance(Callback):
    """Advances the progress bar."""

    order = 55  # after the Recorder, whose loss is shown; before LRFinder, which may end the fit

    def __init__(self, bar: Meter) -> None:
        self.bar = bar

    def after_batch(self) -> None:
        """Advances the bar."""
        self.bar.advance(1, f"rate {self.recorder.lrs[-1]:.1e} loss {self.recorder.smooth_loss.value.item():.4f}")


def lr_find(
    name: str,
    paths: Paths,
    data: str = "",
    fold: int = 0,
    device: str = "",
    source: Source | None = None,
    steps: int = 100,
    added: Sequence[AddedSet] = (),
) -> SuggestedRates:
    """Trains a recipe's network while the learning rate rises from 1e-7 to 10, plots the loss, and suggests rates.

    All parameter groups have the same rate, nothing is frozen, and the recipe's first loss is used, without a teacher.
    The rules are fastai's: `valley` is within the longest descent, `steep` is the point of steepest descent.

    Args:
        name: of the recipe, or its path.
        paths: of the working root.
        data: name of the data set; the only one by default.
        fold: held out.
        device: empty for the best there is.
        source: where the encoder's weights come from; pretrained by default.
        steps: of the training; it ends early if the loss exceeds four times its minimum.
        added: data sets that train beside it, as in `kit run`.

    Raises:
        RecipeError: the loss is not finite, or explodes too early.
        KitError: see the stages.

    Source:
        Smith 2015, arXiv 1506.01186; `fastai.callback.schedule.LRFinder`.
    """
    recipe = load_recipe(name, paths)
    data_name, index = read_index(paths, data)
    index, _ = join_sets(paths, data_name, index, added)
    split = split_fold(index, fold, device=pick_device(device))
    with strict_augmentation():
        learn = build(recipe, split, Setup(source=source or Source()))
    say(f"{recipe.name} on {data_name} without fold {fold}, encoder weights from {weights_used()}")
    for kind in (LossSwitch, Distillation):
        learn.remove_cb(kind)
    if hasattr(learn, "balanced_sampler"):
        learn.balanced_sampler.before_fit()  # sets the length of an epoch, which fastai uses to convert steps
    _rise(recipe, learn, steps)
    rates, losses = _that_count(recipe, learn.recorder, steps)
    suggested = {kind: float(suggest(rates, losses, steps)[0]) for kind, suggest in SUGGESTIONS.items()}
    picture = paths.rate_curve(recipe.name)
    draw_rates(rates.tolist(), losses.tolist(), suggested, picture)
    return SuggestedRates(suggested, picture)


def _rise(recipe: Recipe, learn: Any, steps: int) -> None:
    """Trains while the rate rises; the recorder then has rates and losses."""
    try:
        with TemporaryDirectory() as folder, meter(f"lr-find {recipe.name}", steps) as bar:
            learn.path, learn.model_dir = Path(folder), "before"  # where LRFinder saves the weights
            learn.add_cb(Advance(bar))
            learn.lr_find(num_it=steps, show_plot=False, suggest_funcs=None)
    except KitError:
        raise
    except Exception as cause:
        raise RecipeError(
            f"{recipe.path.name}: training failed: {type(cause).__name__}: {cause}", "--debug shows the traceback"
        ) from cause
    finally:
        learn.precision.leave()


def _that_count(recipe: Recipe, recorder: Any, steps: int) -> tuple[Tensor, Tensor]:
    """Returns rates and smoothed losses, float32 (n,), without the first and the last steps."""
    first = int(steps * WARM_SHARE)
    rates, losses = (torch.tensor(list(map(float, v[first:-LAST_STEPS]))) for v in (recorder.lrs, recorder.losses))
    finite = int(losses.isfinite().long().cumprod(dim=0).sum())
    if finite < MIN_STEPS:
        raise RecipeError(
            f"{recipe.name}: the loss explodes, or is not finite, after {first + finite} of {steps} steps",
            f"run kit check {recipe.name}; with more --steps, the rate rises more slowly",
        )
    return rates[:finite], losses[:finite]
