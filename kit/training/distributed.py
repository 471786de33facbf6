"""The gradients of several processes, averaged. Source: torch.distributed."""

import torch
from fastai.callback.core import Callback
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kit.system.ranks import as_first


class Distributed(Callback):
    """Averages the gradients of the ranks, and keeps their networks equal.

    The network is wrapped (DistributedDataParallel) for the forward pass of a training step alone, so that callbacks
    and checkpoints see it as it is.
    """

    order = 100  # wraps what is ready to run; validates what EMA and SWA put in

    def before_fit(self) -> None:
        """Wraps the network, as it is frozen in this fit; rank 0's weights go to all."""
        device: torch.device = self.dls.device
        self.own: nn.Module = self.model
        self.wrapped = DistributedDataParallel(self.own, device_ids=[device] if device.type == "cuda" else None)

    def before_batch(self) -> None:
        """Puts the wrapped network in; gradients stay here while they are accumulated."""
        if self.training:
            accumulation = getattr(self.learn, "gradient_accumulation", None)
            full = accumulation is None or accumulation.count + len(self.y) >= accumulation.n_acc
            self.wrapped.require_backward_grad_sync = full
            self.learn.model = self.wrapped

    def after_pred(self) -> None:
        """Takes it out."""
        self.learn.model = self.own

    def before_validate(self) -> None:
        """Gives all ranks rank 0's running means: each has seen other crops in its last step."""
        as_first(list(self.own.buffers()))

    def leave(self) -> None:
        """Takes the wrapped network out after a failure."""
        if hasattr(self, "own"):
            self.learn.model = self.own
