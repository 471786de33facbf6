from pathlib import Path

import numpy as np
import pytest
from factories import at_kampala, write_bands

from kit.deploy.mapping.reader import Reader, Seen
from kit.errors import RasterError


def noise(height: int = 96, width: int = 120) -> np.ndarray:
    return np.random.default_rng(1).integers(30, 200, (3, height, width), dtype=np.uint8)


def seen(path: Path, gsd_m: float = 1.0) -> Seen:
    """Returns a whole scene."""
    with Reader(str(path)) as reader:
        work = reader.look_at(gsd_m)
        return reader.read((0, work.height), (0, work.width))


@pytest.fixture(params=["alpha", "nodata", "mask", "collar"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A scene whose upper left part holds no imagery, told in one of four ways, and where it does."""
    valid = np.ones((96, 120), bool)
    valid[:40, :50] = False
    bands, told = noise(), {}
    if request.param == "alpha":
        bands, told = np.concatenate([bands, valid[None] * np.uint8(255)]), {"alpha": True}
    elif request.param == "mask":
        told = {"mask": valid}
    else:
        bands = bands * valid
        told = {"nodata": 0} if request.param == "nodata" else {}
    return write_bands(tmp_path / "s.tif", bands, at_kampala(), **told), valid


def test_pixels_are_those_of_the_scene(scene: tuple[Path, np.ndarray]):
    path, valid = scene
    found = seen(path)
    np.testing.assert_array_equal(found.valid, valid)
    np.testing.assert_array_equal(found.rgba[..., 3], valid * 255)
    np.testing.assert_array_equal(found.rgba[..., :3], (noise() * valid).transpose(1, 2, 0))


@pytest.mark.parametrize("gsd_m", [0.4, 2.5])
def test_at_another_resolution_no_data_stay_no_data(scene: tuple[Path, np.ndarray], gsd_m: float):
    path, valid = scene
    found = seen(path, gsd_m)
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
    assert seen(write_bands(tmp_path / "s.tif", bands, at_kampala())).valid.all()


def test_windows_are_pieces_of_the_whole(tmp_path: Path):
    path = write_bands(tmp_path / "s.tif", noise(), at_kampala())
    for gsd_m in (1.0, 0.6, 2.2):
        whole = seen(path, gsd_m)
        with Reader(str(path)) as reader:
            reader.look_at(gsd_m)
            piece = reader.read((7, 30), (11, 40))
        np.testing.assert_array_equal(piece.rgba, whole.rgba[7:30, 11:40])
        rows, columns = piece.valid.shape
        np.testing.assert_array_equal(
            piece.valid, whole.valid[piece.top : piece.top + rows, piece.left : piece.left + columns]
        )


def test_a_scene_that_breaks_off(tmp_path: Path):
    blocks = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    path = write_bands(tmp_path / "s.tif", noise(400, 400), at_kampala(), **blocks)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + bytes(20_000) + whole[len(whole) // 2 + 20_000 :])
    with Reader(str(path)) as reader:
        reader.read((0, 64), (0, 64))
        with pytest.raises(RasterError, match=r"s\.tif is broken at row 192, column 0"):
            reader.read((192, 256), (0, 400))
    path.write_bytes(whole[:-100_000])
    with pytest.raises(RasterError, match=r"s\.tif is broken"):
        Reader(str(path))


def test_no_place_on_earth(tmp_path: Path):
    path = write_bands(tmp_path / "s.tif", noise(), at_kampala(), crs=None)
    with pytest.raises(RasterError, match=r"s\.tif has no coordinate system"):
        Reader(str(path))
