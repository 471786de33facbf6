"""The Jaccard index, pooled over all pixels of a fold: the challenge's score."""

from dataclasses import dataclass
from typing import Any

from fastai.metrics import Metric
from numpy.typing import NDArray
from torch import Tensor

from kit.data.footprints import BUILDING, IGNORE


@dataclass(frozen=True)
class Counts:
    """Pixels found (tp), invented (fp) and missed (fn)."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def jaccard(self) -> float:
        """tp / (tp + fp + fn); 1 where there is nothing to find and nothing was found."""
        union = self.tp + self.fp + self.fn
        return self.tp / union if union else 1.0


def count(found: NDArray[Any] | Tensor, truth: NDArray[Any] | Tensor) -> Counts:
    """Returns the counts of one prediction.

    Args:
        found: bool, any shape: where a building was predicted.
        truth: uint8 or int64, same shape: 0, 1, 255 = does not count.
    """
    known = truth != IGNORE
    building = truth == BUILDING
    return Counts(int((found & building).sum()), int((found & known & ~building).sum()), int((~found & building).sum()))


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
