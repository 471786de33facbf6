"""Stops a training that diverges, before its weights are saved."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from fastai.callback.core import Callback
from torch import Tensor

from kit.errors import RunError

TRIES_IN_FLOAT16 = 4  # steps with overflow in a row: LossScale skips them


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Returns whether all values of all tensors are finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


class DivergenceStop(Callback):
    """Stops the training if the loss or the weights are not finite.

    The loss is checked before each step, the weights before `RunLog` saves them.
    """

    order = 59  # before RunLog

    def __init__(self) -> None:
        self.in_a_row = 0

    def after_loss(self) -> None:
        """Checks the loss."""
        if not self.training:
            return
        loss = float(self.learn.loss_grad.detach())
        self.in_a_row = 0 if math.isfinite(loss) else self.in_a_row + 1
        if self.in_a_row >= (TRIES_IN_FLOAT16 if self.learn.precision.dtype == torch.float16 else 1):
            raise self._error(f"the loss is {loss:g}")

    def after_epoch(self) -> None:
        """Checks the weights."""
        if not self.learn.resume.replaying and not all_finite(self.learn.model.parameters()):
            raise self._error("the weights are not finite")

    def _error(self, what: str) -> RunError:
        log: Any = self.learn.run_log
        place = f"epoch {len(log.rows) + 1}/{log.epochs}, step {int(self.iter) + 1}"
        kept = "the weights of the best epoch so far are kept" if log.rows else "no epoch had finished"
        half = "" if self.learn.precision.dtype == torch.float32 else ", or --precision fp32"
        return RunError(
            f"{log.title}: {what} in {place}: the training diverged; {kept}",
            f"lower the rate in fit(), see kit lr-find{half}; then --resume from the last checkpoint, or --restart",
        )
