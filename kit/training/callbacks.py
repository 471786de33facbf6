"""fastai callbacks for recipes: balanced sampler, averages of the weights, change of loss."""

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
    """Draws tiles with replacement so that each group is drawn equally often.

    The weight of a tile is (tiles in its group) ** -`temperature`, times the weight of its data set (1, or that of
    `kit run --add NAME=WEIGHT`). With the default temperature, the expected number of draws of a group is proportional
    to the weight of its set, however many tiles and groups the sets have. The draw depends only on (seed, epoch). It is
    one draw for all ranks; `Deal` divides it.

    Args:
        by: columns of the index that define a group, within each data set; by default scenes.
        temperature: 1 balances groups fully, 0 draws tiles uniformly.
        crops_per_tile: draws per epoch over all ranks, divided by the number of tiles. Ignored with `--minutes`.
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
        """Sets the length of an epoch; `Length` may change it later."""
        self.dls.train.n = round(len(self.dls.train.dataset) * self.crops_per_tile)

    def before_train(self) -> None:
        """Gives the epoch's draw to the training loader."""
        train = self.dls.train
        every = self.keys(train.dataset.rows, train.dataset.seed, train.dataset.epoch)
        keys = islice(every, draw_length(self.learn))
        train.get_idxs = lambda: keys


class EMA(Callback):
    """Validates and saves an exponential moving average of the weights instead of the current ones.

    Batch norm statistics are averaged as well. The current ones follow the last ten batches, drawn from few places, and
    make the validation loss fluctuate up to twice as much.

    Args:
        decay: per step; at the start min(decay, (1 + step) / (10 + step)).

    Source:
        Polyak & Juditsky 1992; the warm-up is TensorFlow's ExponentialMovingAverage.
    """

    order = 70

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = decay

    def before_fit(self) -> None:
        """Starts the average with the current weights."""
        self.average = self._copy()
        self.live: dict[str, torch.Tensor] = {}
        self.steps = 0

    def after_step(self) -> None:
        """Updates the average."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(list(self.average.values()), list(self._weights().values()), self.steps)
        self.steps += 1

    def before_validate(self) -> None:
        """Loads the average into the model."""
        self.live = self._copy()
        self.model.load_state_dict(self.average, strict=False)

    def after_epoch(self) -> None:
        """Restores the current weights after RunLog has saved the average, except after the last epoch."""
        if self.live and self.epoch < self.n_epoch - 1:
            self.model.load_state_dict(self.live, strict=False)
        self.live = {}

    def _weights(self) -> dict[str, torch.Tensor]:
        """Returns the current weights and batch norm statistics, by name."""
        named = chain(self.model.named_parameters(), self.model.named_buffers())
        return {name: values.detach() for name, values in named if values.is_floating_point()}

    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: values.clone() for name, values in self._weights().items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the average and its number of steps."""
        return {"average": self.average, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state."""
        self.average = self._copy()  # of statistics, which checkpoints of kit 0.2.0 lack
        for name, values in state["average"].items():
            self.average[name].copy_(values)
        self.steps = state["steps"]


class SWA(Callback):
    """Stochastic weight averaging: validates and saves the mean of the weights after each of the last epochs.

    Batch norm statistics are computed again for the average, on training crops that depend on (seed, epoch). After
    validation, the current weights and statistics are restored. Each fit starts a new average.

    Args:
        start: the first epoch to average: an integer from 0, or a fraction of the fit's epochs, 0 to 1.
        batches: of training crops, for the batch norm statistics.

    Raises:
        RecipeError: a value is out of range, or the recipe also has `EMA`.

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
        """Starts without an average."""
        if hasattr(self.learn, "ema"):
            raise RecipeError("EMA and SWA both put an average into the network", "learn.remove_cb(EMA)")
        self.average: dict[str, Tensor] = {}
        self.live: dict[str, Tensor] = {}
        self.count = 0

    @property
    def first(self) -> int:
        """The first epoch to average, from 0."""
        if isinstance(self.since, int):
            return int(self.since * getattr(self.learn, "stretch", 1.0))  # --epochs scales it
        return int(self.since * self.n_epoch)

    def before_validate(self) -> None:
        """Adds the weights to the average, and loads the average into the model."""
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
        """Restores weights and statistics after RunLog has saved the average, except after the last epoch."""
        if self.live and self.epoch < self.n_epoch - 1:
            self.model.load_state_dict(self.live)
        self.live = {}

    def state_dict(self) -> dict[str, Any]:
        """Returns the average by parameter, and its number of epochs."""
        return {"average": self.average, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state."""
        device = self.dls.device
        self.average = {name: weight.to(device, copy=True) for name, weight in state["average"].items()}
        self.count = state["count"]

    def _measure_norms(self) -> None:
        """Computes batch norm statistics on training crops; torch's random state is kept."""
        device, precision = self.dls.device, getattr(self.learn, "precision", None)
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            precision.context() if precision else nullcontext(),
        ):
            update_bn(self._images(), self.model)
        as_first(list(self.model.buffers()))

    def _images(self) -> Iterator[Tensor]:
        """Yields training batches, (N, 3, H, W) uint8, on the fit's device."""
        train = self.dls.train
        loader = DataLoader(
            train.dataset, train.bs, sampler=self._keys(), num_workers=train.fake_l.num_workers,
            generator=torch.Generator(),
        )  # fmt: skip
        for images, _ in loader:
            yield images.to(self.dls.device).contiguous(memory_format=torch.channels_last)

    def _keys(self) -> list[Key]:
        """Returns keys (place, row) of the batches, drawn like those of the epoch."""
        train, sampler = self.dls.train, getattr(self.learn, "balanced_sampler", None)
        seed, epoch, n = train.dataset.seed, train.dataset.epoch, self.batches * train.bs
        if sampler:
            return list(sampler.draw(train.dataset.rows, seed, epoch, n))
        rows = np.random.default_rng([seed, epoch]).permutation(len(train.dataset))
        return list(enumerate(np.resize(rows, n).tolist()))  # repeated if there are too few


class LossSwitch(Callback):
    """Changes the loss of training and validation at an epoch; each fit starts with the first loss.

    Args:
        epoch: the first with the other loss, from 0.
        loss: the other loss; by default Lovasz, as in the challenge's second place.
    """

    order = -20

    def __init__(self, epoch: int = 25, loss: nn.Module | None = None) -> None:
        self.since, self.later = epoch, Lovasz() if loss is None else loss
        self.first: nn.Module | None = None

    def before_fit(self) -> None:
        """Restores the first loss."""
        if self.first is not None and self.learn.loss_func is self.later:
            self.learn.loss_func = self.first
        self.first = self.learn.loss_func
        self.later.to(self.dls.device)

    def before_epoch(self) -> None:
        """Changes the loss, from the given epoch on."""
        if self.epoch >= int(self.since * getattr(self.learn, "stretch", 1.0)):  # --epochs scales it
            self.learn.loss_func = self.later
