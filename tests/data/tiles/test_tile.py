from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from factories import LATITUDE, prepare, write_catalog, write_footprints, write_scene
from hypothesis import given
from hypothesis import strategies as st

from kit.data.grids import Grid
from kit.data.index import read_index, refold
from kit.errors import CutError, DataError
from kit.paths import Paths

CONTRACT = [
    *["tile", "area", "scene", "tier", "fold", "image", "mask", "width_px", "height_px", "gsd_m"],
    "valid_fraction",
    "building_fraction",
    "n_footprints",
    *["crs", "left", "bottom", "right", "top"],
]


def test_index_has_the_columns_of_the_contract(catalog: Path, tmp_path: Path):
    made = prepare(catalog, Paths(tmp_path), side_px=64)
    assert list(made.index.columns) == CONTRACT
    assert made.name == "train_tier_1"
    assert made.index["tile"].is_unique
    for row in made.index.itertuples():
        with rasterio.open(tmp_path / "data/train_tier_1" / row.image) as image:
            assert (image.count, image.width, image.height, image.dtypes[0]) == (3, 64, 64, "uint8")
        with rasterio.open(tmp_path / "data/train_tier_1" / row.mask) as mask:
            assert set(np.unique(mask.read(1))) <= {0, 1, 255}


def test_z19_tiles_have_the_resolution_of_the_xyz_scheme(catalog: Path, tmp_path: Path):
    made = prepare(catalog, Paths(tmp_path), side_px=1024)
    expected = 0.0746455 * np.cos(np.radians(LATITUDE))
    np.testing.assert_allclose(made.index["gsd_m"], expected, rtol=1e-4)


def test_native_tiles_hold_every_pixel_once(tmp_path: Path, catalog: Path):
    """The last row and column too: the tiles of one scene, laid side by side, are the scene."""
    prepare(catalog, Paths(tmp_path), grid="native", side_px=32)
    _, index = read_index(Paths(tmp_path))
    with rasterio.open(catalog / "kam/b/b.tif") as source:
        scene, origin = source.read(), source.transform
    seen = np.zeros(scene.shape[1:], int)
    for row in index[index["scene"] == "b"].itertuples():
        with rasterio.open(row.image) as image, rasterio.open(row.mask) as mask:
            pixels, truth = image.read(), mask.read(1)
            left, top = ~origin @ (image.transform.c, image.transform.f)
        rows, columns = np.nonzero(truth != 255)
        np.testing.assert_array_equal(pixels[:, rows, columns], scene[:3, rows + round(top), columns + round(left)])
        seen[rows + round(top), columns + round(left)] += 1
    np.testing.assert_array_equal(seen, scene[3] > 0)


@pytest.mark.parametrize("grid", ["native", "z19", "0.5m"])
def test_masks_lie_on_the_buildings(tmp_path: Path, catalog: Path, grid: str):
    prepare(catalog, Paths(tmp_path), grid=grid, side_px=64)
    _, index = read_index(Paths(tmp_path))
    for scene in index["scene"].unique():
        agree = total = 0
        for row in index[index["scene"] == scene].itertuples():
            with rasterio.open(row.image) as image, rasterio.open(row.mask) as mask:
                bright, truth = image.read().mean(0) > 128, mask.read(1)
            agree += int(((truth == 1) & bright).sum())
            total += int(((truth == 1) | (bright & (truth == 0))).sum())
        assert agree / total > (0.999 if grid == "native" else 0.93), scene


def test_scene_without_alpha_is_valid_throughout(tmp_path: Path, catalog: Path):
    made = prepare(catalog, Paths(tmp_path), grid="native", side_px=32)
    bare = made.index[made.index["scene"] == "c"]
    covered = (bare["valid_fraction"] * 32 * 32).sum()
    assert covered == pytest.approx(96 * 70, abs=1)


@given(st.floats(-500, 500), st.floats(-500, 500), st.floats(1, 400), st.floats(1, 400))
def test_span_covers_the_bounds_and_no_more(x: float, y: float, width: float, height: float):
    grid = Grid("EPSG:3857", 0.5, 0.5, -1000.0, 1000.0, 64)
    rows, columns = grid.span((x, y, x + width, y + height))
    left, top = grid.transform(rows.start, columns.start) @ (0, 0)
    right, bottom = grid.transform(rows.stop, columns.stop) @ (0, 0)
    slack = 1e-3
    assert left <= x + slack
    assert top >= y + height - slack
    assert x + width - slack <= right < x + width + 32 + slack
    assert y + slack >= bottom > y - 32 - slack


def test_a_broken_scene_stops_no_other(tmp_path: Path, catalog: Path):
    """It is told at the end, and cut by the same command when it is whole again."""
    file = catalog / "kam/b/b.tif"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CutError, match=r"b\.tif (is broken|cannot be read)") as caught:
        prepare(catalog, Paths(tmp_path), side_px=64)
    _, index = read_index(Paths(tmp_path))
    assert {"a", "c"} <= set(index["scene"])
    assert list(caught.value.prepared.index["tile"]) == list(index["tile"])
    failures = pd.read_csv(tmp_path / "data/train_tier_1/failed.csv")
    assert failures["tile"].str.startswith("kam").all()
    file.write_bytes(whole)
    made = prepare(catalog, Paths(tmp_path), side_px=64)
    assert made.kept == 2
    assert set(made.index["scene"]) == {"a", "b", "c"}
    assert not (tmp_path / "data/train_tier_1/failed.csv").exists()


