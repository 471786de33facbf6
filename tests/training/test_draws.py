"""Which crops an epoch trains on: drawn once, dealt out to the ranks, group by group as often as was asked for."""

from collections import Counter
from collections.abc import Callable
from math import sqrt
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD
from torch import Tensor, nn

from kit.training import draws
from kit.training.callbacks import BalancedSampler
from kit.training.checkpoint import Resume
from kit.training.draws import Deal, Draw
from kit.training.length import StepCount

pytestmark = pytest.mark.usefixtures("one_thread")

Cli = Callable[..., tuple[int, str, str]]
Epoch = list[list[tuple[int, int]]]  # keys (place, row) of each step's batch
SCENES = {"kam/a": 24, "kam/b": 6, "kam/c": 3, "znz/d": 12, "mon/e": 2}  # tiles
TIERS = {"kam/a": 1, "kam/b": 2, "kam/c": 2, "znz/d": 1, "mon/e": 1}


def make_rows(scenes: dict[str, int] = SCENES) -> pd.DataFrame:
    rows = [(f"{name}{i}", *name.split("/"), TIERS.get(name, 1)) for name, n in scenes.items() for i in range(n)]
    return pd.DataFrame(rows, columns=["tile", "area", "scene", "tier"])


class Tiles:
    """A data set whose crops are their own keys."""

    def __init__(self, rows: pd.DataFrame, seed: int = 0) -> None:
        self.rows, self.seed, self.epoch = rows, seed, -1

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> tuple[Tensor, Tensor]:
        return torch.tensor([*key, self.epoch]), torch.tensor(0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, keys: Tensor) -> Tensor:
        return self.weight * keys.sum()


class Watch(Callback):
    """Keeps the keys of each step; the epoch that the crops were drawn for must be the one under way."""

    order = 90

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []

    def before_train(self) -> None:
        self.epochs.append([])

    def after_batch(self) -> None:
        assert {epoch for _, _, epoch in self.x.tolist()} == {len(self.epochs) - 1}
        self.epochs[-1].append([(place, row) for place, row, _ in self.x.tolist()])


