"""The rate that a recipe might train with: found by a short training in which it rises, and drawn."""

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
WARM_SHARE, LAST_STEPS = 0.1, 5  # what fastai leaves out: the smoothed loss has to settle, and in the end it explodes
MIN_STEPS = 10  # between the two, for a suggestion to mean anything


@dataclass(frozen=True)
class SuggestedRates:
    """Rates that a recipe might train with."""

    rates: dict[str, float]  # suggested, by the name of what suggests them
    picture: Path  # of the loss over the rate


class Advance(Callback):
    """Moves the bar with each step."""

    order = 55  # after the Recorder, whose loss it shows; before LRFinder may end the fit

    def __init__(self, bar: Meter) -> None:
        self.bar = bar

    def after_batch(self) -> None:
        """Moves it."""
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
    """Trains a recipe's network while the rate rises from 1e-7 to 10, draws the loss, and suggests rates.

    All parameter groups have the same rate, nothing is frozen, and the loss is the recipe's first; a teacher is left
    out. fastai's own rules suggest: `valley` is a way into the longest descent, `steep` where it is steepest.

    Args:
        name: of the recipe, or its path.
        paths: of the working root.
        data: name of the data set; the only one by default.
        fold: held out.
        device: empty for the best there is.
        source: where the encoder's weights come from; pretrained by default.
        steps: of the training; it ends before where the loss is four times its best.
        added: data sets that train beside it, as in `kit run`.

    Raises:
        RecipeError: the loss is not finite, or explodes at once.
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
        learn.balanced_sampler.before_fit()  # fastai turns steps into epochs, and asks the loader how long one is
    _rise(recipe, learn, steps)
    rates, losses = _that_count(recipe, learn.recorder, steps)
    suggested = {kind: float(suggest(rates, losses, steps)[0]) for kind, suggest in SUGGESTIONS.items()}
    picture = paths.rate_curve(recipe.name)
    draw_rates(rates.tolist(), losses.tolist(), suggested, picture)
    return SuggestedRates(suggested, picture)


def _rise(recipe: Recipe, learn: Any, steps: int) -> None:
    """Trains while the rate rises; the recorder knows rates and losses afterwards."""
    try:
        with TemporaryDirectory() as folder, meter(f"lr-find {recipe.name}", steps) as bar:
            learn.path, learn.model_dir = Path(folder), "before"  # LRFinder keeps the weights there
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
            f"kit check {recipe.name} tells whether it is finite at all; with more --steps the rate rises more slowly",
        )
    return rates[:finite], losses[:finite]
