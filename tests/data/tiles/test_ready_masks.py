"""Which values of ready-made masks are buildings, and where their pixels lie."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyproj
import pytest
import rasterio
from factories import MERCATOR, UTM, at_kampala, prepare, write_bands
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine

from kit.data.tiles.ready_masks import parse_values
from kit.deploy.submission.mask_tiff import decode_mask
from kit.errors import CutError, DataError
from kit.paths import Paths

SIDE = 64
LOCAL = CRS.from_wkt('LOCAL_CS["plan",UNIT["metre",1]]')
HERE = at_kampala(pixel=0.25)
Cli = Callable[..., tuple[int, str, str]]


def ground(side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).integers(40, 220, (3, side, side), dtype=np.uint8)


def buildings(side: int = SIDE) -> np.ndarray:
    mask = np.zeros((side, side), np.uint8)
    mask[5:20, 8:30] = 1
    mask[40:44, 50:61] = 1
    return mask


def save(folder: Path, name: str, mask: np.ndarray) -> None:
    """Writes an image and its mask, (H, W) or (H, W, C), as PNGs."""
    for kind, pixels in (("images", ground().transpose(1, 2, 0)), ("masks", mask)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / f"{name}.png")


def masks_of(folder: Path, **options: object) -> dict[str, np.ndarray]:
    """Returns what `kit prepare` makes of a folder's masks, by name."""
    index = prepare(folder, Paths(folder.parent), by="tile", k=2, **options).index
    made = {}
    for row in index.itertuples():
        with rasterio.open(folder.parent / "data" / folder.name / row.mask) as source:
            made[row.tile.rsplit("_", 1)[1]] = source.read(1)
    return made


@pytest.mark.parametrize("channels", [3, 4])
def test_masks_of_equal_bands_are_read(tmp_path: Path, channels: int):
    mask = np.stack([buildings() * np.uint8(255)] * 3 + [np.full((SIDE, SIDE), 255, np.uint8)], axis=2)
    save(tmp_path / "city", "a", mask[..., :channels])
    np.testing.assert_array_equal(masks_of(tmp_path / "city")["a"], buildings())


def test_a_mask_in_colour_is_refused_unless_its_colour_is_named(tmp_path: Path):
    blue = np.zeros((SIDE, SIDE, 3), np.uint8)
    blue[..., 2] = buildings() * 255
    save(tmp_path / "city", "a", blue)
    with pytest.raises(CutError, match=r"a\.png is in colour: its 3 bands differ") as caught:
        masks_of(tmp_path / "city")
    assert "--building-value" in caught.value.hint
    np.testing.assert_array_equal(masks_of(tmp_path / "city", building_values=((0, 0, 255),))["a"], buildings())
    with pytest.raises(CutError, match="is in colour, and 255 is not a colour"):
        masks_of(tmp_path / "city", building_values=((255,),))


def test_a_mask_that_hides_a_part_is_refused(tmp_path: Path):
    mask = np.full((SIDE, SIDE, 4), 255, np.uint8)
    mask[..., 3] = buildings() * 255
    save(tmp_path / "city", "a", mask)
    with pytest.raises(CutError, match=r"a\.png is transparent in places"):
        masks_of(tmp_path / "city")


def test_classes_are_named(tmp_path: Path):
    mask = buildings() * np.uint8(2)
    mask[30:35] = 1  # roads, say
    mask[60:] = 255
    save(tmp_path / "city", "a", mask)
    with pytest.raises(CutError, match="holds the value 2, expected 0 and 1") as caught:
        masks_of(tmp_path / "city")
    assert "--building-value 2" in caught.value.hint
    made = masks_of(tmp_path / "city", building_values=((2,),))["a"]
    np.testing.assert_array_equal(made, np.where(mask == 255, 255, mask == 2))
    made = masks_of(tmp_path / "city", building_values=((2,), (1,)))["a"]
    np.testing.assert_array_equal(made, np.where(mask == 255, 255, mask > 0))


def test_a_building_value_of_the_command(tmp_path: Path, cli: Cli):
    save(tmp_path / "city", "a", buildings() * np.uint8(3))
    code, _, err = cli("prepare", tmp_path / "city", "--building-value", "3", "--root", tmp_path)
    assert code == 0, err
    share = pd.read_csv(tmp_path / "data/city/index.csv")["building_fraction"][0]
    assert share == pytest.approx(buildings().mean(), abs=1e-6)
    code, _, err = cli("prepare", tmp_path / "city", "--building-value", "blue", "--root", tmp_path)
    assert (code, err.splitlines()[0]) == (1, "error: building value 'blue' is neither a class nor a colour")