def learner(*cbs: Callback, rows: pd.DataFrame | None = None, batch: int = 2, seed: int = 0) -> Any:
    tiles = Tiles(make_rows() if rows is None else rows, seed)
    loaders = DataLoaders(
        DataLoader(tiles, bs=batch, shuffle=True, drop_last=True), DataLoader(Tiles(tiles.rows[:0]), bs=batch),
        device=torch.device("cpu"),
    )  # fmt: skip
    cbs = (Draw(), Deal(), Watch(), *cbs)
    learn = Learner(loaders, Net(), lambda pred, _: pred, opt_func=SGD, lr=0.0, cbs=cbs)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = lambda _: None
    return learn


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes this process one of several, as far as the draw is concerned."""

    def become(number: int, size: int) -> None:
        monkeypatch.setattr(draws, "ranks", lambda: size)
        monkeypatch.setattr(draws, "rank", lambda: number)

    return become


def drawn(*cbs: Callback, epochs: int = 2, **options: Any) -> list[Epoch]:
    learn = learner(*cbs, **options)
    learn.fit(epochs)
    return learn.watch.epochs


def rows_of(epoch: Epoch) -> list[int]:
    return [row for batch in epoch for _, row in batch]


SAMPLERS: dict[str, Callable[[], tuple[Callback, ...]]] = {
    "every tile": tuple,
    "balanced": lambda: (BalancedSampler(),),
    "many crops": lambda: (BalancedSampler(temperature=0.5, crops_per_tile=1.3),),
    "steps": lambda: (StepCount(80, [2]), Resume(None, 0)),
    "balanced steps": lambda: (BalancedSampler(), StepCount(18, [2]), Resume(None, 0)),
}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_shares_of_the_ranks_are_the_one_draw(as_rank: Callable[[int, int], None], sampler: str, size: int):
    """Step by step, they are the batch of one process whose batches are `size` times as large."""
    shares = []
    for number in range(size):
        as_rank(number, size)
        shares.append(drawn(*SAMPLERS[sampler](), batch=2))
    as_rank(0, 1)
    whole = drawn(*SAMPLERS[sampler](), batch=2 * size)
    for epoch in range(2):
        places = [{place for batch in share[epoch] for place, _ in batch} for share in shares]
        assert sum(map(len, places)) == len(set().union(*places)) == 2 * size * len(whole[epoch])
        together = [[key for batch in step for key in batch] for step in zip(*(s[epoch] for s in shares), strict=True)]
        assert together == whole[epoch]
        assert [place for batch in whole[epoch] for place, _ in batch] == list(range(2 * size * len(whole[epoch])))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_draw_is_that_of_seed_and_epoch(sampler: str):
    first = drawn(*SAMPLERS[sampler](), epochs=3)
    torch.manual_seed(5)
    np.random.seed(5)
    assert drawn(*SAMPLERS[sampler](), epochs=3) == first
    assert first[0] != first[1] != first[2] != first[0]
    assert all(one != other for one, other in zip(drawn(*SAMPLERS[sampler](), epochs=3, seed=1), first, strict=True))


def test_epochs_are_counted_over_all_fits():
    learn = learner()
    for n in (2, 1):
        learn.fit(n)
    assert learn.watch.epochs == drawn(epochs=3)


@pytest.mark.parametrize(("scenes", "batch", "size"), [(SCENES, 1, 1), ({"kam/a": 12}, 2, 2), ({"kam/a": 13}, 2, 3)])
def test_every_tile_comes_once_an_epoch(
    as_rank: Callable[[int, int], None], scenes: dict[str, int], batch: int, size: int
):
    epochs: list[list[int]] = [[], []]
    for number in range(size):
        as_rank(number, size)
        for seen, epoch in zip(epochs, drawn(rows=make_rows(scenes), batch=batch), strict=True):
            seen.extend(rows_of(epoch))
    tiles = sum(scenes.values())
    for seen in epochs:
        assert len(seen) == len(set(seen)) == tiles - tiles % (batch * size)
    assert epochs[0] != epochs[1]


def test_over_epochs_no_tile_is_left_out():
    """Where the tiles are no whole number of batches, others are left out each time."""
    seen = Counter(row for epoch in drawn(rows=make_rows({"kam/a": 7}), batch=4, epochs=200) for row in rows_of(epoch))
    expected, deviation = 200 * 4 / 7, sqrt(200 * 4 / 7 * (3 / 7))
    assert max(abs(seen[row] - expected) for row in range(7)) < 4.5 * deviation


def test_fewer_tiles_than_a_step_takes(as_rank: Callable[[int, int], None]):
    as_rank(1, 2)
    ((batch,),) = drawn(rows=make_rows({"kam/a": 3}), batch=4, epochs=1)
    assert [place for place, _ in batch] == [4, 5, 6, 7]


GROUPS = [("area", "scene"), ("area",), ("tier",), ("area", "tier"), ("tile",)]


def expected_shares(rows: pd.DataFrame, by: tuple[str, ...], temperature: float) -> dict[Any, float]:
    """By hand: a group of n tiles gets n to the power 1 - temperature."""
    sizes = Counter(zip(*(rows[column] for column in by), strict=True))
    powers = {group: n ** (1 - temperature) for group, n in sizes.items()}
    return {group: power / sum(powers.values()) for group, power in powers.items()}


def assert_shares(rows: pd.DataFrame, by: tuple[str, ...], seen: list[int], shares: dict[Any, float]) -> None:
    """Each group was seen as often as its share, within 4.5 standard deviations of the binomial distribution."""
    chosen = rows.iloc[seen]
    counts = Counter(zip(*(chosen[column] for column in by), strict=True))
    for group, share in shares.items():
        deviation = sqrt(len(seen) * share * (1 - share))
        assert abs(counts[group] - len(seen) * share) < 4.5 * deviation, (group, counts)


def dealt(sampler: BalancedSampler, rows: pd.DataFrame, epochs: int = 2) -> list[int]:
    """Rows that a rank gets in some epochs, by the callbacks alone: thousands of crops need no network."""
    train = SimpleNamespace(dataset=Tiles(rows), bs=10, n=None)
    cbs = [Draw(), sampler, Deal()]
    for cb in cbs:
        cb.learn = SimpleNamespace(dls=SimpleNamespace(train=train))
        cb.before_fit()
    seen = []
    for _ in range(epochs):
        for cb in cbs:
            cb.before_train()
        seen += [row for _, row in train.get_idxs()]
        cbs[0].after_train()
    return seen


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("by", GROUPS, ids="-".join)
def test_groups_are_seen_as_often_as_was_asked_for(
    as_rank: Callable[[int, int], None], by: tuple[str, ...], temperature: float, size: int
):
    """On each rank by itself, and on all together; and the tiles of a group equally often."""
    rows, shares = make_rows(), expected_shares(make_rows(), by, temperature)
    seen: list[int] = []
    for number in range(size):
        as_rank(number, size)
        own = dealt(BalancedSampler(by, temperature, crops_per_tile=100 * size), rows)
        assert len(own) == 2 * 100 * len(rows)
        assert_shares(rows, by, own, shares)
        seen += own
    assert_shares(rows, by, seen, shares)
    times = Counter(seen)
    for places in rows.groupby(list(by)).indices.values():
        mean = sum(times[place] for place in places) / len(places)
        assert max(abs(times[place] - mean) for place in places) < 4.5 * sqrt(mean)


def test_the_expected_shares_by_hand():
    rows = make_rows()
    assert set(expected_shares(rows, ("area", "scene"), 1.0).values()) == {0.2}
    assert expected_shares(rows, ("area",), 0.0)[("kam",)] == pytest.approx(33 / 47)
    half = expected_shares(rows, ("area", "scene"), 0.5)
    assert half["kam", "a"] / half["kam", "b"] == pytest.approx(2)  # 24 tiles to 6


@pytest.mark.parametrize(("asked", "expected"), [(0.85, 1.0), (0.65, 0.5), (0.15, 0.0)])
def test_the_bound_tells_temperatures_apart(asked: float, expected: float):
    rows, by = make_rows(), ("area", "scene")
    seen = dealt(BalancedSampler(by, asked, crops_per_tile=100), rows)
    with pytest.raises(AssertionError):
        assert_shares(rows, by, seen, expected_shares(rows, by, expected))


def test_more_steps_than_tiles_need_no_sampler():
    """Every tile comes as often as every other, give or take one."""
    for epoch in drawn(StepCount(100, [2]), Resume(None, 0), batch=2):
        assert len(epoch) == 50
        times = Counter(rows_of(epoch))
        assert set(times.values()) == {2, 3}
        assert len(times) == 47


def test_steps_that_were_done_are_left_out_once(as_rank: Callable[[int, int], None]):
    as_rank(1, 2)
    whole = drawn(epochs=3)
    learn = learner()
    learn.deal.skip = 4
    skipped = []
    learn.add_cb(Noting(skipped))
    learn.fit(3)
    assert learn.watch.epochs == [whole[0][4:], *whole[1:]]
    assert skipped == [4, 0, 0]


class Noting(Callback):
    """Keeps how many steps were left out, as the bar asks for it."""

    def __init__(self, skipped: list[int]) -> None:
        self.skipped = skipped

    def before_train(self) -> None:
        self.skipped.append(self.learn.deal.skipped)
