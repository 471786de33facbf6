import numpy as np
import pytest
from affine import Affine
from factories import MERCATOR, UTM, at_kampala, write_bands

from kit.data.rasters import open_scene
from kit.deploy.mapping.scene import Frame, frame_of
from kit.errors import RasterError

BANDS = np.full((3, 40, 60), 90, np.uint8)
OSLO = Affine(1e-6, 0, 10.7, 0, -1e-6, 59.9)


def frame(path, transform: Affine, crs: str) -> Frame:
    with open_scene(str(write_bands(path / "s.tif", BANDS, transform, crs))) as source:
        return frame_of(source)


def test_utm_pixels_are_metres(tmp_path):
    found = frame(tmp_path, at_kampala(UTM, 0.1), UTM)
    assert found.x_m == pytest.approx(0.1, rel=1e-3)
    assert found.gsd_m == pytest.approx(0.1, rel=1e-3)


def test_mercator_shrinks_with_latitude(tmp_path):
    north = Affine(0.2, 0, 1_191_000, 0, -0.2, 8_382_000)  # Oslo: 59.9 degrees
    found = frame(tmp_path, north, MERCATOR)
    assert found.gsd_m == pytest.approx(0.1005, rel=5e-3)
    assert found.x_m == pytest.approx(found.y_m, rel=1e-2)


def test_degrees_differ_along_and_across(tmp_path):
    found = frame(tmp_path, OSLO, "EPSG:4326")
    assert found.y_m == pytest.approx(0.1114, rel=1e-3)
    assert found.x_m == pytest.approx(0.0559, rel=3e-3)
    seen = found.at(0.1)  # rows and columns are scaled apart: what is seen has square pixels
    assert seen.x_m == pytest.approx(0.1, rel=0.02)
    assert seen.y_m == pytest.approx(0.1, rel=0.02)
    assert seen.transform @ (seen.width, seen.height) == pytest.approx(found.transform @ (60, 40), abs=1e-12)
    assert seen.scale(found) == (60 / seen.width, 40 / seen.height)


def test_feet_are_no_metres(tmp_path):
    assert frame(tmp_path, Affine(0.5, 0, 985_000, 0, -0.5, 200_000), "EPSG:2263").gsd_m == pytest.approx(
        0.1524, rel=1e-3
    )


def test_turned_pixels_have_their_size(tmp_path):
    turned = at_kampala(UTM, 0.3) @ Affine.rotation(30)
    assert frame(tmp_path, turned, UTM).gsd_m == pytest.approx(0.3, rel=1e-3)


def test_nearly_the_resolution_is_the_resolution(tmp_path):
    found = frame(tmp_path, at_kampala(UTM, 0.1), UTM)
    assert found.at(0.105) is found
    assert found.at(0.2).width == 30
    assert found.at(0.05).height == 80


def test_much_too_coarse(tmp_path):
    found = frame(tmp_path, at_kampala(UTM, 10), UTM)
    with pytest.raises(RasterError, match=r"the scene has 10 m per pixel, the weights know 0\.075 m") as caught:
        found.at(0.075)
    assert "--gsd" in caught.value.hint


@pytest.mark.parametrize(
    ("crs", "transform"),
    [(UTM, Affine(1e9, 0, 1e12, 0, -1e9, 1e12)), ('LOCAL_CS["site",UNIT["metre",1]]', at_kampala())],
)
def test_a_scene_that_lies_nowhere(tmp_path, crs: str, transform: Affine):
    with pytest.raises(RasterError, match="lies nowhere on the earth"):
        frame(tmp_path, transform, crs)
