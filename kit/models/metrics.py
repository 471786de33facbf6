"""The Jaccard index, pooled over all pixels of a fold: the challenge's score."""

from typing import Any

from fastai.metrics import Metric

from kit.data.masks import Counts, count
from kit.models.targets import building_logits


class PooledJaccard(Metric):
    """fastai metric: the Jaccard index over all pixels of the validation set, of what is more probable than not."""

    def reset(self) -> None:
        """Forgets the counts, at the start of an epoch's validation."""
        self.counts = Counts()

    def accumulate(self, learn: Any) -> None:
        """Adds a batch: `learn.pred` logits (N, 1 to 3, H, W); `learn.y` (N, H, W), or (N, 3, H, W) with layers."""
        footprints = learn.y if learn.y.ndim == 3 else learn.y[:, 0]
        self.counts += count(building_logits(learn.pred)[:, 0] > 0, footprints)

    @property
    def value(self) -> float:
        """The index so far, 0 to 1."""
        return self.counts.jaccard

    @property
    def name(self) -> str:
        """Column of the log."""
        return "jaccard"
