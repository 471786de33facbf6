"""fastai callbacks that a recipe chooses: the balanced sampler, averages of the weights, a loss that switches."""

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain, count, islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn
from torch.utils.data import DataLoader

from kit.data.dataset import Key
from kit.errors import RecipeError
from kit.models.losses import Lovasz
from kit.system.ranks import as_first
from kit.training.draws import draw_length

__all__ = ["EMA", "SWA", "BalancedSampler", "LossSwitch"]


class BalancedSampler(Callback):
    """Draws tiles with replacement so that each group is seen equally often.

    The weight of a tile is 1 / (tiles of its group) to the power `temperature`, times the weight of its data set: 1,
    unless `kit run --add NAME=WEIGHT` says otherwise. With the default temperature, the expected draws of a group are
    proportional to the weight of its set, however many tiles and groups the sets have. The draw depends on (seed,
    epoch) alone; it is one draw over all ranks, which `Deal` then deals out.

    Args:
        by: index columns whose values make a group, within each data set; the seed's `area_scene` by default.
        temperature: 1 balances fully, 0 draws uniformly.
        crops_per_tile: an epoch draws so many times the number of tiles, over all ranks. Not with `--minutes`.
    """

    order = -20

    def __init__(
        self, by: tuple[str, ...] = ("area", "scene"), temperature: float = 1.0, crops_per_tile: float = 1.0
    ) -> None:
        self.by, self.temperature, self.crops_per_tile = by, temperature, crops_per_tile

    def weights(self, rows: pd.DataFrame) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """Returns each row's share of the draw; they sum to 1."""
        by = list(dict.fromkeys([*(["data"] if "data" in rows else []), *self.by]))
        groups = rows.groupby(by, dropna=False)["tile"].transform("size").to_numpy(float)
        shares = groups**-self.temperature
        if "weight" in rows:
            shares = shares * rows["weight"].to_numpy(float)
        return np.asarray(shares / shares.sum())

    def draw(self, rows: pd.DataFrame, seed: int, epoch: int, n: int) -> list[Key]:
        """Returns the first `n` keys (place, row) of the epoch."""
        return list(islice(self.keys(rows, seed, epoch), n))

    def keys(self, rows: pd.DataFrame, seed: int, epoch: int) -> Iterator[Key]:
        """Yields the keys (place, row) of an epoch, without end."""
        random = np.random.default_rng([seed, epoch])
        shares = self.weights(rows)
        some = (random.choice(len(rows), size=len(rows), p=shares).tolist() for _ in count())
        return enumerate(chain.from_iterable(some))

    def before_fit(self) -> None:
        """Sets the length of an epoch; a `Length` comes later and may change it."""
        self.dls.train.n = round(len(self.dls.train.dataset) * self.crops_per_tile)

    def before_train(self) -> None:
        """Hands the epoch's draw to the training loader."""
        train = self.dls.train
        every = self.keys(train.dataset.rows, train.dataset.seed, train.dataset.epoch)
        keys = islice(every, draw_length(self.learn))
        train.get_idxs = lambda: keys


