"""Learning rate schedules for recipes: linear warm-up, then cosine or polynomial decay."""

from collections.abc import Callable
from typing import Any

import numpy as np
from fastai.callback.schedule import ParamScheduler, SchedCos, SchedLin, SchedPoly, combine_scheds
from fastcore.foundation import L
from numpy.typing import NDArray

from kit.errors import RecipeError

__all__ = ["fit_cosine", "fit_poly"]

WARMUP_DIV = 100  # of the first step's rate: gradients of a random decoder are large

Rates = NDArray[np.float64]  # of each parameter group
Schedule = Callable[[float], Rates]  # share of the steps that is done, 0 to 1 -> rates


def fit_cosine(
    learn: Any, epochs: int, lr: float | slice, warmup: float = 0.05, wd: float | None = None, cbs: Any = None
) -> None:
    """Trains with a linear warm-up of the learning rate, then cosine decay to 0.

    After the warm-up, at the fraction t of the remaining steps, the rate is lr x (1 + cos(pi t)) / 2.

    Args:
        learn: the Learner.
        epochs: of the fit.
        lr: the highest rate; a slice spreads it over the parameter groups, as in fastai's `fit_one_cycle`.
        warmup: 0 to 1, fraction of all steps in which the rate rises from `lr` / 100.
        wd: weight decay; by default the Learner's.
        cbs: more callbacks for this fit.

    Raises:
        RecipeError: a value is out of range.

    Source:
        Loshchilov & Hutter 2016, arXiv 1608.03983, without restarts; the warm-up is Goyal 2017, arXiv 1706.02677.
    """
    _fit(learn, epochs, lr, warmup, lambda rates: SchedCos(rates, 0 * rates), wd, cbs)


def fit_poly(
    learn: Any,
    epochs: int,
    lr: float | slice,
    warmup: float = 0.05,
    power: float = 0.9,
    wd: float | None = None,
    cbs: Any = None,
) -> None:
    """Trains with a linear warm-up of the learning rate, then polynomial decay to 0.

    After the warm-up, at the fraction t of the remaining steps, the rate is lr x (1 - t) ** `power`.

    Args:
        power: exponent; 1 is linear, less keeps the rate high for longer. The others are those of `fit_cosine`.

    Raises:
        RecipeError: a value is out of range.

    Source:
        Chen 2016, arXiv 1606.00915 (DeepLab); the warm-up is Goyal 2017, arXiv 1706.02677.
    """
    if not power > 0:
        raise RecipeError(f"fit_poly: power {power}, expected more than 0", "the paper's is 0.9")

    def falling(rates: Rates) -> Schedule:
        rising: Schedule = SchedPoly(0 * rates, rates, power)
        return lambda share: rising(1 - share)

    _fit(learn, epochs, lr, warmup, falling, wd, cbs)


def _fit(
    learn: Any,
    epochs: int,
    lr: float | slice,
    warmup: float,
    falling: Callable[[Rates], Schedule],
    wd: float | None,
    cbs: Any,
) -> None:
    if epochs < 1:
        raise RecipeError(f"{epochs} epochs, expected 1 or more", "look at fit() in the recipe")
    if not 0 <= warmup < 1:
        raise RecipeError(f"warmup {warmup}, expected a share of all steps, 0 to 1", "0.05 is a twentieth of them")
    if learn.opt is None:
        learn.create_opt()
    learn.opt.set_hyper("lr", lr)
    rates = np.array([hyper["lr"] for hyper in learn.opt.hypers], float)
    if not (rates > 0).all():
        raise RecipeError(f"lr {lr} is the rate {rates.min():g} for a group, expected more than 0", "1e-3 is common")
    rising = SchedLin(rates / WARMUP_DIV, rates)
    schedule = combine_scheds([warmup, 1 - warmup], [rising, falling(rates)])
    learn.fit(epochs, wd=wd, cbs=L(ParamScheduler({"lr": schedule})) + L(cbs))
