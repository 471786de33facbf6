"""Whole pictures: upright, bounded, and without imagery where the file or a collar says so."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from factories import UTM, at_kampala, write_bands
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from kit.data.rasters import MOST_PIXELS, image_size, open_scene, read_image
from kit.deploy.submission.mask_tiff import decode_mask
from kit.errors import RasterError

SUFFIXES = (".jpg", ".png", ".webp", ".tif")


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(40, 220, (height, width, 3), dtype=np.uint8)


def as_stored(image: np.ndarray, orientation: int) -> np.ndarray:
    """Returns the pixels that a camera stores with an orientation, so that turned upright they are `image`."""
    turned = {
        1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1], 5: image.swapaxes(0, 1),
        6: np.rot90(image), 7: image[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(image, -1),
    }  # fmt: skip
    return np.ascontiguousarray(turned[orientation])


def save(path: Path, pixels: np.ndarray, orientation: int) -> Path:
    exif = Image.Exif()
    exif[274] = orientation
    options = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}.get(path.suffix, {})
    Image.fromarray(pixels).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path: Path, orientation: int, suffix: str):
    image = np.kron(noise(3, 5), np.ones((8, 8, 1), np.uint8))  # whole blocks: JPEG changes them by little
    path = save(tmp_path / f"x{suffix}", as_stored(image, orientation), orientation)
    found = read_image(path)
    assert image_size(path) == found.shape[:2] == image.shape[:2]
    assert np.abs(found.astype(int) - image).max() <= (3 if suffix == ".jpg" else 0)
    if suffix != ".tif":
        from PIL import ImageOps  # another reader agrees

        with Image.open(path) as picture:
            np.testing.assert_allclose(np.asarray(ImageOps.exif_transpose(picture)), found, atol=3)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_masks_in_memory_are_upright(tmp_path: Path, orientation: int):
    mask = (noise(9, 14)[..., 0] > 128).astype(np.uint8)
    path = save(tmp_path / "m.tif", as_stored(mask, orientation), orientation)
    np.testing.assert_array_equal(decode_mask(path.read_bytes(), "m.tif"), mask)


def test_an_orientation_does_not_turn_what_has_a_georeference(tmp_path: Path):
    path = save(tmp_path / "x.jpg", noise(16, 24), 6)
    path.with_suffix(".jgw").write_text("0.1\n0\n0\n-0.1\n500000\n9300000\n")
    assert read_image(path).shape == (16, 24, 3)


@pytest.mark.parametrize("blocks", [{}, {"tiled": True, "blockxsize": 1024, "blockysize": 1024}])
def test_a_small_file_that_claims_a_large_picture(tmp_path: Path, blocks: dict[str, object]):
    path = tmp_path / "bomb.tif"
    shape = {"width": 100_000, "height": 100_000, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", sparse_ok=True, compress="deflate", bigtiff=True, **shape, **blocks):
        pass
    for read in (read_image, image_size):
        with pytest.raises(RasterError, match=rf"bomb\.tif has 100,000 x 100,000 px, expected at most {MOST_PIXELS:,}"):
            read(path)


def test_a_vrt_is_no_picture(tmp_path: Path):
    write_bands(tmp_path / "secret.tif", noise(8, 8).transpose(2, 0, 1))
    vrt = tmp_path / "x.tif"
    vrt.write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8">'
        + "".join(
            f'<VRTRasterBand dataType="Byte" band="{n}"><SimpleSource><SourceFilename>{tmp_path}/secret.tif'
            f"</SourceFilename><SourceBand>{n}</SourceBand></SimpleSource></VRTRasterBand>"
            for n in (1, 2, 3)
        )
        + "</VRTDataset>"
    )
    with rasterio.open(vrt) as source:
        assert source.read().any()  # GDAL would read it
    with pytest.raises(RasterError, match=r"x\.tif is a VRT, which may read any other file"):
        read_image(vrt)


@pytest.mark.parametrize(("kind", "remedy"), [("uint16", "-ot Byte -scale"), ("float32", "-ot Byte -scale")])
def test_imagery_of_more_than_8_bits(tmp_path: Path, kind: str, remedy: str):
    write_bands(tmp_path / "x.tif", noise(8, 8).transpose(2, 0, 1).astype(kind), at_kampala())
    for read in (read_image, lambda path: open_scene(str(path))):
        with pytest.raises(RasterError, match=rf"x\.tif has 3 bands of {kind}, expected 3 or 4") as caught:
            read(tmp_path / "x.tif")
        assert remedy in caught.value.hint


@pytest.mark.parametrize("kinds", ["blue green red", "alpha red green blue"])
def test_bands_of_other_colours_are_refused(tmp_path: Path, kinds: str):
    bands = noise(8, 8)[..., [0, 1, 2, 0][: len(kinds.split())]].transpose(2, 0, 1)
    path = write_bands(tmp_path / "x.tif", bands, photometric="minisblack")
    assert read_image(path).shape == (8, 8, len(bands))  # bands without a meaning are red, green, blue
    with rasterio.open(path, "r+") as target:
        target.colorinterp = [rasterio.enums.ColorInterp[kind] for kind in kinds.split()]
    for read in (read_image, lambda path: open_scene(str(path))):
        with pytest.raises(RasterError, match=rf"the bands of .* are {', '.join(kinds.split()[:3])}, expected red"):
            read(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".jp2"])
def test_a_picture_that_was_cut_off_is_refused(tmp_path: Path, suffix: str):
    """An interrupted download; GDAL's fast way returns the missing part of a PNG as black."""
    path = tmp_path / f"x{suffix}"
    Image.fromarray(noise(64, 64)).save(path)
    assert read_image(path).shape == (64, 64, 3)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 60):
        path.write_bytes(whole[:size])
        with pytest.raises(RasterError, match=rf"cannot read .*x\{suffix}"):
            read_image(path)


