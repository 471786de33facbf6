from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from kit.data.masks import Counts, count
from kit.models.metrics import PooledJaccard


def test_pooled_over_batches_of_different_content():
    random = np.random.default_rng(0)
    metric = PooledJaccard()
    metric.reset()
    found, truth = [], []
    for share in (0.0, 0.1, 0.9):
        y = torch.from_numpy((random.random((2, 8, 8)) < share).astype(np.int64))
        logits = torch.from_numpy(random.normal(size=(2, 2, 8, 8)))
        metric.accumulate(SimpleNamespace(pred=logits, y=y))
        found.append(logits.argmax(1).numpy().ravel())
        truth.append(y.numpy().ravel())
    assert metric.value == pytest.approx(jaccard_score(np.concatenate(truth), np.concatenate(found)))


def test_no_data_does_not_count():
    truth = np.array([1, 0, 255, 255, 1])
    assert count(np.array([True, True, True, False, False]), truth) == Counts(tp=1, fp=1, fn=1)


def test_nothing_to_find_and_nothing_found_is_one():
    assert Counts().jaccard == 1.0
