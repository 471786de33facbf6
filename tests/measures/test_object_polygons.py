"""Polygons, against the same buildings as masks."""

import numpy as np
import pytest
import shapely
import shapely.affinity
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from kit.data import polygon_store
from kit.data.polygon_store import PolygonStore
from kit.measures import object_polygons
from kit.measures.object_masks import compare_ids
from kit.measures.object_polygons import compare_polygons

SIDE = 60


@st.composite
def apart(draw: st.DrawFn) -> np.ndarray:
    """Rectangles of whole metres on a 3 x 3 lattice: they may touch, and never overlap."""
    boxes = []
    for cell in range(9):
        left, bottom = 20 * (cell % 3), 20 * (cell // 3)
        if draw(st.booleans()):
            x, y, width, height = (draw(st.integers(*limits)) for limits in ((0, 8), (0, 8), (1, 12), (1, 12)))
            boxes.append(shapely.box(left + x, bottom + y, left + x + width, bottom + y + height))
    return np.array(boxes, dtype=object)


def burnt(polygons: np.ndarray) -> np.ndarray:
    shapes = [(polygon, number) for number, polygon in enumerate(polygons, start=1)]
    return rasterize(shapes, (SIDE, SIDE), dtype="int32") if shapes else np.zeros((SIDE, SIDE), np.int32)


@settings(max_examples=80, deadline=None)
@given(apart(), apart(), st.integers(0, 3))
def test_polygons_score_as_their_pixels(true: np.ndarray, predicted: np.ndarray, width: int):
    """Bands of rectangles are the same in both: their inner outline has no round corners."""
    compared = compare_polygons(true, predicted, width)
    pixels = compare_ids(burnt(predicted), burnt(true), np.ones((SIDE, SIDE), bool), width)
    row, expected = compared.objects.row(), pixels.row()
    assert row == pytest.approx(expected)
    built = [burnt(side) > 0 for side in (true, predicted)]
    assert compared.shared_m2 == pytest.approx((built[0] & built[1]).sum())
    assert compared.union_m2 == pytest.approx((built[0] | built[1]).sum())


@st.composite
def anywhere(draw: st.DrawFn) -> np.ndarray:
    """Turned rectangles that may overlap, touch or be equal, and now and then a multipolygon."""
    found: list[shapely.Geometry] = []
    for _ in range(draw(st.integers(0, 12))):
        left, bottom, width, height = (draw(st.integers(*ends)) for ends in ((0, 30), (0, 30), (1, 9), (1, 9)))
        box = shapely.box(left, bottom, left + width, bottom + height)
        turned = shapely.affinity.rotate(box, draw(st.sampled_from((0, 0, 17))))
        far = shapely.affinity.translate(turned, 40, 0)
        found.append(shapely.MultiPolygon([turned, far]) if draw(st.integers(0, 5)) == 5 else turned)
    return np.array([*found, None], dtype=object)[:-1]


@settings(max_examples=60, deadline=None)
@given(anywhere(), anywhere(), st.integers(1, 4))
def test_memory_changes_nothing(true: np.ndarray, predicted: np.ndarray, block: int):
    """The same numbers to the last bit, however few polygons are in memory at once."""
    whole = compare_polygons(true, predicted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polygon_store, "BLOCK", block)
        assert compare_polygons(true, predicted) == whole
    sides = [shapely.union_all(side) for side in (true, predicted)]
    assert whole.shared_m2 == pytest.approx(shapely.area(shapely.intersection(*sides)), abs=1e-6)
    assert whole.union_m2 == pytest.approx(shapely.area(shapely.union(*sides)))


def test_few_polygons_are_in_memory_at_once(monkeypatch: pytest.MonkeyPatch):
    """Of two millions, too, also where one set covers a single polygon of the other."""
    rows, columns = np.divmod(np.arange(3000), 60)
    true = shapely.box(12 * columns, 12 * rows, 12 * columns + 8, 12 * rows + 8)
    predicted = shapely.box(12 * columns + 1, 12 * rows, 12 * columns + 9, 12 * rows + 8)
    everything = np.array([shapely.box(0, 0, 12 * 60, 12 * 50)])
    whole = [compare_polygons(side, predicted) for side in (true, everything)]
    taken: list[int] = []

    class Watched(PolygonStore):
        def __getitem__(self, places: np.ndarray) -> np.ndarray:
            taken.append(len(places))
            return super().__getitem__(places)

    monkeypatch.setattr(polygon_store, "BLOCK", 50)
    monkeypatch.setattr(object_polygons, "PolygonStore", Watched)
    assert [compare_polygons(side, predicted) for side in (true, everything)] == whole
    assert max(taken) <= 100
    assert whole[0].objects.matched[0] == 3000
    assert whole[1].jaccard == pytest.approx(3000 * 64 / everything[0].area)


def test_overlapping_polygons_count_their_area_once():
    predicted = np.array([shapely.box(0, 0, 10, 10), shapely.box(5, 0, 15, 10), shapely.box(20, 0, 30, 10)])
    true = np.array([shapely.box(0, 0, 15, 10), shapely.box(20, 0, 30, 10)])
    compared = compare_polygons(true, predicted)
    assert compared.jaccard == 1.0
    assert (compared.objects.predicted, compared.objects.splits) == (3, 1)
    assert compared.objects.matched[0] == 2  # 0.67 and 1


def test_nothing():
    none = np.array([], dtype=object)
    assert compare_polygons(none, none).jaccard == 1.0
    assert compare_polygons(none, none).objects.f1 == 1.0
    one = np.array([shapely.box(0, 0, 10, 10)])
    for sides in ((one, none), (none, one)):
        compared = compare_polygons(*sides)
        assert (compared.jaccard, compared.objects.f1, compared.objects.boundary_iou) == (0.0, 0.0, 0.0)
