from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD
from torch import nn

from kit.models.losses import CrossEntropy, Dice, Lovasz
from kit.training.callbacks import EMA, BalancedSampler, LossSwitch
from kit.training.precision import DTYPES, LossScale, Precision


def make_rows(sizes: dict[str, int]) -> pd.DataFrame:
    return pd.DataFrame(
        [(f"{s}{i}", s[0], s) for s, n in sizes.items() for i in range(n)], columns=["tile", "area", "scene"]
    )


def test_groups_are_drawn_equally_often():
    rows = make_rows({"a1": 100, "b1": 10, "b2": 2})
    keys = BalancedSampler().draw(rows, seed=0, epoch=0, n=9000)
    counts = rows.iloc[[row for _, row in keys]]["scene"].value_counts()
    # three groups, 9000 draws: 3000 each, standard deviation 45
    assert (counts - 3000).abs().max() < 4.5 * 45


def test_temperature_zero_draws_uniformly():
    rows = make_rows({"a1": 30, "b1": 10})
    np.testing.assert_allclose(BalancedSampler(temperature=0).weights(rows), 1 / 40)
    np.testing.assert_allclose(BalancedSampler(temperature=1).weights(rows)[0], 0.5 / 30)


def test_groups_may_be_areas():
    rows = make_rows({"a1": 4, "b1": 4, "b2": 4})
    weights = BalancedSampler(by=("area",)).weights(rows)
    assert weights[:4].sum() == pytest.approx(0.5)


def test_the_draws_of_a_group_are_proportional_to_the_weight_of_its_set():
    """Groups of the same name in two sets are two groups; an added set of many tiles is drawn no more for that."""
    base = make_rows({"a1": 4, "b1": 10}).assign(data="tier1", weight=1.0)
    added = make_rows({"a1": 300, "c1": 2}).assign(data="pseudo1", weight=0.5)
    other = make_rows({"d1": 30}).assign(data="tier2", weight=3.0)
    rows = pd.concat([base, added, other], ignore_index=True)
    shares = rows.assign(share=BalancedSampler().weights(rows)).groupby(["data", "scene"])["share"].sum()
    expected = {("tier1", "a1"): 1, ("tier1", "b1"): 1, ("pseudo1", "a1"): 0.5, ("pseudo1", "c1"): 0.5,
                ("tier2", "d1"): 3}  # fmt: skip
    for group, weight in expected.items():
        assert shares[group] == pytest.approx(weight / 6)
    keys = BalancedSampler().draw(rows, seed=0, epoch=0, n=6000)
    assert keys == BalancedSampler().draw(rows, seed=0, epoch=0, n=6000)
    drawn = rows.iloc[[row for _, row in keys]].groupby("data").size()
    # standard deviation at most 39
    for name, expected_draws in (("tier1", 2000), ("pseudo1", 1000), ("tier2", 3000)):
        assert abs(drawn[name] - expected_draws) < 4.5 * 39
    half = BalancedSampler(temperature=0.5).weights(rows)
    assert half[rows["scene"] == "d1"].sum() / half[:4].sum() == pytest.approx(3 * (30 / 4) ** 0.5)


def test_columns_that_only_one_set_has_make_groups_too():
    rows = pd.concat([make_rows({"a1": 2}).assign(city="x"), make_rows({"b1": 6})], ignore_index=True)
    weights = BalancedSampler(by=("city",)).weights(rows)
    assert weights[:2].sum() == pytest.approx(0.5)


def test_the_draw_depends_on_seed_and_epoch_alone():
    rows, sampler = make_rows({"a1": 9, "b1": 3}), BalancedSampler()
    assert sampler.draw(rows, 1, 2, 50) == sampler.draw(rows, 1, 2, 50)
    assert sampler.draw(rows, 1, 2, 50) != sampler.draw(rows, 1, 3, 50)
    assert sampler.draw(rows, 1, 2, 50) != sampler.draw(rows, 2, 2, 50)
    assert [place for place, _ in sampler.draw(rows, 1, 2, 50)] == list(range(50))


class LossNames(Callback):
    order = 90

    def before_fit(self):
        self.names = []

    def after_loss(self):
        self.names.append((self.epoch, self.training, type(self.loss_func).__name__))


def make_learner(*cbs: Callback) -> Any:
    rows = [(torch.zeros(3, 8, 8), torch.ones(8, 8, dtype=torch.int64))] * 2
    loaders = DataLoaders(DataLoader(rows, bs=2), DataLoader(rows, bs=2), device=torch.device("cpu"))
    learn = Learner(loaders, nn.Conv2d(3, 2, 1), CrossEntropy(), opt_func=SGD, cbs=[LossNames(), *cbs])
    learn.logger = lambda _: None
    return learn


