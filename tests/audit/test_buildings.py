"""Labels and predicted outlines: Jaccard indices, parts without a label, verdicts."""

import numpy as np
import pytest
import shapely
from shapely import Polygon, box

from kit.audit.buildings import Match, judge_label, judge_prediction, match

SURE = (0.95, 0.02, 1.0)  # confidence, spread, imagery
NOTHING = (0.02, 0.02, 1.0)


def matched(labels: list[Polygon], predicted: list[Polygon]) -> Match:
    return match(*(np.array([*outlines, None], dtype=object)[:-1] for outlines in (labels, predicted)))


def test_equal_outlines():
    found = matched([box(0, 0, 10, 10)], [box(0, 0, 10, 10)])
    assert found.jaccard == pytest.approx([1.0])
    assert found.objects.tolist() == [1]
    assert not len(found.unlabelled)


def test_a_label_without_prediction_and_a_prediction_without_label():
    found = matched([box(0, 0, 10, 10)], [box(50, 0, 60, 10)])
    assert found.jaccard.tolist() == [0.0]
    assert [outline.bounds for outline in found.unlabelled] == [(50, 0, 60, 10)]


def test_neighbours_share_an_object():
    found = matched([box(0, 0, 10, 10), box(10.5, 0, 20, 10)], [box(0, 0, 20, 10)])
    assert (found.jaccard > 0.95).all()
    assert not len(found.unlabelled)


def test_a_neighbour_without_a_label_is_a_building_of_its_own():
    found = matched([box(0, 0, 10, 10)], [box(0, 0, 20, 10)])
    assert found.jaccard[0] > 0.9
    (part,) = found.unlabelled
    assert shapely.area(shapely.intersection(part, box(10.5, 0, 20, 10))) / 95 > 0.9


def test_a_wider_outline_is_no_other_building():
    found = matched([box(1, 1, 10, 10)], [box(0, 0, 11, 11)])
    assert not len(found.unlabelled)
    assert found.jaccard == pytest.approx([81 / 121])


def test_one_label_over_two_objects():
    found = matched([box(0, 0, 24, 10)], [box(0, 0, 10, 10), box(14, 0, 24, 10)])
    assert found.objects.tolist() == [2]
    assert found.jaccard == pytest.approx([200 / 240])


def test_nothing_at_all():
    found = matched([], [])
    assert not len(found.jaccard)
    assert not len(found.unlabelled)
    assert matched([], [box(0, 0, 9, 9)]).unlabelled.tolist() == [box(0, 0, 9, 9)]


@pytest.mark.parametrize(
    ("jaccard", "objects", "support", "moved", "trusted", "verdict"),
    [(0.9, 1, SURE, False, True, "keep"),
     (0.9, 1, SURE, True, True, "shift"),
     (0.7, 2, SURE, True, True, "reshape"),
     (0.4, 1, SURE, False, True, "reshape"),
     (0.0, 0, NOTHING, False, True, "drop"),
     (0.0, 0, NOTHING, False, False, "ignore"),  # it may belong to a building elsewhere
     (0.9, 1, SURE, False, False, "keep"),
     (0.0, 0, (0.5, 0.02, 1.0), False, True, "ignore"),
     (0.0, 0, (0.1, 0.4, 1.0), False, True, "ignore"),
     (0.0, 0, (0.0, 0.0, 0.2), False, True, "ignore")],
)  # fmt: skip
def test_verdicts_of_labels(jaccard: float, objects: int, support: tuple, moved: bool, trusted: bool, verdict: str):
    found, reason = judge_label(jaccard, objects, support, moved, trusted)
    assert found == verdict
    assert bool(reason) == (verdict != "keep")


@pytest.mark.parametrize(
    ("support", "near", "verdict"),
    [
        (SURE, False, "add"),
        (SURE, True, "ignore"),
        ((0.5, 0.02, 1.0), False, "ignore"),
        ((0.9, 0.4, 1.0), False, "ignore"),
    ],
)
def test_verdicts_of_predictions(support: tuple, near: bool, verdict: str):
    found, reason = judge_prediction(support, near)
    assert found == verdict
    assert reason
