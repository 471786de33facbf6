import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD, Adam, OptimWrapper
from torch import nn

from kit.errors import RecipeError
from kit.models.losses import CrossEntropy
from kit.training.schedules import fit_cosine, fit_poly

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, EPOCHS = 5, 4
LOW, HIGH = 1e-4, 1e-2
OPTIMIZERS = {
    "fastai's SGD": SGD,
    "fastai's Adam": Adam,
    "torch's SGD": partial(OptimWrapper, opt=torch.optim.SGD),
    "torch's AdamW": partial(OptimWrapper, opt=torch.optim.AdamW),
    "torch's fused AdamW": partial(OptimWrapper, opt=torch.optim.AdamW, fused=True),
}


class Watch(Callback):
    """Keeps the rates and decays that each step was made with."""

    def before_fit(self) -> None:
        self.rates: list[list[float]] = []

    def before_step(self) -> None:
        self.rates.append([hyper["lr"] for hyper in self.opt.hypers])
        self.decays = [hyper["wd"] for hyper in self.opt.hypers]


def learner(optimizer: Any = SGD) -> Any:
    pairs = [(torch.rand(3, 8, 8), torch.ones(8, 8, dtype=torch.int64))] * (2 * STEPS)
    loaders = DataLoaders(DataLoader(pairs, bs=2), DataLoader(pairs, bs=2), device=torch.device("cpu"))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    learn = Learner(
        loaders, model, CrossEntropy(), opt_func=optimizer, cbs=Watch(),
        splitter=lambda net: [list(net[0].parameters()), list(net[1].parameters())],
    )  # fmt: skip
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = lambda _: None
    return learn


def cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


def polynomial(share: float) -> float:
    return (1 - share) ** 0.9


def expected(falling: Callable[[float], float], warmup: float, highest: list[float]) -> Any:
    """The rates of all steps, by the papers' formulas."""
    factors = []
    for step in range(STEPS * EPOCHS):
        share = step / (STEPS * EPOCHS)
        if share < warmup:
            factors.append(0.01 + 0.99 * share / warmup)
        else:
            factors.append(falling((share - warmup) / (1 - warmup)))
    return np.outer(factors, highest)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("warmup", [0, 0.05, 0.33])
@pytest.mark.parametrize(("fit", "falling"), [(fit_cosine, cosine), (fit_poly, polynomial)])
def test_each_step_has_the_papers_rate(fit: Any, falling: Callable[[float], float], warmup: float, optimizer: str):
    learn = learner(OPTIMIZERS[optimizer])
    fit(learn, EPOCHS, slice(LOW, HIGH), warmup=warmup)
    rates = np.array(learn.watch.rates)
    np.testing.assert_allclose(rates, expected(falling, warmup, [LOW, HIGH]), rtol=0, atol=1e-6 * HIGH)
    assert rates[0, 1] == pytest.approx(HIGH / 100 if warmup else HIGH)
    assert 0 < rates[-1, 1] < 0.1 * HIGH


@pytest.mark.parametrize("fit", [fit_cosine, fit_poly])
def test_one_rate_a_half_open_slice_and_a_decay(fit: Any):
    learn = learner()
    fit(learn, 1, HIGH, warmup=0, wd=0.3)
    assert learn.watch.rates[0] == pytest.approx([HIGH, HIGH])
    assert learn.watch.decays == [0.3, 0.3]
    fit(learn, 1, slice(HIGH), warmup=0)
    assert learn.watch.rates[0] == pytest.approx([HIGH / 10, HIGH])


def test_the_power_one_falls_in_a_straight_line():
    learn = learner()
    fit_poly(learn, 2, HIGH, warmup=0, power=1.0)
    np.testing.assert_allclose(np.diff(np.array(learn.watch.rates)[:, 0]), -HIGH / (2 * STEPS), rtol=1e-4)


@pytest.mark.parametrize("fit", [fit_cosine, fit_poly])
def test_callbacks_of_the_fit_are_taken_and_left(fit: Any):
    class Count(Callback):
        begun = 0

        def before_epoch(self) -> None:
            Count.begun += 1

    learn = learner()
    for cbs in (Count(), [Count()]):
        fit(learn, 2, HIGH, cbs=cbs)
    assert Count.begun == 4
    assert not hasattr(learn, "count")


@pytest.mark.parametrize("fit", [fit_cosine, fit_poly])
@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"warmup": 1.0}, "warmup 1.0, expected a share of all steps"),
        ({"warmup": -0.1}, "warmup -0.1, expected"),
        ({"warmup": 5}, "warmup 5, expected"),
        ({"epochs": 0}, "0 epochs, expected 1 or more"),
        ({"lr": 0.0}, "lr 0.0 is the rate 0 for a group"),
        ({"lr": slice(1e-4, -1e-3)}, "expected more than 0"),
        ({"lr": float("nan")}, "lr nan is the rate nan"),
    ],
)
def test_what_cannot_be_is_told(fit: Any, values: dict[str, Any], error: str):
    learn = learner()
    with pytest.raises(RecipeError, match=error):
        fit(learn, **{"epochs": 1, "lr": HIGH, **values})
    assert not hasattr(learn.watch, "rates")


@pytest.mark.parametrize("power", [0, -1.0, float("nan")])
def test_a_power_that_cannot_be_is_told(power: float):
    with pytest.raises(RecipeError, match=r"power .*, expected more than 0"):
        fit_poly(learner(), 1, HIGH, power=power)
