import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine

from kit.deploy.mapping.longitudes import cut_at_180, needs_cut
from kit.deploy.mapping.polygons import areas_m2, in_crs, in_degrees
from kit.deploy.mapping.scene import Frame

PIXEL_M = 0.5
YARD = shapely.Polygon(shapely.box(20, 30, 180, 90).exterior, [shapely.box(60, 50, 140, 70).exterior])


def frame(crs: str, longitude: float, latitude: float) -> Frame:
    """Returns a frame whose pixel (100, 60) lies at a place."""
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(longitude, latitude)
    stretch = 1 / np.cos(np.radians(latitude))
    side_x = side_y = PIXEL_M * stretch if crs in ("EPSG:3857", "EPSG:3832") else PIXEL_M
    if crs == "EPSG:4326":
        x, side_x, side_y = longitude, PIXEL_M / 111_320 * stretch, PIXEL_M / 110_900
    transform = Affine(side_x, 0, x - 100 * side_x, 0, -side_y, y + 60 * side_y)
    return Frame(200, 150, transform, pyproj.CRS(crs).to_wkt(), PIXEL_M, PIXEL_M)


@pytest.mark.parametrize(
    ("crs", "longitude"),
    [
        ("EPSG:32760", 180),
        ("EPSG:32701", -180),
        ("EPSG:4326", 180),
        ("EPSG:4326", -180),
        ("EPSG:3857", 180),
        ("EPSG:3832", 180),
    ],
)
@pytest.mark.parametrize("shape", [shapely.box(20, 30, 180, 90), YARD], ids=["house", "yard"])
def test_a_building_across_180_degrees_is_cut_there(crs: str, longitude: float, shape: shapely.Polygon):
    of = frame(crs, longitude, -17.5)
    pixels = np.array([shape], dtype=object)
    (degrees,) = in_degrees(pixels, of)
    assert degrees.geom_type == "MultiPolygon"
    assert degrees.is_valid
    lefts, rights = zip(*((part.bounds[0], part.bounds[2]) for part in degrees.geoms), strict=True)
    assert (max(lefts), min(rights)) != (180, -180)
    assert (min(lefts), max(rights)) == (-180, 180)
    assert all(right - left < 0.001 for left, right in zip(lefts, rights, strict=True))
    assert all(part.exterior.is_ccw for part in degrees.geoms)
    assert areas_m2(np.array([degrees], dtype=object)) == pytest.approx(shape.area * PIXEL_M**2, rel=0.01)
    (whole,) = in_crs(pixels, of)
    assert whole.geom_type == "Polygon"


def test_a_building_beyond_180_degrees_is_moved():
    of = frame("EPSG:4326", 180.5, -17.5)
    (degrees,) = in_degrees(np.array([YARD], dtype=object), of)
    assert degrees.geom_type == "Polygon"
    assert degrees.bounds[0] == pytest.approx(-179.5, abs=0.01)
    assert len(degrees.interiors) == 1


@pytest.mark.parametrize(("crs", "latitude"), [("EPSG:3031", -90), ("EPSG:5041", 90)])
@pytest.mark.parametrize(
    "shape", [shapely.box(20, 30, 180, 90), YARD, shapely.box(105, 30, 180, 90)], ids=["house", "yard", "beside"]
)
def test_a_building_at_a_pole(crs: str, latitude: float, shape: shapely.Polygon):
    of = frame(crs, 0, latitude)
    (degrees,) = in_degrees(np.array([shape], dtype=object), of)
    assert degrees.is_valid
    assert degrees.bounds[0] >= -180
    assert degrees.bounds[2] <= 180
    assert areas_m2(np.array([degrees], dtype=object)) == pytest.approx(shape.area * PIXEL_M**2, rel=0.06)


def test_most_buildings_need_no_cut():
    boxes = [shapely.box(179.9, 0, 180, 1), shapely.box(-180, 0, -179.9, 1), shapely.box(-1, 0, 1, 1), None]
    assert not needs_cut(np.array(boxes, dtype=object)).any()
    across = shapely.Polygon([(179.9, 0), (-179.9, 0), (-179.9, 1), (179.9, 1)])
    assert needs_cut(np.array([across], dtype=object)).all()
    assert cut_at_180(across).area == pytest.approx(0.2)
