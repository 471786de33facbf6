"""fastai callbacks that every fit gets: epochs counted, precision, minutes turned into steps, the run folder."""

import csv
import json
import math
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from fastai.callback.core import Callback, CancelStepException
from safetensors.torch import save_file

from kit.console import Meter, say
from kit.models.devices import autocast_dtype
from kit.paths import replacing


class EpochCount(Callback):
    """Tells the training set which epoch it is, counted over all fits of a recipe: draws and crops depend on it."""

    order = -30  # before BalancedSampler

    def __init__(self) -> None:
        self.begun = 0

    def before_train(self) -> None:
        """Counts."""
        self.dls.train.dataset.epoch = self.begun
        self.begun += 1


class Precision(Callback):
    """channels_last everywhere; bfloat16 autocast where the hardware has it, float16 with a scaled loss on other GPUs.

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
        device = self.dls.device
        self.dtype = self.wanted or autocast_dtype(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
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
        """Leaves it: the loss is float32."""
        self.leave()
        self.learn.pred = as_float32(self.pred)

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

    def after_fit(self) -> None:
        """Leaves autocast also when a batch was cut short."""
        self.leave()

    def leave(self) -> None:
        """Leaves autocast where it was entered; fastai says nothing to callbacks when a fit fails."""
        if self.autocast is not None:
            self.autocast.__exit__(None, None, None)
            self.autocast = None


def as_float32(pred: Any) -> Any:
    """Returns logits, or a tuple of them, in float32."""
    return tuple(part.float() for part in pred) if isinstance(pred, tuple) else pred.float()


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
            step_s, valid_s = self._measure()
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
        pred = as_float32(pred)
        loss: torch.Tensor = self.learn.loss_func(pred, masks)
        if distillation := getattr(self.learn, "distillation", None):  # what it adds takes its time, too
            loss = distillation.joined(loss, pred, images, masks)
        return loss


class RunLog(Callback):
    """Writes the run folder while it trains: `log.csv`, `checkpoint.pt`, `best.safetensors`; shows the progress.

    The best epoch is the one with the highest Jaccard index; without validation, the last. Epochs are counted over all
    fits of a recipe.

    Args:
        folder: of the run.
        title: in front of the bar.
        settings: of the run, for `settings.json`.
        epochs: of all fits.
    """

    order = 60  # after the Recorder has its figures, before EMA puts the live weights back

    def __init__(self, folder: Path, title: str, settings: dict[str, Any], epochs: int) -> None:
        self.folder, self.title, self.settings, self.epochs = folder, title, settings, epochs
        self.bar: Meter | None = None
        self.rows: list[dict[str, float]] = []
        self.best, self.best_epoch, self.start = -1.0, -1, time.monotonic()

    def before_fit(self) -> None:
        """Writes the settings, now that the steps are known, and starts the bar and the log."""
        self.recorder.add_time = False
        steps = {"epochs": self.epochs, "steps_per_epoch": len(self.dls.train)}
        self.settings |= {**steps, "precision": self.learn.precision.name_of_precision}
        with replacing(self.folder / "settings.json") as file:
            file.write_text(json.dumps(self.settings, indent=1) + "\n")
        done = len(self.rows) * len(self.dls.train)
        self.bar = Meter(self.title, self.epochs * len(self.dls.train))
        self.bar.advance(done)

    def after_batch(self) -> None:
        """Advances the bar."""
        if self.training:
            self.smooth = self.recorder.smooth_loss.value.item()
            assert self.bar is not None
            self.bar.advance(1, self._note())

    def _note(self) -> str:
        best = f" best jaccard {self.best:.4f}" if self.best >= 0 else ""
        return f"epoch {len(self.rows) + 1}/{self.epochs} loss {self.smooth:.4f}{best}"

    def after_epoch(self) -> None:
        """Adds a row to the log, keeps the best weights and the checkpoint."""
        # recorder.log: epoch, train loss, valid loss, metric; without the last two where nothing is held out
        values = [float(v) if v is not None else float("nan") for v in self.recorder.log[1:4]]
        train_loss, valid_loss, jaccard = (*values, float("nan"), float("nan"))[:3]
        if not len(self.dls.valid.dataset):
            valid_loss = jaccard = float("nan")
        rate = float(self.opt.hypers[-1]["lr"])
        losses = {"train_loss": train_loss, "valid_loss": valid_loss, "jaccard": jaccard}
        seconds = round(time.monotonic() - self.start, 1)
        self.rows.append({"epoch": len(self.rows), **losses, "lr": rate, "seconds": seconds})
        with replacing(self.folder / "log.csv") as file, file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        if math.isnan(jaccard) or jaccard > self.best:
            self.best, self.best_epoch = (-1.0 if math.isnan(jaccard) else jaccard), len(self.rows) - 1
            with replacing(self.folder / "best.safetensors") as file:
                save_file({k: v.contiguous() for k, v in self.model.state_dict().items()}, file)
        with replacing(self.folder / "checkpoint.pt") as file:
            torch.save({"epoch": len(self.rows) - 1, "model": self.model.state_dict(), "log": self.rows}, file)

    def after_fit(self) -> None:
        """Ends the bar, also when interrupted, or failed before it began."""
        if self.bar is not None:
            self.bar.close()
