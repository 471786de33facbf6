import cv2
import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from kit.deploy.mapping.tracing import Footprint, Piece, Tracer


def pieces_of(buildings: np.ndarray, level: np.ndarray, rows: int) -> list[Piece]:
    """Traces a mask or numbers of buildings in bands of so many rows."""
    tracer = Tracer()
    found: list[Piece] = []
    for top in range(0, len(buildings), rows):
        found += tracer.add(level[top : top + rows], buildings[top : top + rows], top)
    return found + tracer.close()


def traced(mask: np.ndarray, level: np.ndarray, rows: int) -> list[Footprint]:
    """Traces a mask in bands of so many rows; each piece is one building."""
    pieces = pieces_of(mask, level, rows)
    assert all(len(piece.buildings) == 1 for piece in pieces)
    return [building for piece in pieces for building in piece.buildings.values()]


def blobs(height: int, width: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 2) > 0.5


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 3, 10, 17, 60, 100]))
def test_bands_give_what_the_whole_gives(seed: int, rows: int):
    mask = blobs(60, 70, seed)
    level = np.random.default_rng(seed).integers(0, 256, mask.shape, dtype=np.uint8)
    found = traced(mask, level, rows)
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    expected = {
        (int((labels == label).sum()), int(level[labels == label].sum(dtype=np.int64))) for label in range(1, count)
    }
    assert len(found) == count - 1
    assert {(piece.pixels, piece.levels) for piece in found} == expected
    for piece in found:
        whole = shapely.unary_union(piece.polygons)
        burnt = rasterize([whole], mask.shape)
        assert burnt.sum() == piece.pixels == whole.area
        assert len(np.unique(labels[burnt > 0])) == 1


def test_arms_that_meet_further_down_are_one():
    """A U, an upside-down U and a spiral, cut into single rows."""
    mask = np.zeros((20, 40), bool)
    mask[2:15, 2:5] = mask[2:15, 10:13] = mask[13:15, 2:13] = True
    mask[2:15, 20:23] = mask[2:15, 30:33] = mask[2:4, 20:33] = True
    mask[7:18, 26] = mask[17, 26:38] = mask[1:18, 37] = True
    found = traced(mask, np.full(mask.shape, 9, np.uint8), 1)
    assert sorted(piece.pixels for piece in found) == sorted((13 * 6 + 5 * 2, 13 * 6 + 7 * 2, 11 + 11 + 16))
    assert all(shapely.unary_union(piece.polygons).geom_type == "Polygon" for piece in found)


def test_corners_do_not_join():
    mask = np.zeros((8, 8), bool)
    mask[1:4, 1:4] = mask[4:7, 4:7] = True
    for rows in (8, 4, 1):
        assert [piece.pixels for piece in traced(mask, np.zeros(mask.shape, np.uint8), rows)] == [9, 9]


def test_nothing_and_everything():
    level = np.full((30, 20), 100, np.uint8)
    assert traced(np.zeros((30, 20), bool), level, 7) == []
    (piece,) = traced(np.ones((30, 20), bool), level, 7)
    assert (piece.pixels, piece.levels) == (600, 60_000)
    assert shapely.unary_union(piece.polygons).equals(shapely.box(0, 0, 20, 30))


def blocks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of buildings, blobs that streets of other blobs cut, and the numbers of the connected components."""
    mask = blobs(60, 70, seed)
    parts = blobs(60, 70, seed + 1)
    numbers = np.zeros(mask.shape, np.int32)
    for inside in (parts, ~parts):
        _, labels = cv2.connectedComponents((mask & inside).astype(np.uint8), connectivity=4)
        numbers += np.where(labels > 0, labels + numbers.max(), 0).astype(np.int32)
    return numbers, cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[1]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 3, 10, 17, 60]))
def test_buildings_that_touch_are_parts_of_one_piece(seed: int, rows: int):
    numbers, components = blocks(seed)
    level = np.random.default_rng(seed).integers(0, 256, numbers.shape, dtype=np.uint8)
    found = pieces_of(numbers, level, rows)
    together = {frozenset(piece.buildings) for piece in found}
    expected = {frozenset(np.unique(numbers[components == label]).tolist()) for label in range(1, components.max() + 1)}
    assert together == expected
    for piece in found:
        for number, building in piece.buildings.items():
            inside = numbers == number
            burnt = rasterize([shapely.unary_union(building.polygons)], inside.shape) > 0
            assert (burnt == inside).all()
            assert (building.pixels, building.levels) == (inside.sum(), level[inside].sum(dtype=np.int64))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 3, 17, 60]))
def test_an_anchor_is_the_first_pixel_on_the_coarsest_grid(seed: int, rows: int):
    numbers, _ = blocks(seed)
    rows_of, columns_of = np.indices(numbers.shape)
    either = rows_of | columns_of
    anchors = {}
    for piece in pieces_of(numbers, np.zeros(numbers.shape, np.uint8), rows):
        anchors |= {number: building.anchor for number, building in piece.buildings.items()}
    for number, (_, row, column) in anchors.items():
        inside = np.flatnonzero(numbers == number)
        step = [(int(each) & -int(each)) or 1 << 16 for each in either.ravel()[inside]]
        assert (-row) * numbers.shape[1] - column == inside[np.argmax(step)]
    assert len(set(anchors.values())) == len(anchors) == numbers.max()
