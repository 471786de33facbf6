import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from factories import at_kampala, prepare, write_bands
from rasterio.errors import NotGeoreferencedWarning

from kit.data.dataset import read_tile
from kit.data.sources.inputs import Inputs, Pair
from kit.data.tiles import prepare as preparing
from kit.data.tiles.prepare import Prepared
from kit.errors import CutError, DataError
from kit.paths import Paths


def rgb_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(30, 220, (3, height, width), dtype=np.uint8)


def mask_of(height: int, width: int, building: int = 255) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[5:20, 8:30] = building
    return mask


def write_png(path: Path, bands: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="PNG", count=len(bands), height=bands.shape[1], width=bands.shape[2], dtype=bands.dtype
    ) as target:
        target.write(bands)
    return path


@pytest.fixture
def pairs() -> list[Pair]:
    return []


def put_pair(pairs: list[Pair], folder: Path, name: str, rgb: np.ndarray, mask: np.ndarray, scene: str = "a") -> Pair:
    image = write_png(folder / scene / f"{name}.png", rgb)
    truth = write_png(folder / scene / f"{name}_mask.png", mask[None])
    pairs.append(Pair("kam", scene, 1, name, str(image), str(truth)))
    return pairs[-1]


def take(pairs: list[Pair], folder: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> Prepared:
    source = Inputs("kaggle", (), tuple(sorted(pairs, key=lambda pair: (pair.scene, pair.name))))
    monkeypatch.setattr(preparing, "read_source", lambda *_: source)
    return prepare("anything", Paths(folder), **{"by": "tile", "k": 2} | options)


def tiles_of(made: Prepared, folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns image (3, H, W) and mask (H, W) by id."""
    read = {}
    for row in made.index.itertuples():
        image, mask = (str(folder / "data" / made.name / file) for file in (row.image, row.mask))
        rgb, truth = read_tile(image, mask)
        read[row.tile] = rgb.transpose(2, 0, 1), truth
    return read


@pytest.mark.parametrize("building", [255, 1])
def test_images_and_masks_are_taken_over(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch, building: int
):
    put_pair(pairs, tmp_path, "x", rgb_of(64, 64), mask_of(64, 64, building))
    put_pair(pairs, tmp_path, "y", rgb_of(64, 64, 1), mask_of(64, 64, 0))  # no building, whatever building is
    made = take(pairs, tmp_path, monkeypatch, gsd_m=0.3)
    tiles = tiles_of(made, tmp_path)
    assert list(tiles) == ["kam_a_x", "kam_a_y"]
    np.testing.assert_array_equal(tiles["kam_a_x"][0], rgb_of(64, 64))
    np.testing.assert_array_equal(tiles["kam_a_x"][1], mask_of(64, 64, 1))
    assert not tiles["kam_a_y"][1].any()
    assert set(made.index["gsd_m"]) == {0.3}
    assert set(made.index["crs"]) == {""}
    assert made.index["left"].isna().all()


def test_where_a_mask_holds_ones_255_is_no_data(tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch):
    mask = mask_of(64, 64, 1)
    mask[40:] = 255
    put_pair(pairs, tmp_path, "x", rgb_of(64, 64), mask)
    other = np.zeros((64, 64), np.uint8)
    other[:, 50:] = 255
    put_pair(pairs, tmp_path, "a", rgb_of(64, 64), other)  # comes first, and holds no 1
    made = take(pairs, tmp_path, monkeypatch)
    tiles = tiles_of(made, tmp_path)
    np.testing.assert_array_equal(tiles["kam_a_x"][1], mask)
    np.testing.assert_array_equal(tiles["kam_a_a"][1], other)


@pytest.mark.parametrize("name", ["a", "z"])
def test_other_values_are_told_wherever_they_are(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch, name: str
):
    put_pair(pairs, tmp_path, "m", rgb_of(64, 64), mask_of(64, 64, 1))
    put_pair(pairs, tmp_path, name, rgb_of(64, 64), mask_of(64, 64, 2))
    with pytest.raises(CutError, match=rf"{name}_mask\.png holds the value 2, expected 0 and 1"):
        take(pairs, tmp_path, monkeypatch)


def test_masks_of_more_than_a_byte_are_told(tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch):
    put_pair(pairs, tmp_path, "x", rgb_of(64, 64), mask_of(64, 64).astype(np.uint16))
    with pytest.raises(CutError, match=r"x_mask\.png holds uint16, expected uint8"):
        take(pairs, tmp_path, monkeypatch)


def test_all_are_filled_up_to_one_side(tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch):
    put_pair(pairs, tmp_path, "x", rgb_of(50, 64), mask_of(50, 64))
    put_pair(pairs, tmp_path, "y", rgb_of(70, 40), mask_of(70, 40))
    made = take(pairs, tmp_path, monkeypatch)
    assert set(made.index["width_px"]) | set(made.index["height_px"]) == {96}
    tiles = tiles_of(made, tmp_path)
    for name, (height, width) in {"kam_a_x": (50, 64), "kam_a_y": (70, 40)}.items():
        rgb, mask = tiles[name]
        np.testing.assert_array_equal(rgb[:, :height, :width], rgb_of(height, width))
        np.testing.assert_array_equal(mask[:height, :width], mask_of(height, width, 1))
        filled = np.ones((96, 96), bool)
        filled[:height, :width] = False
        assert (mask[filled] == 255).all()
        assert not rgb[:, filled].any()


def test_larger_ones_are_split_and_nothing_is_lost(tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch):
    put_pair(pairs, tmp_path, "x", rgb_of(100, 150), mask_of(100, 150))
    put_pair(pairs, tmp_path, "y", rgb_of(64, 64), mask_of(64, 64))
    made = take(pairs, tmp_path, monkeypatch, side_px=64, min_valid=0)
    tiles = tiles_of(made, tmp_path)
    assert list(tiles) == [*(f"kam_a_x_r{row}_c{column}" for row in range(2) for column in range(3)), "kam_a_y"]
    rgb, mask = np.zeros((3, 128, 192), np.uint8), np.zeros((128, 192), np.uint8)
    for row, column in np.ndindex(2, 3):
        at = np.s_[..., 64 * row : 64 * row + 64, 64 * column : 64 * column + 64]
        rgb[at], mask[at] = tiles[f"kam_a_x_r{row}_c{column}"]
    np.testing.assert_array_equal(rgb[:, :100, :150], rgb_of(100, 150))
    np.testing.assert_array_equal(mask[:100, :150], mask_of(100, 150, 1))
    assert (mask == 255).sum() == 128 * 192 - 100 * 150


def test_a_place_on_earth_is_kept(tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch):
    image = write_bands(tmp_path / "x.tif", rgb_of(64, 64), at_kampala(pixel=0.25))
    mask = write_bands(tmp_path / "m.tif", mask_of(64, 64)[None], photometric="minisblack")
    pairs.append(Pair("kam", "a", 1, "x", str(image), str(mask)))
    made = take(pairs, tmp_path, monkeypatch, gsd_m=9)
    row = made.index.iloc[0]
    place = at_kampala(pixel=0.25)
    assert row["gsd_m"] == pytest.approx(0.25)
    assert row["crs"] == "EPSG:32636"
    np.testing.assert_allclose(row[["left", "top"]].astype(float), (place.c, place.f))
    np.testing.assert_allclose(row[["right", "bottom"]].astype(float), (place.c + 16, place.f - 16))
    with rasterio.open(tmp_path / "data/kaggle" / row["mask"]) as written:
        assert written.transform == place


def test_sizes_that_differ_are_told_and_stop_no_other(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
):
    put_pair(pairs, tmp_path, "x", rgb_of(64, 64), mask_of(64, 60))
    put_pair(pairs, tmp_path, "y", rgb_of(64, 64), mask_of(64, 64))
    with pytest.raises(CutError, match=r"kam_a_x: .*x\.png has 64 x 64 px, its mask .*x_mask\.png 60 x 64") as caught:
        take(pairs, tmp_path, monkeypatch)
    assert list(caught.value.prepared.index["tile"]) == ["kam_a_y"]


def test_black_frames_and_alpha_of_chips_are_no_data(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
):
    framed = rgb_of(64, 64)
    framed[:, :, :20] = 0
    put_pair(pairs, tmp_path, "x", framed, mask_of(64, 64))
    clear = np.concatenate([rgb_of(64, 64), np.full((1, 64, 64), 255, np.uint8)])
    clear[3, 50:] = 0
    put_pair(pairs, tmp_path, "y", clear, mask_of(64, 64))
    tiles = tiles_of(take(pairs, tmp_path, monkeypatch), tmp_path)
    np.testing.assert_array_equal(tiles["kam_a_x"][1] == 255, np.broadcast_to(np.arange(64) < 20, (64, 64)))
    np.testing.assert_array_equal(tiles["kam_a_y"][1] == 255, clear[3] == 0)
    assert not tiles["kam_a_y"][0][:, 50:].any()


def test_a_larger_pair_changes_the_side_of_all(tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch):
    put_pair(pairs, tmp_path, "x", rgb_of(64, 64), mask_of(64, 64), "a")
    put_pair(pairs, tmp_path, "x", rgb_of(64, 64), mask_of(64, 64), "b")
    take(pairs, tmp_path, monkeypatch)
    again = take(pairs, tmp_path, monkeypatch)
    assert again.kept == 2
    assert set(again.index["crs"]) == {""}
    assert again.index["left"].isna().all()
    put_pair(pairs, tmp_path, "x", rgb_of(96, 90), mask_of(96, 90), "c")
    made = take(pairs, tmp_path, monkeypatch)
    assert set(made.index["width_px"]) == {96}


def test_pairs_with_little_imagery_are_listed(tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch):
    framed = rgb_of(64, 64)
    framed[:, :60] = 0
    put_pair(pairs, tmp_path, "x", framed, mask_of(64, 64))
    put_pair(pairs, tmp_path, "y", rgb_of(64, 64), mask_of(64, 64))
    put_pair(pairs, tmp_path, "z", rgb_of(64, 64), mask_of(64, 64))
    made = take(pairs, tmp_path, monkeypatch, min_valid=0.2)
    assert list(made.index["tile"]) == ["kam_a_y", "kam_a_z"]
    (skipped,) = made.scenes[0].cut.skipped
    assert (skipped.tile, skipped.reason) == ("kam_a_x", "imagery below 0.2")
    assert skipped.valid_fraction == 1 / 16


@pytest.mark.parametrize("style", [{"images": "scene"}, {"layers": True}])
def test_facts_missing_from_ready_made_masks(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch, style: dict[str, object]
):
    put_pair(pairs, tmp_path, "x", rgb_of(64, 64), mask_of(64, 64))
    with pytest.raises(DataError, match=r"ready-made (images have no scene|masks have no footprints)"):
        take(pairs, tmp_path, monkeypatch, **style)


def test_pairs_are_cut_alike_by_any_number_of_processes(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
):
    for number in range(40):
        put_pair(pairs, tmp_path, f"{number}", rgb_of(32, 32, number), mask_of(32, 32))
    made = [take(pairs, tmp_path, monkeypatch, name=str(workers), workers=workers) for workers in (1, 3)]
    assert len(made[0].index) == 40
    one, three = (
        {file.relative_to(tmp_path / "data" / name): file.read_bytes()
         for file in (tmp_path / "data" / name).rglob("*") if file.is_file()}
        for name in ("1", "3")
    )  # fmt: skip
    assert one == three


def test_chips_without_georeference_cause_no_warning(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
):
    put_pair(pairs, tmp_path, "x", rgb_of(64, 64), mask_of(64, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotGeoreferencedWarning)
        tiles = tiles_of(take(pairs, tmp_path, monkeypatch, workers=1), tmp_path)
    assert list(tiles) == ["kam_a_x"]