def test_label_outside_the_scene(tmp_path: Path, catalog: Path):
    polygons = write_scene(tmp_path / "elsewhere.tif")
    write_footprints(
        catalog / "kam/a-labels/a.geojson",
        [p.buffer(0).__class__([(y, x) for x, y in p.exterior.coords]) for p in polygons],
    )
    with pytest.raises(CutError, match="none of the 3 footprints of kam/a lies on the scene"):
        prepare(catalog, Paths(tmp_path), side_px=64)


def test_wrong_bands(tmp_path: Path, catalog: Path):
    with rasterio.open(catalog / "kam/a/a.tif") as source:
        profile = {**source.profile, "count": 1, "photometric": "minisblack"}
        band = source.read(1)
    with rasterio.open(catalog / "kam/a/a.tif", "w", **profile) as target:
        target.write(band, 1)
    with pytest.raises(CutError, match="has 1 band of uint8, expected 3 or 4"):
        prepare(catalog, Paths(tmp_path), side_px=64)


def test_unknown_grid(tmp_path: Path, catalog: Path):
    with pytest.raises(DataError, match="no grid 'zoom19'"):
        prepare(catalog, Paths(tmp_path), grid="zoom19")


def test_read_index_asks_when_there_are_several(tmp_path: Path, catalog: Path):
    with pytest.raises(DataError, match="no data set is prepared"):
        read_index(Paths(tmp_path))
    for name in ("one", "two"):
        prepare(catalog, Paths(tmp_path), name=name, side_px=64)
    with pytest.raises(DataError, match="several data sets are prepared: one, two"):
        read_index(Paths(tmp_path))
    with pytest.raises(DataError, match="no data set 'tow'"):
        read_index(Paths(tmp_path), "tow")
    assert read_index(Paths(tmp_path), "two")[0] == "two"


def test_prepare_tells_how_it_made_the_folds(tmp_path: Path, catalog: Path):
    made = prepare(catalog, Paths(tmp_path), side_px=64)
    assert "by tile, since znz has one scene only" in made.notice


def test_refold_changes_the_fold_column_alone(tmp_path: Path, catalog: Path):
    made = prepare(catalog, Paths(tmp_path), grid="native", side_px=32)
    refold(Paths(tmp_path), "train_tier_1", "tile", 3)
    again = pd.read_csv(tmp_path / "data/train_tier_1/index.csv")
    assert set(again["fold"]) == {0, 1, 2}
    pd.testing.assert_frame_equal(again.drop(columns="fold"), made.index.drop(columns="fold"))


@pytest.mark.parametrize("grid", ["native", "z19", "0.5m"])
def test_layers_leave_everything_else_as_it_is(
    tmp_path: Path, catalog: Path, cli: Callable[..., tuple[int, str, str]], grid: str
):
    for name, options in (("plain", ()), ("layers", ("--layers",))):
        command = ("prepare", catalog, "--name", name, "--grid", grid, "--side", 64, "--root", tmp_path, *options)
        assert cli(*command)[0] == 0
    plain, layers = tmp_path / "data/plain", tmp_path / "data/layers"
    assert (plain / "index.csv").read_bytes() == (layers / "index.csv").read_bytes()
    for row in pd.read_csv(plain / "index.csv").itertuples():
        assert (plain / row.image).read_bytes() == (layers / row.image).read_bytes()
        with rasterio.open(plain / row.mask) as one, rasterio.open(layers / row.mask) as three:
            assert (one.count, three.descriptions) == (1, ("footprint", "boundary", "contact"))
            assert one.profile.items() - {("count", 1)} <= three.profile.items() | {("interleave", "band")}
            np.testing.assert_array_equal(three.read(1), one.read(1))
            ignored = three.read() == 255
        assert (ignored == ignored[0]).all()


def test_layers_of_small_tiles_side_by_side_are_those_of_a_large_one(tmp_path: Path):
    """Rings and contacts go on over the edges: the scene's squares lie 3.5 m apart."""
    catalog = write_catalog(tmp_path / "c", {"kam": {name: {"pixel": 0.25} for name in "ab"}})
    drawn = []
    for side_px in (16, 112):
        prepare(catalog, Paths(tmp_path), str(side_px), grid="native", side_px=side_px, layers=True)
        _, index = read_index(Paths(tmp_path), str(side_px))
        canvas = np.full((3, 112, 112), 255, np.uint8)
        for row in index[index["scene"] == "a"].itertuples():
            r, c = (side_px * int(place) for place in row.tile.split("_r")[1].split("_c"))
            with rasterio.open(row.mask) as mask:
                canvas[:, r : r + side_px, c : c + side_px] = mask.read()
        drawn.append(canvas)
    small, large = drawn
    np.testing.assert_array_equal(small, large)
    assert (large == 1).any(axis=(1, 2)).all()
    inside = sum((side - 4) ** 2 for side in (20, 24, 12))
    assert (large[0] == 1).sum() - (large[1] == 1).sum() == inside
