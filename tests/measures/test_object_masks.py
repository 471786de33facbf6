"""Objects in masks, against torchmetrics' panoptic quality and the boundary IoU of its authors."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.measures import object_masks
from kit.measures.object_masks import boundary_width, compare_ids, compare_masks, components

SIDE = 24


@st.composite
def drawn_ids(draw: st.DrawFn) -> np.ndarray:
    """Up to six rectangles, later ones over earlier ones: they touch, are cut, or vanish."""
    ids = np.zeros((SIDE, SIDE), np.int32)
    for number in range(1, draw(st.integers(0, 6)) + 1):
        top, left, height, width = (draw(st.integers(*limits)) for limits in ((0, 20), (0, 20), (1, 12), (1, 12)))
        ids[top : top + height, left : left + width] = number
    return ids


@st.composite
def scenes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted ids, true ids, known pixels; the prediction is often the truth, moved by some pixels."""
    true = draw(drawn_ids())
    moved = np.roll(true, draw(st.integers(-3, 3)), axis=draw(st.integers(0, 1)))
    predicted = draw(st.one_of(st.just(moved), drawn_ids()))
    known = np.ones((SIDE, SIDE), bool)
    known[:, : draw(st.integers(0, 8))] = False
    return predicted, np.where(known, true, 0), known


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_panoptic_quality_is_that_of_torchmetrics(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]):
    detection = pytest.importorskip("torchmetrics.functional.detection")
    import torch

    predicted, true, known = drawn
    counts = compare_ids(predicted, true, known)
    if not counts.true and not counts.predicted:
        assert counts.panoptic_quality == 1.0
        return
    target = np.stack([np.where(known, true > 0, 2), true], axis=2)  # category 2 is not known, and ignored
    found = np.stack([predicted > 0, predicted], axis=2)
    sides = [torch.from_numpy(np.asarray(side, np.int64))[None] for side in (found, target)]
    scores = detection.panoptic_quality(*sides, things={1}, stuffs={0}, return_sq_and_rq=True, return_per_class=True)
    quality, segmentation, recognition = scores[0]  # of the things
    assert counts.panoptic_quality == pytest.approx(float(quality), abs=1e-6)
    assert counts.f1 == pytest.approx(float(recognition), abs=1e-6)
    assert counts.segmentation_quality == pytest.approx(float(segmentation), abs=1e-6)


def authors_band(mask: np.ndarray, width: int) -> np.ndarray:
    """The boundary of one mask as Cheng et al. 2021 define it: what erosion by 3 x 3, `width` times, takes away."""
    padded = np.pad(mask.astype(np.uint8), 1)
    return mask & ~cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1].astype(bool)


@settings(max_examples=100, deadline=None)
@given(drawn_ids(), drawn_ids(), st.integers(1, 5))
def test_boundary_iou_is_that_of_its_authors(predicted: np.ndarray, true: np.ndarray, width: int):
    masks = compare_masks(predicted > 0, (true > 0).astype(np.uint8), width)
    bands = [authors_band(ids > 0, width) for ids in (predicted, true)]
    assert (masks.boundary_hit, masks.boundary_union) == ((bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum())
    objects = compare_ids(predicted, true, np.ones((SIDE, SIDE), bool), width)
    bands = [
        np.any([authors_band(ids == number, width) for number in range(1, 7)], axis=0) for ids in (predicted, true)
    ]
    assert (objects.boundary_hit, objects.boundary_union) == ((bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum())


@settings(max_examples=50, deadline=None)
@given(scenes())
def test_sorted_and_counted_overlaps_agree(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]):
    counted = compare_ids(*drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(object_masks, "TABLE", 0)
        assert compare_ids(*drawn) == counted


def test_ids_need_not_be_consecutive():
    true = np.zeros((8, 8), np.int64)
    true[:3, :3], true[4:, 4:] = 7, 1_000_000
    counts = compare_ids(true * 2, true, np.ones((8, 8), bool))
    assert (counts.true, counts.predicted, counts.f1_mean) == (2, 2, 1.0)


def test_components_connect_by_sides():
    assert components(np.array([[1, 0], [0, 1]], bool)).max() == 2
    assert components(np.array([[1, 1], [0, 1]], bool)).max() == 1
    assert components(np.zeros((3, 3), bool)).max() == 0


def test_objects_without_data_are_left_out():
    """A prediction that lies in pixels without data is no error; one that reaches into them is judged by the rest."""
    truth, predicted = np.zeros((10, 10), np.uint8), np.zeros((10, 10), bool)
    truth[:, :4] = 255
    predicted[0:2, 0:5] = True  # four fifths without data
    truth[5:7, 4:8] = 1
    predicted[5:7, 2:8] = True
    counts = compare_masks(predicted, truth)
    assert (counts.true, counts.predicted, counts.f1_mean) == (1, 1, 1.0)


@pytest.mark.parametrize(("gsd_m", "width"), [(0.1, 10), (0.3, 3), (5.0, 1), (0.0, 0)])
def test_the_band_has_a_width_in_metres(gsd_m: float, width: int):
    assert boundary_width(gsd_m) == width
