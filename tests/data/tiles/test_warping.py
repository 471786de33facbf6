from pathlib import Path

import cv2
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from cut_fakes import CutScene, cut_scene, laid_out
from factories import MERCATOR, UTM, at_kampala, on_earth, write_bands
from rasterio.transform import Affine

from kit.data.dataset import read_tile
from kit.errors import DataError, RasterError

SQUARES = [shapely.box(20, 22, 50, 47), shapely.box(75, 60, 120, 90), shapely.box(90, 14, 112, 40)]


def sharp(height: int = 110, width: int = 140) -> np.ndarray:
    """A scene of dark ground with bright, sharp buildings, (3, H, W)."""
    rgb = np.full((3, height, width), 60, np.uint8)
    for square in SQUARES:
        left, top, right, bottom = (int(at) for at in square.bounds)
        rgb[:, top:bottom, left:right] = 220
    return rgb


def offsets(made: CutScene) -> list[tuple[float, float]]:
    """Returns how far each building's image lies from its mask, px: columns, rows. Of centroids, weighted by light."""
    rgb, mask, _ = laid_out(made)
    light = (np.clip(rgb.mean(axis=0), 60, 220) - 60) / 160
    light[mask == 255] = 0
    count, labels = cv2.connectedComponents((mask == 1).astype(np.uint8))
    found = []
    for label in range(1, count):
        around = cv2.dilate((labels == label).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        rows, columns = np.nonzero(around)
        weights = light[rows, columns]
        image = np.average(columns, weights=weights), np.average(rows, weights=weights)
        truth_rows, truth_columns = np.nonzero(labels == label)
        found.append((image[0] - truth_columns.mean(), image[1] - truth_rows.mean()))
    return found


TURNED = {
    "north up": Affine.identity(),
    "south up": Affine(1, 0, 0, 0, -1, 0),
    "mirrored": Affine(-1, 0, 0, 0, 1, 0),
    "by 30 degrees": Affine.rotation(30),
    "by 90 degrees": Affine.rotation(90),
}


@pytest.mark.parametrize("turn", TURNED)
@pytest.mark.parametrize(("grid", "crs", "side"), [("z19", UTM, 256), ("z19", MERCATOR, 256), ("0.7m", UTM, 64)])
def test_masks_lie_on_buildings_to_half_a_pixel(tmp_path: Path, grid: str, crs: str, side: int, turn: str):
    transform = at_kampala(crs, 0.8) @ TURNED[turn]
    image = write_bands(tmp_path / "scene.tif", sharp(), transform, crs)
    made = cut_scene(tmp_path, image, on_earth(SQUARES, transform, crs), grid=grid, side_px=side)
    found = offsets(made)
    assert len(found) == len(SQUARES)
    assert np.abs(found).max() < 0.5, found


@pytest.mark.parametrize("turn", [turn for turn in TURNED if turn != "north up"])
def test_native_pixels_that_are_turned_are_no_grid(tmp_path: Path, turn: str):
    transform = at_kampala() @ TURNED[turn]
    image = write_bands(tmp_path / "scene.tif", sharp(), transform)
    with pytest.raises(DataError, match=r"scene\.tif are turned or mirrored") as caught:
        cut_scene(tmp_path, image, on_earth(SQUARES, transform), grid="native", side_px=64)
    assert "--grid z19" in caught.value.hint


def test_native_pixels_are_those_of_the_scene(tmp_path: Path):
    rgb = np.random.default_rng(0).integers(1, 256, (3, 70, 90), dtype=np.uint8)
    image = write_bands(tmp_path / "scene.tif", rgb, at_kampala(pixel=0.07))
    made = cut_scene(tmp_path, image, on_earth(SQUARES[:1], at_kampala(pixel=0.07)), grid="native", side_px=32)
    found, mask, place = laid_out(made)
    assert place == (0, 0)
    np.testing.assert_array_equal(found[:, :70, :90], rgb)
    assert (mask[:70, :90] != 255).all()
    assert (mask[70:] == 255).all()


def test_finer_scenes_are_smoothed_and_not_shifted(tmp_path: Path):
    """From 4 cm to 10 cm: single bright pixels become faint ones, as a mean does, and buildings stay in place."""
    transform = at_kampala(pixel=0.04)
    noise = np.random.default_rng(0).integers(0, 2, (250, 250)).astype(np.uint8) * 200 + 20
    rgb = np.stack([noise] * 3)
    image = write_bands(tmp_path / "noise.tif", rgb, transform)
    made = cut_scene(tmp_path, image, on_earth(SQUARES, transform), grid="0.1m", side_px=64)
    inner = laid_out(made)[0][0, 10:90, 10:90]
    assert inner.mean() == pytest.approx(120, abs=4)
    assert inner.std() < 0.5 * noise.std()  # picked pixels keep all of it, a mean of 2.5 x 2.5 two fifths
    large = np.kron(sharp(), np.ones((1, 5, 5), np.uint8))
    squares = [shapely.box(*(5 * at for at in square.bounds)) for square in SQUARES]
    image = write_bands(tmp_path / "scene.tif", large, transform)
    found = offsets(cut_scene(tmp_path / "large", image, on_earth(squares, transform), grid="0.1m", side_px=128))
    assert np.abs(found).max() < 0.1, found


def noise(height: int = 96, width: int = 96) -> np.ndarray:
    return np.random.default_rng(1).integers(30, 200, (3, height, width), dtype=np.uint8)


def cut_noise(folder: Path, image: Path, **style: object) -> tuple[np.ndarray, np.ndarray]:
    """Returns RGB and mask of a scene of 96 x 96 px, cut into native tiles."""
    made = cut_scene(folder, image, on_earth([shapely.box(30, 30, 50, 60)], at_kampala()),
                     **{"grid": "native", "side_px": 32} | style)  # fmt: skip
    rgb, mask, _ = laid_out(made)
    return rgb, mask


@pytest.mark.parametrize("named", [True, False])
def test_alpha_is_no_data_whatever_colour_lies_below(tmp_path: Path, named: bool):
    """Also where the file does not call its fourth band alpha; and no colour bleeds from below into warped tiles."""
    alpha = np.full((1, 96, 96), 255, np.uint8)
    alpha[0, :20, :40] = 0
    image = write_bands(tmp_path / "scene.tif", np.concatenate([noise(), alpha]), alpha=named)
    rgb, mask = cut_noise(tmp_path, image)
    np.testing.assert_array_equal(mask == 255, alpha[0] == 0)
    np.testing.assert_array_equal(rgb, np.where(alpha > 0, noise(), 0))
    bands = np.full((4, 96, 96), 255, np.uint8)
    bands[:3, alpha[0] > 0] = 50
    bands[3] = alpha
    image = write_bands(tmp_path / "flat.tif", bands, alpha=named)
    rgb, mask = cut_noise(tmp_path / "flat", image, grid="0.37m")
    assert set(np.unique(rgb[:, mask != 255])) <= {49, 50, 51}


def test_nodata_value_is_no_data_where_all_bands_hold_it(tmp_path: Path):
    bands = noise()
    bands[:, 60:, :] = 0
    bands[0, 5:9, 5:9] = 0  # a pixel without red is imagery
    image = write_bands(tmp_path / "scene.tif", bands, nodata=0)
    rgb, mask = cut_noise(tmp_path, image)
    assert (mask[60:] == 255).all()
    assert (mask[:60] != 255).all()
    np.testing.assert_array_equal(rgb, bands)


def test_white_nodata_is_black_in_the_tiles(tmp_path: Path):
    bands = noise()
    bands[:, :, 70:] = 255
    image = write_bands(tmp_path / "scene.tif", bands, nodata=255)
    rgb, mask = cut_noise(tmp_path, image)
    np.testing.assert_array_equal(mask == 255, np.broadcast_to(np.arange(96) >= 70, (96, 96)))
    assert not rgb[:, :, 70:].any()


@pytest.mark.parametrize("internal", [True, False])
def test_masks_within_and_beside_a_scene_are_no_data(tmp_path: Path, internal: bool):
    valid = np.ones((96, 96), bool)
    valid[40:70, :33] = False
    image = write_bands(tmp_path / "scene.tif", noise(), mask=valid if internal else None)
    if not internal:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(image, "r+") as target:
            target.write_mask(valid)
        assert (tmp_path / "scene.tif.msk").exists()
    rgb, mask = cut_noise(tmp_path, image)
    np.testing.assert_array_equal(mask == 255, ~valid)
    assert not rgb[:, ~valid].any()


@pytest.mark.filterwarnings("error")
def test_alpha_counts_beside_a_nodata_tag(tmp_path: Path):
    """Some RGBA files carry nodata=0 as well: a black pixel that is opaque is imagery, in the middle of a roof too."""
    bands = np.concatenate([noise(), np.full((1, 96, 96), 255, np.uint8)])
    bands[3, :, 80:] = 0
    bands[:3, 40:44, 40:44] = 0
    image = write_bands(tmp_path / "scene.tif", bands, alpha=True, nodata=0)
    _, mask = cut_noise(tmp_path, image)
    np.testing.assert_array_equal(mask == 255, bands[3] == 0)
    bands[:3, :30] = 0  # a collar that is opaque
    image = write_bands(tmp_path / "collar.tif", bands, alpha=True, nodata=0)
    _, mask = cut_noise(tmp_path / "collar", image)
    np.testing.assert_array_equal(mask == 255, (bands[3] == 0) | (np.arange(96) < 30)[:, None])


@pytest.mark.parametrize("grid", ["native", "0.5m"])
@pytest.mark.parametrize("opaque", [False, True])
def test_a_black_collar_is_no_data(tmp_path: Path, opaque: bool, grid: str):
    """Black around a turned scene, which the file takes for imagery; a black shadow inside, and one at the edge."""
    bands = noise(200, 200)
    inside = cv2.fillPoly(np.zeros((200, 200), np.uint8), [np.array([[0, 60], [150, 0], [199, 140], [50, 199]])], 1) > 0
    bands[:, ~inside] = 0
    bands[:, 100:112, 90:100] = 0  # a shadow
    if opaque:
        bands = np.concatenate([bands, np.full((1, 200, 200), 255, np.uint8)])
    image = write_bands(tmp_path / "scene.tif", bands, alpha=opaque)
    rgb, mask = cut_noise(tmp_path, image, grid=grid, min_valid=0)
    scale = 1 if grid == "native" else 2
    expected = np.kron(inside, np.ones((scale, scale), bool))
    found = mask[: 200 * scale, : 200 * scale] != 255
    assert (found == expected).mean() > (0.99999 if grid == "native" else 0.99)
    assert found[100 * scale : 112 * scale, 90 * scale : 100 * scale].all()
    assert not rgb[:, mask == 255].any()


def test_small_shadows_at_the_edge_are_imagery(tmp_path: Path):
    bands = noise()
    bands[:, :2, 20:22] = 0
    image = write_bands(tmp_path / "scene.tif", bands)
    _, mask = cut_noise(tmp_path, image)
    assert (mask != 255).all()


def test_a_collar_with_the_noise_of_jpeg_is_no_data(tmp_path: Path):
    bands = np.full((3, 512, 512), 120, np.uint8)
    bands[:] = cv2.GaussianBlur(np.random.default_rng(0).normal(120, 60, (512, 512)), (0, 0), 3).clip(40, 220)
    inside = cv2.fillPoly(np.zeros((512, 512), np.uint8), [np.array([[30, 130], [400, 20], [490, 400], [90, 500]])], 1)
    bands[:, inside == 0] = 0
    image = write_bands(
        tmp_path / "scene.tif", bands, compress="jpeg", photometric="ycbcr", jpeg_quality=75, tiled=True,
        blockxsize=256, blockysize=256, interleave="pixel",
    )  # fmt: skip
    with rasterio.open(image) as source:
        assert source.read()[:, inside == 0].any()
    _, mask = cut_noise(tmp_path, image, side_px=128)
    assert (mask[inside == 0] == 255).mean() > 0.97
    assert (mask[inside > 0] != 255).mean() > 0.999


def test_images_of_the_wrong_kind_are_told(tmp_path: Path):
    square = on_earth(SQUARES[:1], at_kampala())
    with pytest.raises(RasterError, match=r"cannot read .*scene\.tif"):
        cut_scene(tmp_path, tmp_path / "scene.tif", square)
    image = write_bands(tmp_path / "nowhere.tif", sharp(), crs=None)
    with pytest.raises(RasterError, match=r"nowhere\.tif has no coordinate system"):
        cut_scene(tmp_path, image, square)
    image = write_bands(tmp_path / "two.tif", sharp()[:2], photometric="minisblack")
    with pytest.raises(RasterError, match="has 2 bands of uint8, expected 3 or 4"):
        cut_scene(tmp_path, image, square)


@pytest.mark.parametrize("grid", ["native", "z19"])
def test_windows_of_the_scene_read_what_tiles_hold(tmp_path: Path, grid: str):
    smooth = cv2.GaussianBlur(noise().transpose(1, 2, 0), (0, 0), 4).transpose(2, 0, 1)
    bands = np.concatenate([smooth, np.full((1, 96, 96), 255, np.uint8)])
    bands[3, :20] = 0
    image = write_bands(tmp_path / "scene.tif", bands, alpha=True)
    square = on_earth([shapely.box(30, 30, 50, 60)], at_kampala())
    cuts = {
        kind: cut_scene(tmp_path / kind, image, square, grid=grid, side_px=64, images=kind)
        for kind in ("lossless", "jpeg", "scene")
    }
    pixels = {}
    for kind, made in cuts.items():
        assert [tile.mask for tile in made.cut.tiles] == [tile.mask for tile in cuts["lossless"].cut.tiles]
        assert all(
            (made.folder / tile.mask).read_bytes() == (tmp_path / "lossless" / tile.mask).read_bytes()
            for tile in made.cut.tiles
        )
        read = [read_tile(str(made.folder / tile.image), str(made.folder / tile.mask)) for tile in made.cut.tiles]
        pixels[kind] = np.stack([rgb for rgb, _ in read]).astype(int)
    # a block of warped tiles and a tile alone lie within an eighth of a pixel of each other
    assert np.abs(pixels["scene"] - pixels["lossless"]).max() <= (0 if grid == "native" else 2)
    assert 0 < np.abs(pixels["jpeg"] - pixels["lossless"]).mean() < 3
    assert not list(tmp_path.glob("scene/images/**/*.tif"))


def test_windows_of_a_relative_path_can_be_read_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_bands(tmp_path / "here/scene.tif", sharp())
    monkeypatch.chdir(tmp_path / "here")
    made = cut_scene(tmp_path, Path("scene.tif"), on_earth(SQUARES, at_kampala()), grid="native", images="scene")
    monkeypatch.chdir(tmp_path)
    tile = made.cut.tiles[0]
    assert read_tile(str(tmp_path / tile.image), str(tmp_path / tile.mask))[0].any()


def test_windows_need_their_scene(tmp_path: Path):
    image = write_bands(tmp_path / "scene.tif", sharp())
    made = cut_scene(tmp_path, image, on_earth(SQUARES, at_kampala()), grid="native", side_px=64, images="scene")
    tile = made.cut.tiles[0]
    image.rename(tmp_path / "away.tif")
    with pytest.raises(DataError, match=r"tile .* cannot be read"):
        read_tile(str(tmp_path / tile.image), str(tmp_path / tile.mask))


def test_windows_of_nodata_and_collars_are_black(tmp_path: Path):
    """The mask tells where there is no imagery; what is seen there must not differ from what tiles hold."""
    bands = noise()
    bands[:, :, 70:] = 255
    image = write_bands(tmp_path / "scene.tif", bands, nodata=255)
    made = cut_scene(tmp_path, image, on_earth([shapely.box(30, 30, 50, 60)], at_kampala()), grid="native", side_px=32,
                     images="scene")  # fmt: skip
    rgb, mask, _ = laid_out(made)
    assert (mask[:, 70:] == 255).all()
    assert not rgb[:, mask == 255].any()


def test_a_scene_that_crosses_a_zone_lies_where_its_outline_says(tmp_path: Path):
    """A long scene far from its meridian is bent on the web's grid: the outline follows."""
    x, y = pyproj.Transformer.from_crs("EPSG:4326", UTM, always_xy=True).transform(37.0, 60.0)
    transform = Affine(40, 0, x, 0, -40, y)
    image = write_bands(tmp_path / "scene.tif", sharp(60, 1500), transform)
    made = cut_scene(tmp_path, image, on_earth([shapely.box(700, 20, 720, 40)], transform), grid="z10", side_px=256)
    _, mask, _ = laid_out(made)
    with rasterio.open(image) as source:
        area_m2 = source.width * source.height * 40 * 40
    seen_m2 = sum(tile.valid_fraction * 256 * 256 * tile.gsd_m**2 for tile in made.cut.tiles)
    assert seen_m2 == pytest.approx(area_m2, rel=0.02)
    assert (mask == 1).any()
