from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from kit.models.metrics import PooledJaccard


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
