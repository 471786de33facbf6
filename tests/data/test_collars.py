"""Collars are no data; shadows and white roofs at an image's edge are imagery."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from factories import at_kampala, write_bands

from kit.data import rasters
from kit.data.collars import COARSE_PX
from kit.data.rasters import find_collar, open_scene, read_picture

SIDE = 256


def ground(height: int = SIDE, width: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 200, (3, height, width), dtype=np.uint8)


def area(*corners: tuple[int, int], side: int = SIDE) -> np.ndarray:
    """Returns a polygon's pixels, (side, side) bool; corners are (x, y)."""
    drawn = np.zeros((side, side), np.uint8)
    cv2.fillPoly(drawn, [np.array(corners, np.int32)], 1)
    return drawn > 0


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    return area((left, top), (right - 1, top), (right - 1, bottom - 1), (left, bottom - 1))


COLLARS = {
    "a strip": box(0, 0, 60, SIDE),
    "a thin strip": box(0, SIDE - 3, SIDE, SIDE),
    "a frame": ~box(20, 9, SIDE - 20, SIDE - 31),
    "a wedge": area((0, 0), (SIDE - 30, 0), (0, 40)),
    "a turned square": ~area((SIDE // 2, 0), (SIDE - 1, SIDE // 2), (SIDE // 2, SIDE - 1), (0, SIDE // 2)),
    "a strip and a corner": box(0, 0, SIDE, 12) | area((SIDE, SIDE), (SIDE - 30, SIDE), (SIDE, SIDE - 20)),
    "all": np.ones((SIDE, SIDE), bool),
}
ROOFS = {
    "inside": box(40, 40, 220, 220),
    "at an edge": box(100, 0, 160, 50),
    "at a corner": box(0, 0, 60, 60),
    "at all edges": box(0, 90, 40, 130) | box(216, 90, 256, 130) | box(90, 0, 140, 40) | box(90, 216, 140, 256),
}


def colours(kind: str, where: np.ndarray) -> np.ndarray:
    rgb, random = ground(), np.random.default_rng(1)
    levels = {"black": (0, 1), "black blurred": (0, 9), "white": (255, 256), "white blurred": (252, 256)}[kind]
    rgb[:, where] = random.integers(*levels, (3, int(where.sum())), dtype=np.uint8)
    return rgb


@pytest.mark.parametrize("kind", ["black", "black blurred", "white", "white blurred"])
@pytest.mark.parametrize("shape", COLLARS)
def test_collars_are_no_data(tmp_path: Path, kind: str, shape: str):
    path = write_bands(tmp_path / "x.tif", colours(kind, COLLARS[shape]))
    np.testing.assert_array_equal(~read_picture(str(path)).valid, COLLARS[shape])


@pytest.mark.parametrize("shape", ROOFS)
def test_white_roofs_at_the_edge_stay(tmp_path: Path, shape: str):
    path = write_bands(tmp_path / "x.tif", colours("white", ROOFS[shape]))
    assert read_picture(str(path)).valid.all()


def test_a_white_roof_stays_beside_a_white_collar(tmp_path: Path):
    where = COLLARS["a strip"]
    path = write_bands(tmp_path / "x.tif", colours("white", where | box(200, 90, 256, 150)))
    np.testing.assert_array_equal(~read_picture(str(path)).valid, where)


def test_what_a_lossy_file_makes_of_its_white_nodata_value(tmp_path: Path):
    """Three quarters of the collar are 255 exactly, and no data by the value; a small piece counts, too."""
    where = area((0, 0), (50, 0), (0, 40))
    rgb = colours("white", where)
    blurred = where & (np.random.default_rng(2).random((SIDE, SIDE)) < 0.25)
    rgb[:, blurred] = 253
    path = write_bands(tmp_path / "x.tif", rgb, nodata=255)
    np.testing.assert_array_equal(~read_picture(str(path)).valid, where)


def test_a_jpeg_keeps_a_white_collar(tmp_path: Path):
    rgb = cv2.GaussianBlur(ground(512, 512).transpose(1, 2, 0), (0, 0), 3)
    rgb[:, :150] = 255
    cv2.imwrite(str(tmp_path / "x.jpg"), rgb, [cv2.IMWRITE_JPEG_QUALITY, 75])
    valid = read_picture(str(tmp_path / "x.jpg")).valid
    assert not valid[:, :140].any()
    assert valid[:, 160:].all()


def test_scenes_have_the_same_collars(tmp_path: Path):
    side = COARSE_PX + 300
    rgb = ground(side, side)
    rgb[:, :400] = 255
    with open_scene(str(write_bands(tmp_path / "white.tif", rgb, at_kampala(pixel=0.1)))) as source:
        collar = find_collar(source)
    assert collar is not None
    assert collar.near.shape == (COARSE_PX, COARSE_PX)
    assert (collar.near > 0).mean() == pytest.approx(400 / side, abs=0.01)
    rgb[:, 100:] = ground(side, side)[:, 100:]
    rgb[:, :100, 150:] = 99
    with open_scene(str(write_bands(tmp_path / "roof.tif", rgb, at_kampala(pixel=0.1)))) as source:
        assert find_collar(source) is None


def test_black_without_alpha_is_looked_at_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a file marks itself costs no second look: most scenes have black where alpha is 0."""
    alpha = np.full((1, SIDE, SIDE), 255, np.uint8)
    alpha[:, COLLARS["a frame"]] = 0
    path = write_bands(tmp_path / "x.tif", np.concatenate([colours("black", COLLARS["a frame"]), alpha]), alpha=True)
    monkeypatch.setattr(rasters, "map_collar", None)
    np.testing.assert_array_equal(~read_picture(str(path)).valid, COLLARS["a frame"])
    with open_scene(str(path)) as source:
        assert find_collar(source) is None
