import re
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pandas as pd
import pyproj
import pytest
import rasterio
import shapely
from cut_fakes import cut_scene, place_of
from factories import LATITUDE, LONGITUDE, MERCATOR, UTM, at_kampala, on_earth, prepare, write_bands, write_catalog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine

from kit.cli.printing import COLUMNS
from kit.errors import CutError, DataError
from kit.paths import Paths

few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

Cli = Callable[..., tuple[int, str, str]]


def grey(height: int, width: int) -> np.ndarray:
    return np.full((3, height, width), 90, np.uint8)


@few
@given(
    size=st.tuples(st.integers(1, 75), st.integers(1, 75)),
    pixel=st.sampled_from([0.31, 0.5, 1.0, 2.7]),
    crs=st.sampled_from([UTM, MERCATOR]),
    grid=st.sampled_from(["z17", "z18", "0.9m", "native"]),
    overlap=st.sampled_from([0, 0, 11]),
    min_valid=st.sampled_from([0.0, 0.3, 0.95]),
    turn=st.sampled_from([0, 0, 17]),
    hole=st.booleans(),
)
def test_each_pixel_of_a_scene_lies_in_one_tile(
    tmp_path: Path, size: tuple[int, int], pixel: float, crs: str, grid: str, overlap: int, min_valid: float,
    turn: float, hole: bool,
):  # fmt: skip
    """Kept or skipped, the last row and column too."""
    folder = Path(mkdtemp(dir=tmp_path))
    height, width = size
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(LONGITUDE, LATITUDE)
    transform = Affine(pixel, 0, x, 0, -pixel, y) @ Affine.rotation(0 if grid == "native" else turn)
    alpha = np.full((1, height, width), 255, np.uint8)
    if hole:
        alpha[0, height // 2 :, width // 3 :] = 0
    image = write_bands(folder / "s.tif", np.concatenate([grey(height, width), alpha]), transform, crs, alpha=True)
    square = on_earth([shapely.box(0, 0, width, height)], transform, crs)
    made = cut_scene(folder, image, square, grid=grid, side_px=32, overlap_px=overlap, min_valid=min_valid)
    ids = [tile.tile for tile in (*made.cut.tiles, *made.cut.skipped)]
    assert len(set(ids)) == len(ids) == made.total
    rows, columns = np.nonzero(alpha[0])
    across, down = transform @ (columns + 0.5, rows + 0.5)
    px, py = pyproj.Transformer.from_crs(crs, made.grid.crs, always_xy=True).transform(across, down)
    seen = np.zeros(len(px), int)
    for tile in ids:
        left, bottom, right, top = made.grid.bounds(*place_of(tile))
        seen += (left <= px) & (px < right) & (bottom < py) & (py <= top)
    assert (seen >= 1).all()
    assert overlap or (seen == 1).all()
    for tile in made.cut.tiles:
        assert (tile.left, tile.bottom, tile.right, tile.top) == made.grid.bounds(*place_of(tile.tile))
        assert tile.valid_fraction >= min_valid - 1e-6
    for skipped in made.cut.skipped:
        assert skipped.valid_fraction < min_valid or skipped.valid_fraction == 0


@few
@given(
    points=st.lists(st.tuples(st.floats(2, 98), st.floats(2, 98)), min_size=3, max_size=9),
    grid=st.sampled_from(["native", "0.21m", "z20"]),
)
def test_masks_hold_the_area_of_the_polygons(tmp_path: Path, points: list[tuple[float, float]], grid: str):
    polygon = shapely.MultiPoint(points).convex_hull
    if polygon.geom_type != "Polygon" or polygon.area < 50:
        return
    folder = Path(mkdtemp(dir=tmp_path))
    transform = at_kampala(pixel=0.3)
    image = write_bands(folder / "scene.tif", grey(100, 100), transform)
    made = cut_scene(folder, image, on_earth([polygon], transform), grid=grid, side_px=48)
    to_grid = pyproj.Transformer.from_crs(UTM, made.grid.crs, always_xy=True).transform
    drawn = shapely.transform(polygon, lambda points: np.column_stack(to_grid(*(transform @ points.T))))
    area_px, around_px = drawn.area / made.grid.x_pixel**2, drawn.length / made.grid.x_pixel
    found = sum(tile.building_fraction * tile.valid_fraction * 48 * 48 for tile in made.cut.tiles)
    assert abs(found - area_px) <= 0.2 * around_px + 3
    assert all(tile.n_footprints <= 1 for tile in made.cut.tiles)


def test_tiles_with_little_imagery_are_listed_with_the_reason(tmp_path: Path, cli: Cli):
    catalog = write_catalog(tmp_path / "c", {"kam": {"a": {}}})  # 8 columns without imagery; 70 rows
    code, _, _ = cli("prepare", catalog, "--root", tmp_path, "--grid", "native", "--side", 32, "--min-valid", 0.5)
    assert code == 0
    skipped = pd.read_csv(tmp_path / "data/train_tier_1/skipped.csv")
    index = pd.read_csv(tmp_path / "data/train_tier_1/index.csv")
    assert list(skipped.columns) == ["tile", "area", "scene", "reason", "valid_fraction"]
    assert list(skipped["tile"]) == [f"kam_a_r2_c{column}" for column in range(3)]
    assert set(skipped["reason"]) == {"imagery below 0.5"}
    np.testing.assert_allclose(skipped["valid_fraction"], [6 * 24 / 1024, 6 / 32, 6 / 32], atol=1e-6)
    assert len(index) == 6
    assert not (tmp_path / "data/train_tier_1/images/kam/a/r2_c0.tif").exists()


def test_a_tile_without_imagery_is_skipped_whatever_is_asked_for(tmp_path: Path):
    alpha = np.full((1, 64, 64), 255, np.uint8)
    alpha[:, 32:] = 0
    image = write_bands(tmp_path / "s.tif", np.concatenate([grey(64, 64), alpha]), alpha=True)
    square = on_earth([shapely.box(3, 3, 20, 20)], at_kampala())
    made = cut_scene(tmp_path, image, square, grid="native", side_px=32, min_valid=0)
    assert [skipped.reason for skipped in made.cut.skipped] == ["no imagery"] * 2
    assert len(made.cut.tiles) == 2


def test_widths_in_metres_are_those_in_pixels(tmp_path: Path):
    transform = at_kampala(pixel=0.1)
    image = write_bands(tmp_path / "s.tif", grey(96, 96), transform)
    squares = on_earth([shapely.box(10, 10, 40, 40), shapely.box(46, 10, 80, 40)], transform)
    layers = {}
    for name, boundary, contact in (("px", "5px", "20px"), ("m", "0.5m", "2m"), ("wide", "9px", "2m")):
        made = cut_scene(tmp_path / name, image, squares, grid="native", side_px=96, layers=True, boundary=boundary,
                         contact=contact)  # fmt: skip
        with rasterio.open(tmp_path / name / made.cut.tiles[0].mask) as mask:
            layers[name] = mask.read()
    np.testing.assert_array_equal(layers["px"], layers["m"])
    assert not np.array_equal(layers["px"][1], layers["wide"][1])
    assert layers["px"][1, 20].tolist() == [0] * 10 + [1] * 2 + [0] * 26 + [1] * 2 + [0] * 6 + [1] * 2 + [0] * 30 + [
        *[1] * 2,
        *[0] * 16,
    ]
    assert layers["px"][2, 20, 40:46].all()


@pytest.mark.parametrize("width", ["5", "0px", "-1m", "wide", "5 px", ""])
def test_widths_that_are_none_are_told_before_anything_is_read(tmp_path: Path, width: str):
    with pytest.raises(DataError, match="is not a width"):
        prepare(tmp_path / "nothing", Paths(tmp_path), boundary=width)


def break_block(image: Path, column: int, row: int) -> None:
    """Overwrites one compressed block."""
    with rasterio.open(image) as source:
        at = int(source.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=1))
    content = bytearray(image.read_bytes())
    content[at : at + 200] = b"\xff" * 200
    image.write_bytes(content)