class EMA(Callback):
    """Validates and keeps an exponential moving average of the weights in place of the last ones.

    Args:
        decay: of the average per step; smaller at the start: min(decay, (1 + step) / (10 + step)).

    Source:
        Polyak & Juditsky 1992; the warm-up is TensorFlow's ExponentialMovingAverage.
    """

    order = 70

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = decay

    def before_fit(self) -> None:
        """Starts the average at the present weights."""
        self.average = self._weights()
        self.live: dict[str, torch.Tensor] = {}
        self.steps = 0

    def after_step(self) -> None:
        """Moves the average."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(list(self.average.values()), list(self.model.parameters()), self.steps)
        self.steps += 1

    def before_validate(self) -> None:
        """Puts the average into the model."""
        self.live = self._weights()
        self.model.load_state_dict(self.average, strict=False)

    def after_epoch(self) -> None:
        """Puts the live weights back, after RunLog has saved the average, unless this was the last epoch."""
        if self.live and self.epoch < self.n_epoch - 1:
            self.model.load_state_dict(self.live, strict=False)
        self.live = {}

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the average and its number of steps."""
        return {"average": self.average, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        for name, values in state["average"].items():
            self.average[name].copy_(values)
        self.steps = state["steps"]


class SWA(Callback):
    """Validates and keeps the plain mean of the weights at the ends of the last epochs (stochastic weight averaging).

    The batch norms' running means belong to the live weights: for the average they are measured anew, on crops of the
    epoch's kind that (seed, epoch) draws. Before the next epoch, live weights and running means come back. A new fit
    begins a new average.

    Args:
        start: the first epoch whose weights count: an integer from 0, or a share of the fit's epochs, 0 to 1.
        batches: of training crops, for the running means.

    Raises:
        RecipeError: a value is out of its range; `EMA` is there, too.

    Source:
        Izmailov 2018, arXiv 1803.05407.
    """

    order = 70

    def __init__(self, start: float = 0.75, batches: int = 32) -> None:
        if not (0 <= start < 1 or (isinstance(start, int) and start >= 1)):
            raise RecipeError(f"SWA: start {start}, expected a share from 0 to 1, or an epoch", "0.75 is the default")
        if batches < 1:
            raise RecipeError(f"SWA: {batches} batches, expected 1 or more", "32 is the default")
        self.since, self.batches = start, batches

    def before_fit(self) -> None:
        """Begins without an average."""
        if hasattr(self.learn, "ema"):
            raise RecipeError("EMA and SWA both put an average into the network", "learn.remove_cb(EMA)")
        self.average: dict[str, Tensor] = {}
        self.live: dict[str, Tensor] = {}
        self.count = 0

    @property
    def first(self) -> int:
        """The first epoch whose weights count, from 0."""
        if isinstance(self.since, int):
            return int(self.since * getattr(self.learn, "stretch", 1.0))  # --epochs moves it along
        return int(self.since * self.n_epoch)

    def before_validate(self) -> None:
        """Adds the weights to the average, and puts it into the model."""
        if self.epoch < self.first:
            return
        self.live = {key: value.clone() for key, value in self.model.state_dict().items()}
        weights = dict(self.model.named_parameters())
        if not self.count:
            self.average = {name: weight.detach().clone() for name, weight in weights.items()}
        get_swa_multi_avg_fn()(list(self.average.values()), list(weights.values()), self.count)
        self.count += 1
        self.model.load_state_dict(self.average, strict=False)
        self._measure_norms()

    def after_epoch(self) -> None:
        """Puts everything live back, after RunLog has saved the average, unless this was the last epoch."""
        if self.live and self.epoch < self.n_epoch - 1:
            self.model.load_state_dict(self.live)
        self.live = {}

    def state_dict(self) -> dict[str, Any]:
        """Returns the average by parameter, and of how many epochs it is."""
        return {"average": self.average, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        device = self.dls.device
        self.average = {name: weight.to(device, copy=True) for name, weight in state["average"].items()}
        self.count = state["count"]

    def _measure_norms(self) -> None:
        """Gives the batch norms the mean and variance of crops; torch's random state stays as it was."""
        device, precision = self.dls.device, getattr(self.learn, "precision", None)
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            precision.context() if precision else nullcontext(),
        ):
            update_bn(self._images(), self.model)
        as_first(list(self.model.buffers()))

    def _images(self) -> Iterator[Tensor]:
        """Yields batches as training has them: (N, 3, H, W) uint8, on the fit's device."""
        train = self.dls.train
        loader = DataLoader(
            train.dataset, train.bs, sampler=self._keys(), num_workers=train.fake_l.num_workers,
            generator=torch.Generator(),
        )  # fmt: skip
        for images, _ in loader:
            yield images.to(self.dls.device).contiguous(memory_format=torch.channels_last)

    def _keys(self) -> list[Key]:
        """Returns keys (place, row) of the batches, drawn as the epoch's were."""
        train, sampler = self.dls.train, getattr(self.learn, "balanced_sampler", None)
        seed, epoch, n = train.dataset.seed, train.dataset.epoch, self.batches * train.bs
        if sampler:
            return list(sampler.draw(train.dataset.rows, seed, epoch, n))
        rows = np.random.default_rng([seed, epoch]).permutation(len(train.dataset))
        return list(enumerate(np.resize(rows, n).tolist()))  # over and over where there are too few


class LossSwitch(Callback):
    """Trains, and validates, with another loss from an epoch on; a new fit begins with the first loss again.

    Args:
        epoch: the first with the other loss, counted from 0.
        loss: the other one; the Lovasz loss by default, as in the challenge's second place.
    """

    order = -20

    def __init__(self, epoch: int = 25, loss: nn.Module | None = None) -> None:
        self.since, self.later = epoch, Lovasz() if loss is None else loss
        self.first: nn.Module | None = None

    def before_fit(self) -> None:
        """Takes an earlier fit's switch back."""
        if self.first is not None and self.learn.loss_func is self.later:
            self.learn.loss_func = self.first
        self.first = self.learn.loss_func
        self.later.to(self.dls.device)

    def before_epoch(self) -> None:
        """Switches; a resumed run that is past that epoch switches at once."""
        if self.epoch >= int(self.since * getattr(self.learn, "stretch", 1.0)):  # --epochs moves it along
            self.learn.loss_func = self.later
