"""fastai callbacks for the number formats of training: mixed precision, and the scaled loss that float16 needs."""

from typing import Any

import torch
from fastai.callback.core import Callback, CancelStepException

from kit.models.targets import at_least_float32
from kit.system.devices import autocast_dtype

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Precision(Callback):
    """channels_last everywhere; bfloat16 autocast where the hardware has it, float16 on other GPUs (see LossScale).

    channels_last is faster on CPUs too (depthwise convolutions most of all: a quarter of a step of EfficientNet-Lite0).
    fastai's own MixedPrecision asks for CUDA and does nothing on a CPU, silently.

    Args:
        dtype: torch.bfloat16, torch.float16 or torch.float32; by default what the device is fastest in.
    """

    order = -10

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.option = dtype
        self.autocast: Any = None  # the context of the forward pass that is under way

    def before_fit(self) -> None:
        """Chooses, once."""
        self.dtype = self.option or autocast_dtype(self.dls.device)
        self.model.to(memory_format=torch.channels_last)

    @property
    def name_of_precision(self) -> str:
        """For the settings, for example `bf16 channels_last`."""
        return f"{next(name for name, dtype in DTYPES.items() if dtype == self.dtype)} channels_last"

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
