"""fastai callbacks for the number formats of training: mixed precision, and the scaled loss that float16 needs."""

from contextlib import ExitStack
from time import perf_counter
from typing import Any

import torch
from fastai.callback.core import Callback, CancelStepException

from kit.console import say
from kit.models.depthwise import fast_backward
from kit.models.targets import at_least_float32
from kit.system.devices import autocast_dtype
from kit.system.ranks import gathered, ranks

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TRIALS = ("bf16", "fp32")  # precisions that are measured on CPUs with bfloat16

ROUNDS = 4  # of one step in each precision, the first to warm up
WORTH = 50  # steps, from which on measuring saves time


class Precision(Callback):
    """channels_last everywhere, and autocast in the precision that trains fastest.

    On a CPU with bfloat16 it is measured, since it depends on network and processor: the first steps of a training
    take turns in bfloat16 and float32, the others take the faster one. Short trainings, compiled networks and GPUs take
    bfloat16 where the hardware has it; other GPUs take float16 (see `LossScale`), other CPUs float32.

    channels_last is faster on CPUs too (depthwise convolutions most of all: a quarter of a step of EfficientNet-Lite0).
    Depthwise convolutions have a backward pass of kit's own there, see `kit.models.depthwise`. fastai's own
    MixedPrecision asks for CUDA and does nothing on a CPU, silently.

    Args:
        option: one of `DTYPES`; empty to choose.

    Attributes:
        chosen: one of `DTYPES`; empty while it is measured.
        earlier: what an earlier session of the run chose; empty for none.
    """

    order = -10

    def __init__(self, option: str = "") -> None:
        self.option = self.chosen = option
        self.earlier = self.default = ""
        self.trials: tuple[str, ...] = ()  # precisions that take turns
        self.seconds: dict[str, list[float]] = {}  # of their steps
        self.steps = 0  # of the training
        self.autocast: ExitStack | None = None  # the contexts of the forward pass that is under way

    def before_fit(self) -> None:
        """Chooses, once, or begins to measure."""
        self.model.to(memory_format=torch.channels_last)
        if self.chosen or self.trials:
            return
        dtype = autocast_dtype(self.dls.device)
        self.default = next(name for name, known in DTYPES.items() if known == dtype)
        if self.default == "bf16" and self._is_worth_it():
            self.trials = TRIALS
            self.seconds = {name: [] for name in TRIALS}
            self.chosen = self.earlier if self.earlier in TRIALS else ""
        else:
            self.chosen = self.default

    def _is_worth_it(self) -> bool:
        length = getattr(self.learn, "length", None)
        if length is None or self._is_compiled() or self.dls.device.type != "cpu":
            return False
        return bool(length.open_ended or length.total >= WORTH * ranks())

    def _is_compiled(self) -> bool:
        return getattr(self.model, "_compiled_call_impl", None) is not None

    @property
    def dtype(self) -> torch.dtype:
        """Of autocast; float32 for none."""
        return DTYPES[self.chosen or self.default]

    @property
    def name_of_precision(self) -> str | None:
        """For the settings, for example `bf16 channels_last`; None while it is measured."""
        return f"{self.chosen} channels_last" if self.chosen else None

    def context(self, name: str = "") -> Any:
        """Returns the context of a forward pass, by default in the precision that was chosen."""
        dtype = DTYPES[name or self.chosen or self.default]
        return torch.autocast(self.dls.device.type, dtype, enabled=dtype != torch.float32)

    def before_batch(self) -> None:
        """Enters autocast for the forward pass."""
        self.learn.xb = tuple(x.contiguous(memory_format=torch.channels_last) for x in self.xb)
        self.begun = perf_counter()
        self.autocast = ExitStack()
        self.autocast.enter_context(self.context(self._of_step() if self.training else ""))
        if self.training and self.dls.device.type == "cpu" and not self._is_compiled():
            self.autocast.enter_context(fast_backward(self.model))

    def _of_step(self) -> str:
        """Returns the precision of the present step: it depends on its number, then on what was chosen."""
        if self.steps < ROUNDS * len(self.trials):
            return self.trials[self.steps % len(self.trials)]
        return self.chosen or self.default

    def after_pred(self) -> None:
        """Leaves it: the loss is float32 or better."""
        self.leave()
        self.learn.pred = not_half(self.pred)

    def after_batch(self) -> None:
        """Notes how long the step took, and chooses after the last round."""
        if not self.training:
            return
        if self.trials and not self.chosen:
            self.seconds[self._of_step()].append(perf_counter() - self.begun)
        self.steps += 1
        if self.trials and not self.chosen and self.steps >= ROUNDS * len(self.trials):
            self._choose()

    def _choose(self) -> None:
        """Takes the precision whose steps are fastest, on the slowest rank; all ranks must call it."""
        own = {name: min(seconds[1:] or seconds) for name, seconds in self.seconds.items()}  # others may interrupt it
        slowest = {name: max(of_rank[name] for of_rank in gathered(own)) for name in self.trials}
        self.chosen = min(slowest, key=lambda name: slowest[name])
        times = ", ".join(f"{seconds:.2g} s in {name}" for name, seconds in slowest.items())
        say(f"a step takes {times}: training continues in {self.chosen}")

    def after_fit(self) -> None:
        """Leaves autocast also when a batch was cut short."""
        self.leave()

    def leave(self) -> None:
        """Leaves autocast where it was entered; fastai says nothing to callbacks when a fit fails."""
        if self.autocast is not None:
            self.autocast.close()
            self.autocast = None

    def state_dict(self) -> dict[str, Any]:
        """Returns how far it has measured; what was chosen is in the run's settings, as soon as it is."""
        return {"steps": self.steps, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self.steps = state["steps"]
        self.seconds |= state["seconds"]


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
