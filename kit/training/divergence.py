"""Ends a training that diverges, before weights that are not finite are kept."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from fastai.callback.core import Callback
from torch import Tensor

from kit.errors import RunError

TRIES_IN_FLOAT16 = 4  # its steps whose loss overflows are skipped, see LossScale


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Returns whether no tensor holds NaN or an infinite number."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


class DivergenceStop(Callback):
    """Ends the training where the loss or the weights are not finite.

    It looks at the loss before the step that would follow from it, and at the weights before `RunLog` keeps them.
    """

    order = 59  # before RunLog

    def __init__(self) -> None:
        self.in_a_row = 0

    def after_loss(self) -> None:
        """Looks at the loss."""
        if not self.training:
            return
        loss = float(self.learn.loss_grad.detach())
        self.in_a_row = 0 if math.isfinite(loss) else self.in_a_row + 1
        if self.in_a_row >= (TRIES_IN_FLOAT16 if self.learn.precision.dtype == torch.float16 else 1):
            raise self._error(f"the loss is {loss:g}")

    def after_epoch(self) -> None:
        """Looks at the weights."""
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
