"""fastai callbacks that every fit gets: crops dealt out, precision, minutes turned into steps."""

import math
import time
from typing import Any, ClassVar

import numpy as np
import torch
from fastai.callback.core import Callback, CancelStepException

from kit.console import say
from kit.models.targets import at_least_float32
from kit.system.devices import autocast_dtype
from kit.system.ranks import as_first, gathered, rank, ranks


class Draw(Callback):
    """Draws what an epoch trains on: every tile once, in another order each time; `BalancedSampler` draws otherwise.

    The draw depends on (seed, epoch) alone, epochs counted over all fits of a recipe. All ranks make the same one.
    """

    order = -30  # before BalancedSampler

    def __init__(self) -> None:
        self.begun = 0

    def before_fit(self) -> None:
        """Sets the length of an epoch; a sampler and a Budget come later."""
        self.dls.train.n = len(self.dls.train.dataset)

    def before_train(self) -> None:
        """Tells the training set which epoch it is, which its crops depend on, and hands the draw to its loader."""
        train = self.dls.train
        train.dataset.epoch = self.begun
        n, tiles = train.n * ranks(), len(train.dataset)
        random = np.random.default_rng([train.dataset.seed, self.begun])
        rows = np.concatenate([random.permutation(tiles) for _ in range(math.ceil(n / tiles))])[:n]
        keys = list(enumerate(rows.tolist()))
        train.get_idxs = lambda: keys

    def after_train(self) -> None:
        """Counts."""
        self.begun += 1

    def state_dict(self) -> dict[str, int]:
        """Returns which epoch comes, or is under way."""
        return {"begun": self.begun}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Counts on from there."""
        self.begun = state["begun"]


class Deal(Callback):
    """Deals the draw out to the ranks: each step takes a batch for each from it, so that no crop is seen twice."""

    order = -8  # after the samplers, before Budget

    def __init__(self) -> None:
        self.skip = self.skipped = 0  # steps of the epoch that were done before: of the next one, of this one

    def before_fit(self) -> None:
        """Turns the length of an epoch, in crops over all ranks, into whole batches of this one."""
        train = self.dls.train
        train.n = max(1, train.n // (train.bs * ranks())) * train.bs

    def before_train(self) -> None:
        """Keeps this rank's share of the draw."""
        train = self.dls.train
        keys, size = train.get_idxs(), train.bs
        own = [key for place, key in enumerate(keys) if place // size % ranks() == rank()][self.skip * size :]
        train.get_idxs = lambda: own
        self.skip, self.skipped = 0, self.skip


class Precision(Callback):
    """channels_last everywhere; bfloat16 autocast where the hardware has it, float16 on other GPUs (see LossScale).

    channels_last is faster on CPUs too (depthwise convolutions most of all: a quarter of a step of EfficientNet-Lite0).
    fastai's own MixedPrecision asks for CUDA and does nothing on a CPU, silently.

    Args:
        dtype: torch.bfloat16, torch.float16 or torch.float32; by default what the device is fastest in.
    """

    order = -10
    NAMES: ClassVar = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.wanted = dtype
        self.autocast: Any = None  # the context of the forward pass that is under way

    def before_fit(self) -> None:
        """Chooses, once."""
        self.dtype = self.wanted or autocast_dtype(self.dls.device)
        self.model.to(memory_format=torch.channels_last)

    @property
    def name_of_precision(self) -> str:
        """For the settings, for example `bf16 channels_last`."""
        return f"{self.NAMES[self.dtype]} channels_last"

    def context(self) -> Any:
        """Returns the autocast context of a forward pass."""
        return torch.autocast(self.dls.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def before_batch(self) -> None:
        """Enters autocast for the forward pass."""
        self.learn.xb = tuple(x.contiguous(memory_format=torch.channels_last) for x in self.xb)
        self.autocast = self.context()
        self.autocast.__enter__()

    def after_pred(self) -> None:
        """Leaves it: the loss is float32 or better."""
        self.leave()
        self.learn.pred = not_half(self.pred)

    def after_fit(self) -> None:
        """Leaves autocast also when a batch was cut short."""
        self.leave()

    def leave(self) -> None:
        """Leaves autocast where it was entered; fastai says nothing to callbacks when a fit fails."""
        if self.autocast is not None:
            self.autocast.__exit__(None, None, None)
            self.autocast = None


def not_half(pred: Any) -> Any:
    """Returns logits, or a tuple of them, in float32 or better."""
    return tuple(map(at_least_float32, pred)) if isinstance(pred, tuple) else at_least_float32(pred)


class LossScale(Callback):
    """Scales the loss while float16 computes, so that small gradients do not vanish; does nothing otherwise."""

    order = 8  # scaled gradients are accumulated (GradientAccumulation: 6), true ones clipped (GradientClip: 11)

    def before_fit(self) -> None:
        """Begins with torch's first scale."""
        self.scaler = torch.amp.GradScaler(self.dls.device.type, enabled=self.precision.dtype == torch.float16)

    def before_backward(self) -> None:
        """Scales the loss, so that float16 gradients do not vanish."""
        self.learn.loss_grad = self.scaler.scale(self.loss_grad)

    def before_step(self) -> None:
        """Scales the gradients back, and skips a step whose gradients overflowed."""
        if self.scaler.is_enabled():
            self.skipped = True
            self.scaler.step(self)
            if self.skipped:
                raise CancelStepException

    @property
    def param_groups(self) -> Any:
        """What GradScaler asks of an optimizer."""
        return self.opt.param_groups

    def step(self, *_: Any, **__: Any) -> None:
        """Called by GradScaler where no gradient overflowed; the real step follows."""
        self.skipped = False

    def after_step(self) -> None:
        """Adapts the scale."""
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Returns the scale, and since when it has been right."""
        return dict(self.scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them over."""
        self.scaler.load_state_dict(state)


class Budget(Callback):
    """Turns wall time into a number of steps, once, before the first one.

    The time of a step and of a validation is measured on real batches; the weights are put back afterwards.

    Args:
        minutes: for all fits of the recipe, validation included.
        epochs: of all fits.
        steps: per epoch, when they were already decided; then nothing is measured.
    """

    order = -5  # after Precision, whose context it measures in
    SAFETY = 0.96  # share of the minutes that is planned; the rest is for start, saving and noise
    WARM_STEPS, TIMED_STEPS = 2, 5

    def __init__(self, minutes: float, epochs: int, steps: int = 0) -> None:
        self.minutes, self.epochs, self.steps = minutes, epochs, steps

    def before_fit(self) -> None:
        """Sets how many crops make an epoch."""
        train = self.dls.train
        if not self.steps:
            say("timing a few steps")
            start = time.perf_counter()
            step_s, valid_s = map(max, zip(*gathered(self._measure()), strict=True))  # the slowest rank's
            spare = self.minutes * 60 * self.SAFETY - (time.perf_counter() - start)
            self.steps = max(1, math.floor((spare / self.epochs - valid_s) / step_s))
        train.n = self.steps * train.bs

    def _measure(self) -> tuple[float, float]:
        """Returns seconds per training step and per validation, as fastai will run them."""
        state = {key: value.clone() for key, value in self.model.state_dict().items()}
        train, valid = self.dls.train, self.dls.valid
        frozen = self.opt.frozen_idx
        self.learn.unfreeze()  # a recipe may begin frozen; most of its steps will not be
        seconds = []
        self.model.train()
        for number in range(self.WARM_STEPS + self.TIMED_STEPS):
            start = time.perf_counter()
            places = range(number * train.bs, (number + 1) * train.bs)
            self._loss(train.dataset, [(place, place % len(train.dataset)) for place in places]).backward()
            as_first([p.grad for p in self.model.parameters() if p.grad is not None])  # as much as averaging moves
            self.opt.step()
            self.opt.zero_grad()
            seconds.append(time.perf_counter() - start)
        self.opt.clear_state()
        self.learn.freeze_to(frozen)
        valid_s = 0.0
        if rows := len(valid.dataset):
            self.model.eval()
            batch = min(valid.bs, rows)
            start = time.perf_counter()
            with torch.inference_mode():
                self._loss(valid.dataset, list(range(batch)))
            valid_s = (time.perf_counter() - start) / batch * rows
        self.model.load_state_dict(state)
        return float(np.mean(seconds[self.WARM_STEPS :])), valid_s

    def _loss(self, dataset: Any, keys: list[Any]) -> torch.Tensor:
        """Returns the loss of a batch."""
        device = self.dls.device
        images, masks = (torch.stack(parts).to(device) for parts in zip(*(dataset[key] for key in keys), strict=True))
        with self.learn.precision.context():
            pred = self.model(images.contiguous(memory_format=torch.channels_last))
        pred = not_half(pred)
        masks = masks.long()
        loss: torch.Tensor = self.learn.loss_func(pred, masks)
        if distillation := getattr(self.learn, "distillation", None):  # what it adds takes its time, too
            loss = distillation.joined(loss, pred, images, masks)
        return loss
