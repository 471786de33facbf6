"""The Jaccard index, pooled over all pixels of a fold: the challenge's score."""

from typing import Any

from fastai.metrics import Metric

from kit.data.masks import BUILDING, Counts, count


class PooledJaccard(Metric):
    """fastai metric: the Jaccard index over all pixels of the validation set, argmax over two classes."""

    def reset(self) -> None:
        """Forgets the counts, at the start of an epoch's validation."""
        self.counts = Counts()

    def accumulate(self, learn: Any) -> None:
        """Adds a batch: `learn.pred` (N, 2, H, W) logits, `learn.y` (N, H, W)."""
        self.counts += count(learn.pred.argmax(1) == BUILDING, learn.y)

    @property
    def value(self) -> float:
        """The index so far, 0 to 1."""
        return self.counts.jaccard

    @property
    def name(self) -> str:
        """Column of the log."""
        return "jaccard"
