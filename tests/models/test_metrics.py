from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

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
