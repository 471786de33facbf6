"""fastai callbacks that choose the crops of each epoch, and divide them among the ranks."""

from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from typing import Any

import numpy as np
from fastai.callback.core import Callback

from kit.system.ranks import rank, ranks


def draw_length(learn: Any) -> int | None:
    """Returns how many crops an epoch draws over all ranks; None where a `TimeBudget` ends the epoch."""
    open_ended = getattr(getattr(learn, "length", None), "open_ended", False)
    return None if open_ended else learn.dls.train.n * ranks()


class Draw(Callback):
    """Draws the crops of an epoch: every tile once, in a new order each time. `BalancedSampler` replaces this draw.

    The draw depends on (seed, epoch) alone, with epochs counted over all fits of a recipe. All ranks draw the same.
    """

    order = -30  # before BalancedSampler

    def __init__(self) -> None:
        self.begun = 0

    def before_fit(self) -> None:
        """Sets the length of an epoch; a sampler and a `Length` may change it."""
        self.dls.train.n = len(self.dls.train.dataset)

    def before_train(self) -> None:
        """Tells the training set the number of the epoch, and hands the draw to its loader."""
        train = self.dls.train
        train.dataset.epoch = self.begun
        random = np.random.default_rng([train.dataset.seed, self.begun])
        tiles = len(train.dataset)
        rows = chain.from_iterable(random.permutation(tiles).tolist() for _ in count())
        keys = islice(enumerate(rows), draw_length(self.learn))
        train.get_idxs = lambda: keys

    def after_train(self) -> None:
        """Counts the epoch."""
        self.begun += 1

    def state_dict(self) -> dict[str, int]:
        """Returns the number of the epoch that comes next, or is under way."""
        return {"begun": self.begun}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Counts on from there."""
        self.begun = state["begun"]


class Deal(Callback):
    """Divides the draw among the ranks: each step takes one batch for each rank, so that no crop is used twice."""

    order = -8  # after the samplers, before the Length

    def __init__(self) -> None:
        self.skip = self.skipped = 0  # steps done in an earlier session: of the next epoch, of this one

    def before_fit(self) -> None:
        """Turns the length of an epoch, in crops over all ranks, into whole batches of this rank."""
        train = self.dls.train
        train.n = max(1, train.n // (train.bs * ranks())) * train.bs

    def before_train(self) -> None:
        """Keeps this rank's share of the draw: without the steps that were done before."""
        train = self.dls.train
        keys = islice(self._own(train.get_idxs(), train.bs), self.skip * train.bs, None)
        train.get_idxs = lambda: keys
        self.skip, self.skipped = 0, self.skip

    def _own(self, keys: Iterable[Any], size: int) -> Iterator[Any]:
        number, of = rank(), ranks()
        return (key for place, key in enumerate(keys) if place // size % of == number)
