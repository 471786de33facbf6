from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import shapely
from cut_fakes import CutScene, cut_scene
from factories import at_kampala, on_earth, prepare, write_bands, write_catalog

from kit.data.tiles.sheets import GAP_PX, OUTLINE, TITLE_PX, UNKNOWN, VIEW_PX, Sheet, draw_sheet
from kit.errors import RasterError
from kit.paths import Paths

SQUARES = [shapely.box(20, 22, 50, 47), shapely.box(75, 60, 120, 90)]


def small_scene(folder: Path, side: int, size: int = 128, boxes: list[shapely.Polygon] = SQUARES) -> CutScene:
    alpha = np.full((1, size, size), 255, np.uint8)
    alpha[:, -9:] = 0
    bands = np.concatenate([np.full((3, size, size), 90, np.uint8), alpha])
    image = write_bands(folder / "s.tif", bands, alpha=True)
    return cut_scene(folder, image, on_earth(boxes, at_kampala()), grid="native", side_px=side)


def drawn(made: CutScene) -> np.ndarray:
    """Returns a contact sheet, (H, W, 3) uint8 RGB."""
    file = draw_sheet(Sheet(made.folder, "kam", "a"), made.cut.tiles)
    return cv2.imread(str(file))[..., ::-1]


def test_outlines_lie_on_the_edge_of_the_mask(tmp_path: Path):
    made = small_scene(tmp_path, 128)
    sheet = drawn(made)
    assert sheet.shape == (2 * GAP_PX + TITLE_PX + VIEW_PX, 2 * GAP_PX + VIEW_PX, 3)
    view = sheet[GAP_PX + TITLE_PX :, GAP_PX:][:128, :128]
    with rasterio.open(tmp_path / made.cut.tiles[0].mask) as source:
        mask = source.read(1)
    building = (mask == 1).astype(np.uint8)
    inner = building - cv2.erode(building, np.ones((3, 3), np.uint8))
    yellow = (view == OUTLINE).all(axis=2)
    assert yellow.sum() > 200
    assert (inner[yellow] == 1).all()
    assert yellow[inner == 1].mean() > 0.95  # corners are cut
    np.testing.assert_array_equal((view == np.array(UNKNOWN) // 2).all(axis=2), mask == 255)


def test_up_to_twelve_places_where_most_outlines_are(tmp_path: Path):
    made = small_scene(tmp_path, 16)
    sheet = drawn(made)
    assert sum(tile.building_fraction > 0 for tile in made.cut.tiles) > 12
    assert sheet.shape[:2] == (3 * (VIEW_PX + GAP_PX + TITLE_PX) + GAP_PX, 4 * (VIEW_PX + GAP_PX) + GAP_PX)
    large = drawn(small_scene(tmp_path / "large", 600, 600, [shapely.box(300, 240, 480, 360)]))
    assert large.shape[:2] == (2 * GAP_PX + TITLE_PX + VIEW_PX, 2 * GAP_PX + VIEW_PX)
    assert (large == OUTLINE).all(axis=2).sum() > 550  # the window is where all of it is seen


def test_each_scene_has_a_sheet_of_the_same_bytes(tmp_path: Path):
    catalog = write_catalog(tmp_path / "c", {"kam": {"a": {}, "b": {"seed": 1}}, "znz": {"c": {"seed": 2}}})
    sheets = []
    for name in ("one", "two"):
        prepare(catalog, Paths(tmp_path), name, grid="native", side_px=32)
        folder = tmp_path / "data" / name / "sheets"
        sheets.append({str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.*")})
    assert set(sheets[0]) == {"kam/a.png", "kam/b.png", "znz/c.png"}
    assert sheets[0] == sheets[1]


def test_tiles_that_cannot_be_read_are_told(tmp_path: Path):
    made = small_scene(tmp_path, 128)
    (tmp_path / made.cut.tiles[0].image).write_bytes(b"no TIFF")
    with pytest.raises(RasterError, match=r"r0_c0\.tif cannot be read"):
        drawn(made)


def test_a_scene_without_buildings_has_a_sheet_too(tmp_path: Path):
    made = small_scene(tmp_path, 64)
    bare = [tile for tile in made.cut.tiles if tile.building_fraction == 0]
    file = draw_sheet(Sheet(tmp_path, "kam", "bare"), bare)
    assert file == tmp_path / "sheets/kam/bare.png"
    assert not (cv2.imread(str(file))[..., ::-1] == OUTLINE).all(axis=2).any()


def test_tiles_that_are_mostly_imagery_are_shown(tmp_path: Path):
    """Of three tiles in a row, the last has no imagery but for a strip that holds a building."""
    alpha = np.full((1, 64, 192), 255, np.uint8)
    alpha[:, :, 148:] = 0
    image = write_bands(tmp_path / "s.tif", np.concatenate([np.full((3, 64, 192), 90, np.uint8), alpha]), alpha=True)
    boxes = [shapely.box(left, 10, left + 15, 40) for left in (10, 80, 130)]
    made = cut_scene(tmp_path, image, on_earth(boxes, at_kampala()), grid="native", side_px=64)
    assert [tile.valid_fraction for tile in made.cut.tiles] == [1, 1, 20 / 64]
    sheet = drawn(made)
    assert sheet.shape[1] == 2 * (VIEW_PX + GAP_PX) + GAP_PX
    assert not (sheet == np.array(UNKNOWN) // 2).all(axis=2).any()
