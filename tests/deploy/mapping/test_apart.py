"""No building of a map overlaps another, whatever bands it was traced in."""

import numpy as np
import pytest
import shapely
from affine import Affine
from factories import UTM, at_kampala
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kit.deploy.mapping import apart
from kit.deploy.mapping.apart import Apart
from kit.deploy.mapping.polygons import Buildings, in_crs, in_degrees, outlined
from kit.deploy.mapping.scene import Frame
from kit.deploy.mapping.tracing import Tracer

SIDE, GSD_M = 160, 0.2


def frame() -> Frame:
    transform: Affine = at_kampala(UTM, GSD_M)
    return Frame(SIDE, SIDE, transform, UTM, GSD_M, GSD_M)


def settlement(seed: int) -> np.ndarray:
    """A mask of turned, crowded huts with alleys of a pixel or none."""
    import cv2

    random, mask = np.random.default_rng(seed), np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(30):
        centre, size = random.uniform(10, SIDE - 10, 2), random.uniform(8, 34, 2)
        corners = cv2.boxPoints((tuple(centre), tuple(size), float(random.uniform(0, 90)))).astype(np.int32)
        hut, around = np.zeros_like(mask), np.zeros_like(mask)
        cv2.fillPoly(hut, [corners], 1)
        cv2.dilate(hut, np.ones((3, 3), np.uint8), around)
        mask[(around == 1)] = 0
        mask[hut == 1] = 1
    return mask.astype(bool)


def mapped(mask: np.ndarray, band: int) -> Buildings:
    """The buildings of a mask that comes in bands, squared with a tolerance of three pixels."""
    tracer, keeper, parts = Tracer(), Apart(GSD_M), []
    for top in range(0, len(mask), band):
        part = mask[top : top + band]
        pieces = tracer.add(np.full(part.shape, 204, np.uint8), part, top)
        end = top + len(part)
        pieces += tracer.close() if end == len(mask) else []
        traced = outlined(pieces, frame(), 3 * GSD_M, squared=True)
        parts.append(keeper.add(traced, end, tracer.open) if end < len(mask) else keeper.last(traced))
    return Buildings.joined(parts)


def shared_area(polygons: np.ndarray) -> float:
    first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    once = first < second
    return float(shapely.area(shapely.intersection(polygons[first[once]], polygons[second[once]])).sum())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([SIDE, 61, 16]))
@example(0, 16)
def test_no_overlaps_in_bands_of_any_height(seed: int, band: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart, "MARGIN_PX", 24)  # so that buildings are released before the end
        found = mapped(settlement(seed), band)
    assert shapely.is_valid(found.polygons).all()
    for placed in (found.polygons, in_crs(found.polygons, frame())):
        assert shared_area(placed) < 1e-9
    degrees = in_degrees(found.polygons, frame())
    assert shared_area(degrees) < 1e-15  # 0.01 mm²
    whole = mapped(settlement(seed), SIDE)
    key = shapely.to_wkb(shapely.normalize(shapely.set_precision(found.polygons, 1e-6)))
    other = shapely.to_wkb(shapely.normalize(shapely.set_precision(whole.polygons, 1e-6)))
    assert sorted(key) == sorted(other)


def test_settlements_would_overlap():
    """Without cutting: otherwise the test above would prove nothing."""
    tracer = Tracer()
    mask = settlement(0)
    pieces = tracer.add(np.full(mask.shape, 204, np.uint8), mask, 0) + tracer.close()
    assert shared_area(outlined(pieces, frame(), 3 * GSD_M, squared=True).polygons) > 1


def of(*polygons: shapely.Polygon) -> Buildings:
    count = len(polygons)
    anchors = np.column_stack([np.arange(count), np.zeros((count, 2), int)])
    return Buildings(np.array(polygons, dtype=object), np.linspace(0.6, 0.9, count), anchors)


def test_the_larger_one_is_cut():
    large, small, alone = shapely.box(0, 0, 40, 40), shapely.box(35, 10, 55, 20), shapely.box(80, 0, 90, 9)
    for buildings in (of(large, small, alone), of(small, large, alone)):
        found = Apart(0.1).last(buildings)
        areas = sorted(shapely.area(found.polygons))
        assert areas[:2] == [90, 200]
        assert 1600 - 50 - 2 < areas[2] < 1600 - 50
        assert found.confidence.tolist() == buildings.confidence.tolist()
        assert found.polygons[2] is alone


def test_buildings_wait_for_what_may_reach_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(apart, "MARGIN_PX", 10)
    keeper = Apart(0.1)
    early, late = shapely.box(0, 0, 10, 20), shapely.box(5, 15, 9, 60)
    assert len(keeper.add(of(early), 25, [])) == 0  # nearer than the margin
    assert len(keeper.add(of(late), 62, [])) == 1
    assert len(keeper.last(of())) == 1
    assert len(Apart(0.1).add(of(early), 100, [])) == 1
