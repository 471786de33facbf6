"""Knowledge distillation: a student learns from an ensemble's probabilities and from masks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from fastai.callback.core import Callback
from torch import Tensor

from kit.data.masks import IGNORE
from kit.errors import RunError
from kit.models.losses import distillation

__all__ = ["Distillation"]


class Distillation(Callback):
    """Adds a distillation loss in training; the validation loss uses only masks.

    `teacher` is set before the fit: pixels (N, 3, H, W) uint8 or float, 0 to 255, on the fit's device -> probabilities
    of its M members (N, M, H, W), 0 to 1. `teacher_weights` are those of the members' votes; empty where all
    count the same.

    Args:
        share: 0 to 1, weight of the distillation loss; the loss of the masks has the rest.
        temperature: see `kit.models.losses.distillation`.

    Source:
        Hinton 2015, arXiv 1503.02531; both numbers are those of the challenge's second place.
    """

    order = -12  # after MixUp: the teacher sees mixed pixels
    run_valid = False
    teacher: Callable[[Tensor], Tensor] | None = None
    teacher_weights: Sequence[float] = ()

    def __init__(self, share: float = 0.6, temperature: float = 20.0) -> None:
        self.share, self.temperature = share, temperature

    def before_fit(self) -> None:
        """Checks that there is a teacher."""
        if self.teacher is None:
            raise RunError("the recipe needs a teacher", "kit run RECIPE --teacher weights/NAME.pt")

    def joined(self, loss: Tensor, pred: Any, pixels: Tensor, target: Tensor) -> Tensor:
        """Returns (1 - share) x loss + share x distillation.

        Args:
            loss: of the masks, scalar.
            pred: the student's logits (N, C, H, W), or a tuple that begins with them.
            pixels: (N, 3, H, W), as the student saw them.
            target: mask (N, H, W) or layers (N, 3, H, W); where it is 255, in any layer, the teacher does not count.
        """
        assert self.teacher is not None
        with torch.inference_mode():
            probs = self.teacher(pixels)
        logits = pred if isinstance(pred, Tensor) else pred[0]
        known = target != IGNORE
        known = known if known.ndim == 3 else known.all(dim=1)
        signal = distillation(logits, probs, self.temperature, known, self.teacher_weights)
        return (1 - self.share) * loss + self.share * signal

    def after_loss(self) -> None:
        """Replaces the loss by the weighted sum."""
        self.learn.loss_grad = self.joined(self.learn.loss_grad, self.pred, self.x, self.y)
        self.learn.loss = self.learn.loss_grad.clone()
