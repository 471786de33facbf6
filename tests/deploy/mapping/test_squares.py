import math

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.features import rasterize
from shapely import affinity

from kit.deploy.mapping.polygons import outlined
from kit.deploy.mapping.scene import Frame
from kit.deploy.mapping.squares import main_direction, square
from kit.deploy.mapping.tracing import Tracer

PIXEL_M = 0.1
L = shapely.Polygon([(0, 0), (12, 0), (12, 6), (5, 6), (5, 10), (0, 10)])
HOUSE = shapely.box(0, 0, 9, 6)
YARD = shapely.Polygon(shapely.box(0, 0, 14, 12).exterior, [shapely.box(4, 4, 9, 8).exterior])


def mapped(shape: shapely.Polygon, squared: bool) -> shapely.Polygon:
    """Returns what becomes of a shape, in metres, that is masked at 0.1 m per pixel."""
    pixels = affinity.scale(affinity.translate(shape, 5, 5), 1 / PIXEL_M, 1 / PIXEL_M, origin=(0, 0))
    mask = rasterize([pixels], (300, 300)).astype(bool)
    tracer = Tracer()
    pieces = tracer.add(mask.astype(np.uint8) * 255, mask, 0) + tracer.close()
    frame = Frame(300, 300, Affine.identity(), "", PIXEL_M, PIXEL_M)
    (found,) = outlined(pieces, frame, 2 * PIXEL_M, squared).polygons
    return affinity.translate(affinity.scale(found, PIXEL_M, PIXEL_M, origin=(0, 0)), -5, -5)


def turns(polygon: shapely.Polygon) -> np.ndarray:
    """Returns how far each corner of an outline is from a right angle, degrees."""
    corners = np.asarray(polygon.exterior.coords)[:-1]
    steps = np.roll(corners, -1, axis=0) - corners
    angles = np.degrees(np.arctan2(steps[:, 1], steps[:, 0]))
    return np.abs((np.diff(angles, append=angles[0]) + 45) % 90 - 45)


def alike(first: shapely.Polygon, second: shapely.Polygon) -> float:
    return first.intersection(second).area / first.union(second).area


@pytest.mark.parametrize("shape", [HOUSE, L, YARD], ids=["house", "l", "yard"])
@pytest.mark.parametrize("degrees", [0, 7, 30, 45, 81])
def test_houses_get_right_angles(shape: shapely.Polygon, degrees: float):
    turned = affinity.rotate(shape, degrees, origin=shapely.Point(6, 5))
    found, plain = mapped(turned, True), mapped(turned, False)
    assert found.is_valid
    assert len(found.exterior.coords) == len(shape.exterior.coords)
    assert turns(found).max() < 1e-6
    assert len(found.interiors) == len(shape.interiors)
    assert alike(found, turned) > 0.97
    assert degrees in (0,) or turns(plain).max() > 0.01  # else there was nothing to do


def test_the_direction_is_that_of_the_long_walls():
    turned = affinity.rotate(L, 20)
    assert math.degrees(main_direction(turned)) == pytest.approx(20, abs=1e-6)
    hut = shapely.union(affinity.rotate(shapely.box(0, 0, 20, 8), 20), affinity.rotate(shapely.box(19, 3, 22, 5), 50))
    assert math.degrees(main_direction(hut)) == pytest.approx(20, abs=6)


def test_cut_corners_become_corners():
    cut = shapely.Polygon([(0.4, 0), (9, 0), (9, 5.6), (8.6, 6), (0, 6), (0, 0.4)])
    for tolerance_m in (0.1, 0.01):
        assert alike(square(cut, tolerance_m), HOUSE) > 1 - 1e-9


@pytest.mark.parametrize(
    "shape",
    [shapely.Point(0, 0).buffer(6), shapely.Point(0, 0).buffer(6, quad_segs=1),
     shapely.Polygon([(0, 0), (9, 0), (0, 7)]), shapely.LineString([(0, 0), (8, 1), (3, 6), (14, 9)]).buffer(1)],
    ids=["round", "diamond", "triangle", "zigzag"],
)  # fmt: skip
def test_what_has_no_right_angles_keeps_its_shape(shape: shapely.Polygon):
    found = square(shape.simplify(0.2), 0.2)
    assert found.is_valid
    assert alike(found, shape) >= 0.9


def test_long_slanted_walls_stay():
    hall = shapely.Polygon([(0, 0), (20, 0), (20, 6), (14, 12), (0, 12)])
    found = square(hall, 0.2)
    assert alike(found, hall) > 1 - 1e-9
    assert len(found.exterior.coords) == 6


def test_any_outline_comes_out_valid():
    random = np.random.default_rng(0)
    for _ in range(60):
        spokes = np.sort(random.random(random.integers(4, 14))) * 2 * np.pi
        lengths = random.uniform(2, 9, len(spokes))
        shape = shapely.Polygon(np.stack([lengths * np.cos(spokes), lengths * np.sin(spokes)], axis=1))
        if shape.is_valid:
            found = square(shape, 0.15)
            assert found.is_valid
            assert alike(found, shape) >= 0.9
