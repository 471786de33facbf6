import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from factories import MERCATOR, UTM, at_kampala

from kit.deploy.mapping.polygons import Buildings, areas_m2, in_crs, in_degrees, outlined
from kit.deploy.mapping.scene import Frame
from kit.deploy.mapping.tracing import Tracer


def frame(crs: str = UTM, transform: Affine | None = None, x_m: float = 0.2, y_m: float = 0.2) -> Frame:
    return Frame(200, 150, transform or at_kampala(crs, 0.2), pyproj.CRS(crs).to_wkt(), x_m, y_m)


def outlines(mask: np.ndarray, simplify_m: float = 0.4, squared: bool = False, of: Frame | None = None) -> Buildings:
    tracer = Tracer()
    pieces = tracer.add(np.full(mask.shape, 204, np.uint8), mask, 0) + tracer.close()
    return outlined(pieces, of or frame(), simplify_m, squared)


def test_every_piece_of_the_mask_is_a_polygon():
    """Also a single pixel: what is small is dropped from the mask, not from the polygons."""
    mask = np.zeros((150, 200), bool)
    mask[10:60, 10:90] = True
    mask[30:50, 40:60] = False
    mask[100, 100] = mask[101, 101] = mask[120:122, 100] = True
    for squared in (False, True):
        found = outlines(mask, squared=squared)
        assert found.confidence.tolist() == pytest.approx([0.8] * 4)
        large = max(found.polygons, key=shapely.area)
        assert [shapely.Polygon(ring).area for ring in large.interiors] == pytest.approx([400])
        assert large.exterior.bounds == pytest.approx((10, 10, 90, 60))


def test_stairs_become_a_line():
    rows, columns = np.indices((150, 200))
    mask = (columns > 20) & (rows > 20) & (columns + 2 * rows < 220)
    (polygon,) = outlines(mask).polygons
    assert len(polygon.exterior.coords) <= 5
    assert polygon.area == pytest.approx(mask.sum(), rel=0.02)


def test_noise_gives_valid_polygons():
    mask = np.random.default_rng(0).random((150, 200)) > 0.42
    for squared in (False, True):
        found = outlines(mask, squared=squared)
        assert len(found) > 20
        assert shapely.is_valid(found.polygons).all()
        assert set(shapely.get_type_id(found.polygons)) == {3}
        assert len(found.confidence) == len(found.polygons)


def test_outlines_move_by_metres_on_the_ground():
    """In degrees far north a pixel is half as wide as high: a notch of 4 px is deep or shallow."""
    mask = np.zeros((150, 200), bool)
    mask[20:100, 20:160] = True
    mask[50:80, 20:24] = False
    for x_m, corners in ((0.2, 9), (0.02, 5)):
        found = outlines(mask, 0.3, of=frame(x_m=x_m)).polygons
        assert len(found[0].exterior.coords) == corners


def test_no_pieces():
    found = outlined([], frame(), 0.4, squared=True)
    assert len(found) == 0
    assert len(in_degrees(found.polygons, frame())) == 0
    assert len(areas_m2(found.polygons)) == 0


@pytest.mark.parametrize("turn", [Affine.identity(), Affine.scale(1, -1), Affine.rotation(30)])
def test_polygons_lie_where_the_pixels_do(turn: Affine):
    of = frame(transform=at_kampala(UTM, 0.2) @ turn)
    pixels = np.array([shapely.box(20, 30, 70, 90)], dtype=object)
    (found,), (degrees,) = in_crs(pixels, of), in_degrees(pixels, of)
    corners = {tuple(np.round(of.transform @ (x, y), 6)) for x in (20, 70) for y in (30, 90)}
    assert {tuple(np.round(point, 6)) for point in found.exterior.coords} == corners
    assert found.exterior.is_ccw
    assert degrees.exterior.is_ccw
    assert areas_m2(np.array([degrees], dtype=object))[0] == pytest.approx(50 * 60 * 0.04, rel=2e-3)


def test_areas_are_true_where_the_map_is_not():
    oslo = Affine(0.2, 0, 1_191_000, 0, -0.2, 8_382_000)
    of = frame(MERCATOR, oslo)
    with_hole = shapely.Polygon(shapely.box(20, 30, 120, 90).exterior, [shapely.box(50, 50, 60, 60).exterior])
    (area,) = areas_m2(in_degrees(np.array([with_hole], dtype=object), of))
    assert area == pytest.approx((6000 - 100) * 0.04 * np.cos(np.radians(59.9)) ** 2, rel=0.01)