def test_ground_control_points_are_no_transform(tmp_path: Path):
    points = [GroundControlPoint(row, col, 5e5 + col, 9e6 - row) for row in (0, 8) for col in (0, 8)]
    shape = {"driver": "GTiff", "width": 8, "height": 8, "count": 3, "dtype": "uint8"}
    with rasterio.open(tmp_path / "x.tif", "w", **shape, gcps=points, crs=UTM) as target:
        target.write(noise(8, 8).transpose(2, 0, 1))
    with pytest.raises(RasterError, match="has 4 ground control points instead of a transform") as caught:
        open_scene(str(tmp_path / "x.tif"))
    assert caught.value.hint == f"warp it: gdalwarp -r bilinear {tmp_path}/x.tif warped.tif"


def test_a_sensor_model_is_no_transform(tmp_path: Path):
    write_bands(tmp_path / "x.tif", noise(8, 8).transpose(2, 0, 1), Affine.identity(), crs=None)
    polynomial = [1.0] * 20
    with rasterio.open(tmp_path / "x.tif", "r+") as target:
        target.rpcs = RPC(0, 1, 0, 1, polynomial, polynomial, 0, 1, 0, 1, polynomial, polynomial, 0, 1)
    with pytest.raises(RasterError, match=r"has a sensor model \(RPC\) instead of a transform") as caught:
        open_scene(str(tmp_path / "x.tif"))
    assert "gdalwarp -rpc" in caught.value.hint


def test_nodata_values_and_collars_become_alpha(tmp_path: Path):
    image = noise(64, 64)
    image[10:20, 10:20] = 77
    image[:, :20] = 255
    write_bands(tmp_path / "plain.tif", image.transpose(2, 0, 1))
    found = read_image(tmp_path / "plain.tif")
    np.testing.assert_array_equal(found[..., 3] == 0, np.broadcast_to(np.arange(64) < 20, (64, 64)))
    assert not found[:, :20, :3].any()
    np.testing.assert_array_equal(found[:, 20:, :3], image[:, 20:])
    image = noise(64, 64)
    image[10:20, 10:20] = 7
    write_bands(tmp_path / "nodata.tif", image.transpose(2, 0, 1), nodata=7)
    assert (read_image(tmp_path / "nodata.tif")[..., 3] == 0).sum() == 100


def test_alpha_stays_as_it_is(tmp_path: Path):
    image = np.dstack([noise(40, 40), np.full((40, 40), 255, np.uint8)])
    image[5:9, 5:9, 3] = 0
    image[20:30, 20:30, 3] = 128
    write_bands(tmp_path / "x.tif", image.transpose(2, 0, 1))
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), image)
