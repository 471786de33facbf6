"""Buildings that touch share their walls, whatever bands they are traced in."""

import cv2
import numpy as np
import pytest
import shapely
from affine import Affine
from factories import UTM, at_kampala
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kit.deploy.mapping.apart import Apart
from kit.deploy.mapping.polygons import Buildings, in_crs, in_degrees, outlined
from kit.deploy.mapping.scene import Frame
from kit.deploy.mapping.terraces import COURTYARD_M2, is_coverage, right_angled, without_pits
from kit.deploy.mapping.tracing import Tracer

SIDE, GSD_M = 160, 0.1


def frame() -> Frame:
    transform: Affine = at_kampala(UTM, GSD_M)
    return Frame(SIDE, SIDE, transform, UTM, GSD_M, GSD_M)


def row_of_houses(angle: float, count: int = 4) -> np.ndarray:
    """Numbers of houses, (SIDE, SIDE) int32, in a turned row with shared walls and steps between the fronts."""
    numbers = np.zeros((SIDE, SIDE), np.int32)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for i in range(count):
        left, step, width = -60 + 30 * i, 6 * (i % 2), 30
        corners = np.array([(left, -20 + step), (left + width, -20 + step), (left + width, 20), (left, 20)]) @ turn
        house = np.zeros(numbers.shape, np.uint8)
        cv2.fillPoly(house, [np.rint((corners + SIDE / 2) * 16).astype(np.int32)], 1, shift=4)
        numbers[(house > 0) & (numbers == 0)] = i + 1
    return numbers


