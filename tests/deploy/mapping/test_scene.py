"""Frames of scenes on the ground, and windows read from them."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from factories import MERCATOR, UTM, at_kampala, write_bands

from kit.data.rasters import open_scene
from kit.deploy.mapping.scene import Frame, SceneReader, SceneWindow, frame_of
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
    work = found.at(0.1)  # rows and columns are scaled apart: pixels become square on the ground
    assert work.x_m == pytest.approx(0.1, rel=0.02)
    assert work.y_m == pytest.approx(0.1, rel=0.02)
    assert work.transform @ (work.width, work.height) == pytest.approx(found.transform @ (60, 40), abs=1e-12)
    assert work.scale(found) == (60 / work.width, 40 / work.height)


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
    with pytest.raises(RasterError, match=r"has 10 m per pixel, the weights were trained at 0\.075 m") as caught:
        found.at(0.075)
    assert "--gsd" in caught.value.hint


@pytest.mark.parametrize(
    ("crs", "transform"),
    [(UTM, Affine(1e9, 0, 1e12, 0, -1e9, 1e12)), ('LOCAL_CS["site",UNIT["metre",1]]', at_kampala())],
)
def test_a_scene_that_lies_nowhere(tmp_path, crs: str, transform: Affine):
    with pytest.raises(RasterError, match="has no place on the earth"):
        frame(tmp_path, transform, crs)


def noise(height: int = 96, width: int = 120) -> np.ndarray:
    return np.random.default_rng(1).integers(30, 200, (3, height, width), dtype=np.uint8)


def whole(path: Path, gsd_m: float = 1.0) -> SceneWindow:
    """Returns a whole scene."""
    with SceneReader(str(path)) as reader:
        work = reader.set_resolution(gsd_m)
        return reader.read((0, work.height), (0, work.width))


@pytest.fixture(params=["alpha", "nodata", "mask", "collar"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A scene whose upper left part holds no imagery, marked in one of four ways, and where it does."""
    valid = np.ones((96, 120), bool)
    valid[:40, :50] = False
    bands, profile = noise(), {}
    if request.param == "alpha":
        bands, profile = np.concatenate([bands, valid[None] * np.uint8(255)]), {"alpha": True}
    elif request.param == "mask":
        profile = {"mask": valid}
    else:
        bands = bands * valid
        profile = {"nodata": 0} if request.param == "nodata" else {}
    return write_bands(tmp_path / "s.tif", bands, at_kampala(), **profile), valid


def test_pixels_are_those_of_the_scene(scene: tuple[Path, np.ndarray]):
    path, valid = scene
    found = whole(path)
    np.testing.assert_array_equal(found.valid, valid)
    np.testing.assert_array_equal(found.rgba[..., 3], valid * 255)
    np.testing.assert_array_equal(found.rgba[..., :3], (noise() * valid).transpose(1, 2, 0))


@pytest.mark.parametrize("gsd_m", [0.4, 2.5])
def test_at_another_resolution_no_data_stay_no_data(scene: tuple[Path, np.ndarray], gsd_m: float):
    path, valid = scene
    found = whole(path, gsd_m)
    np.testing.assert_array_equal(found.valid[:96, :120], valid)
    height, width = found.rgba.shape[:2]
    assert (height, width) == (round(96 / gsd_m), round(120 / gsd_m))
    rows, columns = int(40 / gsd_m), int(50 / gsd_m)
    alpha = found.rgba[..., 3]
    assert not alpha[: rows - 1, : columns - 1].any()
    assert (alpha[rows + 1 :] == 255).all()
    assert (alpha[:, columns + 1 :] == 255).all()
    assert not found.rgba[alpha == 0].any()
    assert found.rgba[alpha > 0][:, :3].min() >= 30  # black does not bleed in


def test_shadows_within_are_imagery(tmp_path: Path):
    bands = noise()
    bands[:, 40:44, 40:44] = 0
    assert whole(write_bands(tmp_path / "s.tif", bands, at_kampala())).valid.all()


def test_windows_are_pieces_of_the_whole(tmp_path: Path):
    path = write_bands(tmp_path / "s.tif", noise(), at_kampala())
    for gsd_m in (1.0, 0.6, 2.2):
        everything = whole(path, gsd_m)
        with SceneReader(str(path)) as reader:
            reader.set_resolution(gsd_m)
            piece = reader.read((7, 30), (11, 40))
        np.testing.assert_array_equal(piece.rgba, everything.rgba[7:30, 11:40])
        rows, columns = piece.valid.shape
        np.testing.assert_array_equal(
            piece.valid, everything.valid[piece.top : piece.top + rows, piece.left : piece.left + columns]
        )


def test_a_scene_that_breaks_off(tmp_path: Path):
    blocks = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    path = write_bands(tmp_path / "s.tif", noise(400, 400), at_kampala(), **blocks)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + bytes(20_000) + whole[len(whole) // 2 + 20_000 :])
    with SceneReader(str(path)) as reader:
        reader.read((0, 64), (0, 64))
        with pytest.raises(RasterError, match=r"s\.tif is broken at row 192, column 0"):
            reader.read((192, 256), (0, 400))
    path.write_bytes(whole[:-100_000])
    with pytest.raises(RasterError, match=r"s\.tif is broken"):
        SceneReader(str(path))


def test_no_place_on_earth(tmp_path: Path):
    path = write_bands(tmp_path / "s.tif", noise(), at_kampala(), crs=None)
    with pytest.raises(RasterError, match=r"s\.tif has no coordinate system"):
        SceneReader(str(path))
