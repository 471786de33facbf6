"""Losses, by their standard names."""

import torch.nn.functional as F
from torch import Tensor, nn

from kit.data.masks import IGNORE


class CrossEntropy(nn.Module):
    """Mean cross-entropy over the pixels that count.

    Args:
        ignore: mask value that does not count (no data).
        label_smoothing: 0 to 1, as in torch.

    Shape:
        logits (N, C, H, W) float, mask (N, H, W) int64 -> scalar; 0 when no pixel counts.
    """

    def __init__(self, ignore: int = IGNORE, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.ignore, self.label_smoothing = ignore, label_smoothing

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Returns the loss."""
        total = F.cross_entropy(
            logits.float(), mask, ignore_index=self.ignore, reduction="sum", label_smoothing=self.label_smoothing
        )
        return total / (mask != self.ignore).sum().clamp(min=1)
