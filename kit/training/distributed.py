"""Averages the gradients of the ranks. Source: torch.distributed."""

import torch
from fastai.callback.core import Callback
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kit.system.ranks import as_first


class Distributed(Callback):
    """Averages the gradients of the ranks, and keeps their networks equal.

    The network is wrapped (DistributedDataParallel) only for the forward pass of a training step, so that callbacks and
    checkpoints see the network itself.
    """

    order = 100  # after EMA and SWA, whose averages are validated

    def before_fit(self) -> None:
        """Wraps the network with the frozen layers of this fit; rank 0's weights are sent to all ranks."""
        device: torch.device = self.dls.device
        self.own: nn.Module = self.model
        self.wrapped = DistributedDataParallel(self.own, device_ids=[device] if device.type == "cuda" else None)

    def before_batch(self) -> None:
        """Sets the wrapped network; gradients are not averaged while they accumulate."""
        if self.training:
            accumulation = getattr(self.learn, "gradient_accumulation", None)
            full = accumulation is None or accumulation.count + len(self.y) >= accumulation.n_acc
            self.wrapped.require_backward_grad_sync = full
            self.learn.model = self.wrapped

    def after_pred(self) -> None:
        """Sets the network itself."""
        self.learn.model = self.own

    def before_validate(self) -> None:
        """Sends rank 0's batch norm statistics to all ranks."""
        as_first(list(self.own.buffers()))

    def leave(self) -> None:
        """Sets the network itself after a failure."""
        if hasattr(self, "own"):
            self.learn.model = self.own
