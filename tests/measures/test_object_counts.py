"""Object measures: cases worked out by hand, sums, and what 0/0 is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.measures.object_counts import IOUS, ObjectCounts, matched_counts, pool_objects


def test_scores_by_hand():
    """Three true, four predicted; two pairs, of IoU 0.6 and 0.9."""
    pairs, shared = np.array([[0, 0], [1, 1], [2, 2]]), np.array([75, 90, 10])
    counts, matches = matched_counts(np.array([100, 100, 100]), np.array([100, 90, 100, 5]), pairs, shared)
    assert matches.tolist() == [[0, 0], [1, 1]]
    assert counts.matched == (2, 2, 1, 1, 1, 1, 1, 1, 0, 0)  # above 0.5, 0.55, 0.6 ...: 0.6 is not above 0.6
    assert (counts.precision, counts.recall, counts.f1) == (2 / 4, 2 / 3, 4 / 7)
    assert counts.f1_mean == pytest.approx((2 * 4 + 6 * 2) / 7 / 10)
    assert counts.panoptic_quality == pytest.approx((0.6 + 0.9) / (2 + 0.5 * 2 + 0.5 * 1))
    assert counts.panoptic_quality == pytest.approx(counts.segmentation_quality * counts.f1)
    assert counts.count_error == pytest.approx(1 / 3)
    assert counts.boundary_iou is None


def test_merges_and_splits_by_hand():
    """One prediction over true 0 and 1, two predictions in true 2; the half of true 3 is no majority."""
    true, predicted = np.array([10, 10, 40, 10]), np.array([30, 15, 15])
    pairs = np.array([[0, 0], [1, 0], [2, 1], [2, 2], [3, 0]])
    counts, _ = matched_counts(true, predicted, pairs, np.array([10, 6, 15, 8, 5]))
    assert (counts.merges, counts.splits) == (1, 1)
    assert counts.matched[0] == 0


def test_an_object_matches_once():
    """Predictions that overlap each other: the better of two is the match."""
    pairs, shared = np.array([[0, 0], [0, 1], [1, 1]]), np.array([60, 90, 60])
    counts, matches = matched_counts(np.array([100, 100]), np.array([60, 100]), pairs, shared)
    assert matches.tolist() == [[0, 1]]
    assert (counts.recall, counts.precision) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("counts", "score", "error"),
    [
        (ObjectCounts(), 1.0, 0.0),
        (ObjectCounts(true=3), 0.0, -1.0),
        (ObjectCounts(predicted=3), 0.0, None),
    ],
)
def test_zero_by_zero(counts: ObjectCounts, score: float, error: float | None):
    scores = [counts.precision, counts.recall, counts.f1, counts.f1_mean, counts.panoptic_quality]
    assert [*scores, counts.segmentation_quality] == [score] * 6
    assert counts.count_error == error
    assert counts.boundary_iou == (1.0 if score else None)


def counts_of(numbers: list[int]) -> ObjectCounts:
    true, predicted, merges, splits, *matched = numbers
    matched = sorted(matched, reverse=True)
    return ObjectCounts(true, predicted, tuple(matched), matched[0] * 0.75, merges, splits, 8.0 * true, 16.0 * true)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1000), min_size=14, max_size=14).map(counts_of), max_size=5))
def test_counts_add_up(parts: list[ObjectCounts]):
    whole = pool_objects(parts)
    assert whole == sum(parts, ObjectCounts())
    assert whole.matched == tuple(sum(part.matched[place] for part in parts) for place in range(len(IOUS)))
    assert ObjectCounts.from_row(whole.row()) == whole
