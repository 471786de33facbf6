"""Metrics of validation: Jaccard index and loss, pooled over all pixels of all ranks."""

from typing import Any

from fastai.metrics import Metric
from torch import Tensor

from kit.data.masks import IGNORE, Counts, count, pool
from kit.models.targets import building_logits
from kit.system.ranks import gathered

__all__ = ["PooledJaccard", "PooledLoss"]


class PooledJaccard(Metric):
    """fastai metric: the Jaccard index over all pixels of the validation set, at a threshold of 0.5.

    After `value`, `by_area` has the counts of each area over all ranks, if the loader's dataset has `rows` with areas.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Clears the counts, at the start of an epoch's validation."""
        self.own: dict[str, Counts] = {}  # this rank's
        self.by_area: dict[str, Counts] = {}
        self.seen = 0

    def accumulate(self, learn: Any) -> None:
        """Adds a batch: `learn.pred` logits (N, 1 to 3, H, W); `learn.y` (N, H, W), or (N, 3, H, W) with layers."""
        footprints = learn.y if learn.y.ndim == 3 else learn.y[:, 0]
        predicted = building_logits(learn.pred)[:, 0] > 0
        for number, area in enumerate(self._areas_of(learn, len(predicted))):
            self.own[area] = self.own.get(area, Counts()) + count(predicted[number], footprints[number])

    def _areas_of(self, learn: Any, n: int) -> list[str]:
        """Returns the area of each tile of the batch; batches have the order of the dataset's rows."""
        rows = getattr(getattr(learn.dl, "dataset", None), "rows", None)
        if rows is None or learn.training:
            return [""] * n
        self.seen += n
        return [str(area) for area in rows["area"].iloc[self.seen - n : self.seen]]

    @property
    def value(self) -> float:
        """The index so far, 0 to 1, over all ranks. All ranks must read it."""
        parts = gathered(self.own)
        names = sorted({area for part in parts for area in part})
        self.by_area = {area: pool(part.get(area, Counts()) for part in parts) for area in names}
        return pool(self.by_area.values()).jaccard

    @property
    def name(self) -> str:
        """Column of the log."""
        return "jaccard"


class PooledLoss(Metric):
    """fastai metric: the mean loss over the pixels that count, of all batches and ranks.

    fastai's own metric is the mean over batches, which depends on how tiles are divided into batches. This one does not
    if the loss is a mean over pixels. Other losses (Dice, Lovasz) are still computed per batch.
    """

    def reset(self) -> None:
        """Clears the sums."""
        self.total, self.pixels = 0.0, 0

    def accumulate(self, learn: Any) -> None:
        """Adds a batch."""
        target: Tensor = learn.y
        known = int((target != IGNORE).sum())
        self.total += float(learn.loss) * known
        self.pixels += known

    @property
    def value(self) -> float | None:
        """The mean over all ranks; None if no pixel counted. All ranks must read it."""
        totals, pixels = zip(*gathered((self.total, self.pixels)), strict=True)
        return sum(totals) / sum(pixels) if sum(pixels) else None

    @property
    def name(self) -> str:
        """Column of the log."""
        return "loss"
