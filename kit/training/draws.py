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
    """Draws every tile once per epoch, in random order. `BalancedSampler` replaces this draw.

    The draw depends only on (seed, epoch), with epochs counted over all fits of a recipe. It is the same on all ranks.
    """

    order = -30  # before BalancedSampler

    def __init__(self) -> None:
        self.started = 0  # epochs over all fits

    def before_fit(self) -> None:
        """Sets the length of an epoch; a sampler and a `Length` may change it."""
        self.dls.train.n = len(self.dls.train.dataset)

    def before_train(self) -> None:
        """Sets the epoch of the training set, and gives the draw to its loader."""
        train = self.dls.train
        train.dataset.epoch = self.started
        random = np.random.default_rng([train.dataset.seed, self.started])
        tiles = len(train.dataset)
        rows = chain.from_iterable(random.permutation(tiles).tolist() for _ in count())
        keys = islice(enumerate(rows), draw_length(self.learn))
        train.get_idxs = lambda: keys

    def after_train(self) -> None:
        """Counts the epoch."""
        self.started += 1

    def state_dict(self) -> dict[str, int]:
        """Returns the number of the current or next epoch."""
        return {"begun": self.started}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores the state."""
        self.started = state["begun"]


class Deal(Callback):
    """Divides the draw among the ranks, batch by batch."""

    order = -8  # after the samplers, before the Length

    def __init__(self) -> None:
        self.skip = self.skipped = 0  # steps done in an earlier session: of the next epoch, of this one

    def before_fit(self) -> None:
        """Converts the length of an epoch from crops of all ranks to whole batches of this rank."""
        train = self.dls.train
        train.n = max(1, train.n // (train.bs * ranks())) * train.bs

    def before_train(self) -> None:
        """Selects this rank's share of the draw, without steps that were done before."""
        train = self.dls.train
        keys = islice(self._own(train.get_idxs(), train.bs), self.skip * train.bs, None)
        train.get_idxs = lambda: keys
        self.skip, self.skipped = 0, self.skip

    def _own(self, keys: Iterable[Any], size: int) -> Iterator[Any]:
        number, of = rank(), ranks()
        return (key for place, key in enumerate(keys) if place // size % of == number)