def names(first: str, second: str, since: int, epochs: range) -> list[tuple[int, bool, str]]:
    return [(n, training, second if n >= since else first) for n in epochs for training in (True, False)]


def test_the_loss_switches_at_an_epoch_and_back_for_a_new_fit():
    learn = make_learner(LossSwitch(2))
    for _ in range(2):
        learn.fit(4)
        assert learn.loss_names.names == names("CrossEntropy", "Lovasz", 2, range(4))
    learn.fit(1)
    assert learn.loss_names.names == names("CrossEntropy", "Lovasz", 2, range(1))


def test_a_new_first_loss_is_kept():
    learn = make_learner(LossSwitch(1, Dice()))
    learn.fit(2)
    learn.loss_func = Lovasz()
    for _ in range(2):
        learn.fit(2)
        assert learn.loss_names.names == names("Lovasz", "Dice", 1, range(2))


def test_a_run_that_goes_on_has_the_switched_loss():
    learn = make_learner(LossSwitch(2, Dice()))
    learn.fit(4, start_epoch=3)
    assert learn.loss_names.names == names("CrossEntropy", "Dice", 2, range(3, 4))


def test_a_switch_to_the_same_loss_changes_nothing():
    learn = make_learner()
    learn.add_cb(LossSwitch(0, learn.loss_func))
    learn.fit(2)
    assert learn.loss_names.names == names("CrossEntropy", "CrossEntropy", 0, range(2))


def test_the_seed_switches_to_lovasz_at_epoch_25():
    switch = LossSwitch()
    assert (switch.since, type(switch.later)) == (25, Lovasz)


def fitted_in(precision: str, model: nn.Module, loss: nn.Module) -> Learner:
    torch.manual_seed(0)
    pairs = [(torch.rand(3, 8, 8), torch.ones(8, 8, dtype=torch.int64)) for _ in range(4)]
    loaders = DataLoaders(DataLoader(pairs, bs=2), DataLoader(pairs[:0], bs=2), device=torch.device("cpu"))
    learn = Learner(loaders, model, loss, opt_func=SGD, cbs=[Precision(precision), LossScale()], lr=0.1)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = lambda _: None
    learn.fit(1)
    return learn


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_is_the_same_in_any_precision(precision: str):
    torch.manual_seed(1)
    model = nn.Conv2d(3, 2, 3, padding=1)
    seen = []
    model.register_forward_hook(
        lambda _, inputs, out: seen.append((out.dtype, inputs[0].is_contiguous(memory_format=torch.channels_last)))
    )
    fitted_in(precision, model, CrossEntropy())
    assert set(seen) == {(DTYPES[precision], True)}
    torch.manual_seed(1)
    expected = fitted_in("fp32", nn.Conv2d(3, 2, 3, padding=1), CrossEntropy()).model
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(model.weight, expected.weight, atol=2e-3, rtol=0)


def test_a_step_whose_gradients_overflow_is_left_out():
    class Steep(nn.Module):
        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return logits.float().mean() * 1e30  # its gradient is beyond float16

    torch.manual_seed(1)
    model = nn.Conv2d(3, 2, 3, padding=1)
    before = model.weight.detach().clone()
    learn = fitted_in("fp16", model, Steep())
    torch.testing.assert_close(model.weight, before, atol=0, rtol=0)
    assert learn.loss_scale.scaler.get_scale() == 2.0**16 / 4  # halved for each of two steps


def test_the_average_of_weights_is_what_is_validated_and_kept():
    torch.manual_seed(1)
    seen = []

    class Spy(Callback):
        order = 75

        def after_step(self):
            seen.append(floats_of(self.model))

        def before_validate(self):
            self.validated = floats_of(self.model)

    def floats_of(model: nn.Module) -> dict[str, torch.Tensor]:
        return {name: v.clone() for name, v in model.state_dict().items() if v.is_floating_point()}

    pairs = [(torch.rand(3, 8, 8), torch.ones(8, 8, dtype=torch.int64)) for _ in range(6)]
    loaders = DataLoaders(DataLoader(pairs, bs=2), DataLoader(pairs, bs=2), device=torch.device("cpu"))
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    learn = Learner(loaders, model, CrossEntropy(), opt_func=SGD, cbs=[EMA(0.5), Spy()], lr=0.5)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = lambda _: None
    average = floats_of(model)
    learn.fit(1)
    for step, current in enumerate(seen):
        decay = min(0.5, (1 + step) / (10 + step))
        average = {name: decay * values + (1 - decay) * current[name] for name, values in average.items()}
    assert {"0.weight", "1.running_mean", "1.running_var"} <= set(average)  # statistics of batch norm as well
    torch.testing.assert_close(learn.spy.validated, average)
    torch.testing.assert_close(floats_of(model), average)