BLOCKS = {
    "width": 520, "height": 390, "tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate",
    "interleave": "pixel",
}  # fmt: skip


@pytest.mark.parametrize("images", ["lossless", "scene"])
def test_a_broken_block_costs_the_tiles_around_and_no_other(tmp_path: Path, cli: Cli, images: str):
    """The scene's blocks are smaller than a tile: one tile is lost."""
    catalog = write_catalog(tmp_path / "c", {"kam": {"a": BLOCKS, "b": {"seed": 1}}})
    image = catalog / "kam/a/a.tif"
    whole = image.read_bytes()
    break_block(image, 5, 5)
    command = ("prepare", catalog, "--root", tmp_path, "--grid", "native", "--side", 128, "--images", images)
    code, out, err = cli(*command)
    assert code == 1
    assert re.search(
        r"error: 1 of 2[01] tiles could not be cut, first kam_a_r1_c1: .*a\.tif is broken at tile row 1", err
    )
    assert "data/train_tier_1/failed.csv lists the rest" in err
    assert out.splitlines()[0].split() == list(COLUMNS)
    assert out.splitlines()[1].split()[:1] == ["kam/a"]
    failed = pd.read_csv(tmp_path / "data/train_tier_1/failed.csv")
    assert list(failed["tile"]) == ["kam_a_r1_c1"]
    assert failed["reason"].str.contains(r"a\.tif is broken at tile row 1").all()
    before = (tmp_path / "data/train_tier_1/masks/kam/a/r0_c0.tif").read_bytes()
    image.write_bytes(whole)
    assert cli(*command)[0] == 0
    assert not (tmp_path / "data/train_tier_1/failed.csv").exists()
    index = pd.read_csv(tmp_path / "data/train_tier_1/index.csv")
    assert set(failed["tile"]) < set(index["tile"])
    assert (tmp_path / "data/train_tier_1/masks/kam/a/r0_c0.tif").read_bytes() == before


def test_a_scene_broken_at_its_edge_stops_no_other(tmp_path: Path):
    """The edge tells whether there is a black collar: without it, nothing of the scene is cut."""
    catalog = write_catalog(tmp_path / "c", {"kam": {"a": BLOCKS, "b": {"seed": 1}}})
    break_block(catalog / "kam/a/a.tif", 2, 0)
    with pytest.raises(CutError, match=r"first kam/a: .*a\.tif is broken"):
        prepare(catalog, Paths(tmp_path), grid="native", side_px=128)
    assert set(pd.read_csv(tmp_path / "data/train_tier_1/index.csv")["scene"]) == {"b"}
