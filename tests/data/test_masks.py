import numpy as np
import torch

from kit.data.masks import Counts, count, pool


def test_no_data_does_not_count():
    truth = np.array([1, 0, 255, 255, 1])
    assert count(np.array([True, True, True, False, False]), truth) == Counts(tp=1, fp=1, fn=1)


def test_nothing_to_find_and_nothing_found_is_one():
    assert Counts().jaccard == 1.0


def test_tensors_count_as_arrays_do():
    random = np.random.default_rng(0)
    found, truth = random.random((8, 8)) < 0.5, random.choice([0, 1, 255], (8, 8))
    assert count(torch.from_numpy(found), torch.from_numpy(truth)) == count(found, truth)


def test_the_pooled_index_is_that_of_the_sum():
    assert pool([Counts(1, 1, 0), Counts(3, 0, 1)]) == Counts(4, 1, 1)
    assert pool([]) == Counts()