def test_progress_counts_images(tmp_path: Path, cli: Cli):
    """Also where an image makes several tiles."""
    for name in "ab":
        save(tmp_path / "city", name, buildings())
    code, _, err = cli("prepare", tmp_path / "city", "--side", 32, "--root", tmp_path)
    assert code == 0, err
    assert "cut tiles 2/2" in err
    assert len(pd.read_csv(tmp_path / "data/city/index.csv")) == 8


@pytest.mark.parametrize("text", ["", "256", "-1", "1,2", "1,2,3,4", "1,2,x", "0.5"])
def test_what_is_no_building_value(text: str):
    with pytest.raises(DataError, match="neither a class nor a colour"):
        parse_values([text])
    assert parse_values(["2", "255, 0,0"]) == ((2,), (255, 0, 0))


@pytest.mark.parametrize("kind", ["palette", "white is zero"])
def test_masks_whose_file_shows_0_as_white(tmp_path: Path, kind: str):
    """As programs that choose their own palette write them."""
    for name, mask in (("a", buildings()), ("b", buildings() * np.uint8(0))):
        save(tmp_path / "city", name, mask)
        path = tmp_path / f"city/masks/{name}.png"
        if kind == "palette":
            picture = Image.fromarray(1 - mask, "P")
            picture.putpalette([255, 255, 255, 0, 0, 0])
            picture.save(path)
        else:
            path.unlink()
            Image.fromarray(255 * mask).save(path.with_suffix(".tif"), tiffinfo={262: 0})
    made = masks_of(tmp_path / "city")
    np.testing.assert_array_equal(made["a"], buildings())
    assert not made["b"].any()
    (a, _) = sorted((tmp_path / "city/masks").iterdir())
    np.testing.assert_array_equal(decode_mask(a.read_bytes(), "a") > 0, buildings())  # as kit score reads it


def test_each_mask_counts_by_its_own_values(tmp_path: Path):
    save(tmp_path / "city", "one", buildings())
    save(tmp_path / "city", "white", buildings() * np.uint8(255))
    save(tmp_path / "city", "empty", buildings() * np.uint8(0))
    made = masks_of(tmp_path / "city")
    np.testing.assert_array_equal(made["one"], buildings())
    np.testing.assert_array_equal(made["white"], buildings())
    assert not made["empty"].any()


def test_mixed_masks_that_contradict_each_other_are_named(tmp_path: Path):
    save(tmp_path / "city", "one", buildings())
    save(tmp_path / "city", "white", buildings() * np.uint8(255))
    save(tmp_path / "city", "full", np.full((SIDE, SIDE), 255, np.uint8))
    with pytest.raises(DataError, match=r"of 0 and 1 \(such as .*one\.png\) and of 0 and 255 .*full\.png") as caught:
        masks_of(tmp_path / "city")
    assert "--building-value 255" in caught.value.hint
    assert (masks_of(tmp_path / "city", building_values=((1,),))["white"] == buildings() * 255).all()
    made = masks_of(tmp_path / "city", building_values=((1,), (255,)))
    assert made["full"].all()
    np.testing.assert_array_equal(made["one"], buildings())


def placed_pair(
    folder: Path, mask: np.ndarray, transform: Affine, crs: str | CRS = UTM, image_crs: object = UTM
) -> None:
    write_bands(folder / "images/a.tif", ground(), HERE)
    write_bands(folder / "masks/a.tif", mask[None], transform, crs, photometric="minisblack")


@pytest.mark.parametrize("way", ["down", "across", "both", "transposed"])
def test_masks_stored_another_way_round_are_turned(tmp_path: Path, way: str):
    mask, place = {
        "down": (buildings()[::-1], HERE @ Affine(1, 0, 0, 0, -1, SIDE)),
        "across": (buildings()[:, ::-1], HERE @ Affine(-1, 0, SIDE, 0, 1, 0)),
        "both": (buildings()[::-1, ::-1], HERE @ Affine(-1, 0, SIDE, 0, -1, SIDE)),
        "transposed": (buildings().T, HERE @ Affine(0, 1, 0, 1, 0, 0)),
    }[way]
    placed_pair(tmp_path / "city", np.ascontiguousarray(mask), place)
    np.testing.assert_array_equal(masks_of(tmp_path / "city")["a"], buildings())