def quarter(seed: int) -> np.ndarray:
    """Numbers of huts of any form that touch each other: a mask divided by the nearest of some points."""
    random = np.random.default_rng(seed)
    noise = random.random((SIDE, SIDE)).astype(np.float32)
    mask = (cv2.GaussianBlur(noise, (0, 0), 12) > 0.5).astype(np.uint8)
    points = random.uniform(0, SIDE, (25, 2))
    rows, columns = np.indices(mask.shape)
    nearest = np.argmin((rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2, axis=2)
    numbers = np.zeros(mask.shape, np.int32)
    for i in range(len(points)):
        _, labels = cv2.connectedComponents(mask * (nearest == i).astype(np.uint8), connectivity=4)
        numbers += np.where(labels > 0, labels + numbers.max(), 0).astype(np.int32)
    return numbers


def mapped(numbers: np.ndarray, squared: bool, band: int = SIDE) -> Buildings:
    tracer, keeper, parts = Tracer(), Apart(GSD_M), []
    for top in range(0, SIDE, band):
        rows = numbers[top : top + band]
        pieces = tracer.add(np.full(rows.shape, 204, np.uint8), rows, top)
        end = top + len(rows)
        pieces += tracer.close() if end == SIDE else []
        traced = outlined(pieces, frame(), 2 * GSD_M, squared)
        parts.append(keeper.add(traced, end, tracer.open) if end < SIDE else keeper.last(traced))
    return Buildings.joined(parts)


def shared_area(polygons: np.ndarray) -> float:
    first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    once = first < second
    return float(shapely.area(shapely.intersection(polygons[first[once]], polygons[second[once]])).sum())


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("angle", [0.0, 0.3, -0.7])
def test_a_row_of_houses_shares_its_walls(squared: bool, angle: float):
    numbers = row_of_houses(angle)
    found = mapped(numbers, squared)
    assert len(found) == 4
    assert is_coverage(found.polygons)
    union = shapely.union_all(found.polygons)
    assert union.geom_type == "Polygon"  # no gap: what they cover together is one polygon without a hole
    assert not union.interiors
    assert union.area == pytest.approx(shapely.area(found.polygons).sum(), rel=1e-12)
    for polygon, (row, column, part) in zip(found.polygons, found.anchors, strict=True):
        assert part == 0
        assert polygon.area == pytest.approx((numbers == numbers[row, column]).sum(), rel=0.06)


@pytest.mark.parametrize("angle", [0.0, 0.3, -0.7])
def test_right_angles(angle: float):
    """All walls of the row, to half a degree; the row's axis is that of its pixels."""
    found = mapped(row_of_houses(angle), squared=True).polygons
    steps = np.concatenate([np.diff(shapely.get_coordinates(polygon), axis=0) for polygon in found])
    turns = np.degrees(np.arctan2(steps[:, 1], steps[:, 0]) - angle)
    off = turns - 90 * np.rint(turns / 90)
    assert np.abs(off - np.median(off)).max() < 0.5
    assert abs(np.median(off)) < 2
    assert len(steps) <= 4 * 7  # four corners each, and those of the neighbours' steps


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([16, 61]))
@example(0, True, 16)
def test_no_gaps_and_no_overlaps_in_bands_of_any_height(seed: int, squared: bool, band: int):
    numbers = quarter(seed)
    found = mapped(numbers, squared)
    assert shapely.is_valid(found.polygons).all()
    for placed, least in ((found.polygons, 1e-9), (in_crs(found.polygons, frame()), 1e-9)):
        assert shared_area(placed) < least
    assert shared_area(in_degrees(found.polygons, frame())) < 1e-15  # 0.01 mm²
    bands = mapped(numbers, squared, band)
    order, other = (np.lexsort(each.anchors.T[::-1]) for each in (found, bands))
    assert (found.anchors[order] == bands.anchors[other]).all()
    assert len(np.unique(found.anchors, axis=0)) == len(found)
    moved = shapely.symmetric_difference(found.polygons[order], bands.polygons[other])
    assert shapely.area(moved).max(initial=0) < 1e-6
    assert (
        set(map(tuple, found.anchors[:, :2]))
        >= {  # every building has a polygon
            tuple(row) for row in mapped(numbers, False).anchors[:, :2]
        }
    )


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_one_group_is_a_coverage(seed: int, squared: bool):
    numbers = quarter(seed)
    tracer = Tracer()
    pieces = tracer.add(np.zeros(numbers.shape, np.uint8), numbers, 0) + tracer.close()
    for piece in pieces:
        found = outlined([piece], frame(), 2 * GSD_M, squared)
        assert is_coverage(found.polygons)
        assert {tuple(anchor) for anchor in found.anchors[:, :2].tolist()} == {
            (-building.anchor[1], -building.anchor[2]) for building in piece.buildings.values()
        }


def test_numbers_do_not_matter():
    """The same pixels with other numbers are the same polygons in the same order."""
    numbers = quarter(3)
    other = np.where(numbers > 0, numbers.max() + 1 - numbers, 0).astype(np.int32)
    first, second = mapped(numbers, True), mapped(other, True)
    assert shapely.to_wkb(first.polygons).tolist() == shapely.to_wkb(second.polygons).tolist()
    assert (first.anchors == second.anchors).all()


def test_a_squared_building_keeps_its_shape():
    """A round one among squares: no right angles, the overlap would be too small."""
    circle = shapely.Point(0, 0).buffer(5, quad_segs=2)
    beside = shapely.box(-9, -9, 9, 9).difference(circle)
    for before, after in zip([circle, beside], right_angled(np.array([circle, beside]), 0.2), strict=True):
        assert after.intersection(before).area > 0.9 * after.union(before).area


def test_small_holes_are_filled_and_courtyards_stay():
    side = COURTYARD_M2**0.5
    rings = [shapely.box(x, 2, x + size, 2 + size).exterior for x, size in ((2, side - 0.1), (6, side + 0.1), (10, 1))]
    outer = shapely.Polygon(shapely.box(0, 0, 20, 10).exterior, rings)
    hut = shapely.box(10.2, 2.2, 10.6, 2.6)
    (found, _) = without_pits(np.array([outer, hut]))
    assert [ring.bounds[0] for ring in found.interiors] == [6, 10]  # the hut stands in the third
