from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import jaccard_score

from kit.data.masks import count
from kit.models import metrics
from kit.models.losses import BCE, CrossEntropy
from kit.models.metrics import PooledJaccard, PooledLoss


@pytest.mark.parametrize("channels", [1, 3])
def test_footprint_channel_and_layers(channels: int):
    metric = PooledJaccard()
    metric.reset()
    logits = torch.full((1, channels, 2, 2), 9.0)  # boundary and contact do not count
    logits[:, 0] = torch.tensor([[2.0, -1.0], [3.0, 4.0]])
    footprint = torch.tensor([[[1, 1], [0, 255]]])
    y = footprint if channels == 1 else torch.stack([footprint, 1 - footprint, footprint], dim=1)
    metric.accumulate(SimpleNamespace(pred=logits, y=y, dl=None, training=False))
    assert metric.value == pytest.approx(1 / 3)


def test_pooled_over_batches_of_different_content():
    random = np.random.default_rng(0)
    metric = PooledJaccard()
    metric.reset()
    found, truth = [], []
    for share in (0.0, 0.1, 0.9):
        y = torch.from_numpy((random.random((2, 8, 8)) < share).astype(np.int64))
        logits = torch.from_numpy(random.normal(size=(2, 2, 8, 8)))
        metric.accumulate(SimpleNamespace(pred=logits, y=y, dl=None, training=False))
        found.append(logits.argmax(1).numpy().ravel())
        truth.append(y.numpy().ravel())
    assert metric.value == pytest.approx(jaccard_score(np.concatenate(truth), np.concatenate(found)))


def batch(y: torch.Tensor, pred: torch.Tensor, areas: list[str] | None = None, **more: Any) -> SimpleNamespace:
    """What a metric sees of a Learner; `areas` are those of all tiles of the loader."""
    rows = SimpleNamespace(rows=None if areas is None else pd.DataFrame({"area": areas}))
    return SimpleNamespace(pred=pred, y=y, dl=SimpleNamespace(dataset=rows), training=False, **more)


def tiles(n: int, channels: int = 2, form: tuple[int, ...] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets of n tiles of 8 x 8 px; the further on a tile is, the less of it is known."""
    random = torch.Generator().manual_seed(n)
    y = torch.randint(0, 2, (n, *form, 8, 8), generator=random)
    for number in range(n):
        y[number, ..., : 8 * number // (n - 1), :] = 255  # of the last one, nothing
    return torch.randn(n, channels, 8, 8, generator=random, dtype=torch.float64), y


CUTS = [[7], [1] * 7, [3, 3, 1], [1, 6], [6, 1]]  # tiles of each batch


@pytest.mark.parametrize("sizes", CUTS)
@pytest.mark.parametrize("layers", [False, True])
def test_the_loss_is_the_mean_over_pixels_however_tiles_are_batched(sizes: list[int], layers: bool):
    pred, y = tiles(7, 3 if layers else 2, (3,) if layers else ())
    loss = BCE() if layers else CrossEntropy()
    metric = PooledLoss()
    metric.reset()
    means = []
    for part, target in zip(pred.split(sizes), y.split(sizes), strict=True):
        means.append(float(loss(part, target)))
        metric.accumulate(batch(target, part, loss=loss(part, target)))
    assert metric.value == pytest.approx(float(loss(pred, y)), rel=1e-12)
    if len(sizes) > 1:  # fastai's own, the mean over batches, would be another
        assert np.mean(means) != pytest.approx(metric.value, rel=1e-3)
    assert metric.name == "loss"


def test_a_loss_of_no_pixels_is_none():
    metric = PooledLoss()
    metric.reset()
    assert metric.value is None
    pred, y = tiles(2)
    metric.accumulate(batch(torch.full_like(y, 255), pred, loss=torch.tensor(0.0)))
    assert metric.value is None
    metric.accumulate(batch(y, pred, loss=torch.tensor(0.25)))
    assert metric.value == 0.25
    metric.reset()
    assert metric.value is None


@pytest.mark.parametrize("sizes", CUTS)
def test_areas_are_counted_by_themselves(sizes: list[int]):
    areas = ["kam", "znz", "znz", "kam", "mon", "kam", "kam"]
    pred, y = tiles(7)
    metric = PooledJaccard()
    for _ in range(2):  # of an epoch's validation, nothing is left for the next
        metric.reset()
        assert metric.by_area == {}
        for part, target in zip(pred.split(sizes), y.split(sizes), strict=True):
            metric.accumulate(batch(target, part, areas))
        assert metric.value == count(pred.argmax(1) == 1, y).jaccard
        assert list(metric.by_area) == ["kam", "mon", "znz"]
        for area, counts in metric.by_area.items():
            own = torch.tensor([name == area for name in areas])
            assert counts == count(pred[own].argmax(1) == 1, y[own])


def test_crops_of_training_have_no_area():
    pred, y = tiles(4)
    metric = PooledJaccard()
    metric.reset()
    seen = batch(y, pred, ["kam"] * 4)
    seen.training = True
    metric.accumulate(seen)
    assert metric.value == count(pred.argmax(1) == 1, y).jaccard
    assert list(metric.by_area) == [""]


def test_ranks_are_pooled(monkeypatch: pytest.MonkeyPatch):
    """Rank 1 has fewer tiles, and an area of its own; a third rank has no tile at all."""
    pred, y = tiles(7)
    areas = [["kam", "kam", "znz", "kam", "kam"], ["znz", "mon"], []]
    losses, scores = ([PooledLoss() for _ in range(3)], [PooledJaccard() for _ in range(3)])
    start = 0
    for loss, score, own in zip(losses, scores, areas, strict=True):
        loss.reset()
        score.reset()
        for place in range(start, start + len(own)):
            part, target = pred[place : place + 1], y[place : place + 1]
            seen = batch(target, part, own, loss=CrossEntropy()(part, target))
            loss.accumulate(seen)
            score.accumulate(seen)
        start += len(own)
    monkeypatch.setattr(metrics, "gathered", lambda _: [(loss.total, loss.pixels) for loss in losses])
    assert [loss.value for loss in losses] == [pytest.approx(float(CrossEntropy()(pred, y)), rel=1e-12)] * 3
    monkeypatch.setattr(metrics, "gathered", lambda _: [score.own for score in scores])
    found = pred.argmax(1) == 1
    expected = {
        area: count(found[places], y[places])
        for area, places in {"kam": [0, 1, 3, 4], "mon": [6], "znz": [2, 5]}.items()
    }
    for score in scores:
        assert score.value == count(found, y).jaccard
        assert score.by_area == expected