@pytest.mark.parametrize(("down", "right"), [(0, 7), (11, 0), (-5, -9), (0.02, 0)])
def test_shifted_masks_are_moved(tmp_path: Path, down: float, right: float):
    """What they do not cover is no data."""
    placed_pair(tmp_path / "city", buildings(), HERE @ Affine.translation(right, down))
    expected = np.full((SIDE, SIDE), 255, np.uint8)
    rows, columns = (slice(max(0, int(at)), SIDE + min(0, int(at))) for at in (down, right))
    from_rows, from_columns = (slice(max(0, -int(at)), SIDE - max(0, int(at))) for at in (down, right))
    expected[rows, columns] = buildings()[from_rows, from_columns]
    np.testing.assert_array_equal(masks_of(tmp_path / "city")["a"], expected)


def test_larger_and_finer_masks_are_cut_to_the_image(tmp_path: Path):
    around = np.pad(buildings(), 10)
    placed_pair(tmp_path / "city", np.kron(around, np.ones((2, 2), np.uint8)),
                HERE @ Affine.translation(-10, -10) @ Affine.scale(0.5))  # fmt: skip
    np.testing.assert_array_equal(masks_of(tmp_path / "city")["a"], buildings())


def test_masks_in_another_crs_are_warped(tmp_path: Path):
    """Drawn finely in web mercator, so that nothing but the projection moves a pixel."""
    x, y = pyproj.Transformer.from_crs(UTM, MERCATOR, always_xy=True).transform(HERE.c, HERE.f)
    place = Affine(0.05, 0, x - 2, 0, -0.05, y + 2)
    rows, columns = np.indices((420, 420)) + 0.5
    back = pyproj.Transformer.from_crs(MERCATOR, UTM, always_xy=True)
    east, north = back.transform(place.c + columns * place.a, place.f + rows * place.e)
    across, down = (east - HERE.c) / 0.25, (HERE.f - north) / 0.25
    inside = (across >= 0) & (across < SIDE) & (down >= 0) & (down < SIDE)
    mask = np.zeros(rows.shape, np.uint8)
    mask[inside] = buildings()[down[inside].astype(int), across[inside].astype(int)]
    placed_pair(tmp_path / "city", mask, place, MERCATOR)
    made = masks_of(tmp_path / "city")["a"]
    assert (made != buildings()).mean() < 0.01


def test_masks_of_other_ground_are_refused(tmp_path: Path):
    placed_pair(tmp_path / "city", buildings(), HERE @ Affine.translation(5000, 0))
    with pytest.raises(CutError, match=r"a\.tif lies on other ground than"):
        masks_of(tmp_path / "city")


def test_a_mask_or_image_in_a_drawings_coordinates_fails_alone(tmp_path: Path):
    city = tmp_path / "city"
    placed_pair(city, buildings(), HERE)
    for name, image_crs, mask_crs in (("b", LOCAL, UTM), ("c", UTM, LOCAL)):
        write_bands(city / f"images/{name}.tif", ground(), HERE, image_crs)
        write_bands(city / f"masks/{name}.tif", buildings()[None], HERE, mask_crs, photometric="minisblack")
    with pytest.raises(CutError, match="2 of 3 tiles could not be cut") as caught:
        masks_of(city)
    assert list(caught.value.prepared.index["tile"]) == ["city_city_a"]
    failed = pd.read_csv(tmp_path / "data/city/failed.csv")
    assert failed["reason"].str.contains("has no place on earth").all()
    assert failed["hint"].str.contains("gdal_edit.py").all()


@pytest.mark.parametrize("broken", ["images", "masks"])
def test_a_broken_file_fails_alone(tmp_path: Path, broken: str):
    for name in ("a", "b"):
        save(tmp_path / "city", name, buildings())
    (tmp_path / f"city/{broken}/b.png").write_bytes(b"nothing")
    with pytest.raises(CutError, match=rf"1 of 2 tiles could not be cut.*cannot read .*{broken}/b\.png"):
        masks_of(tmp_path / "city")
    assert len(pd.read_csv(tmp_path / "data/city/index.csv")) == 1
