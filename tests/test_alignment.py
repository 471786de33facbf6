"""Agreement of masks and image edges, on drawn squares that were moved by known amounts."""

from pathlib import Path

import numpy as np
import pytest
import shapely
from alignment import REACH_PX, Pair, agreement, agreements, best_shift, read_pair, ring
from factories import prepare, write_catalog, write_footprints, write_scene
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.data.masks import IGNORE
from kit.errors import DataError
from kit.paths import Paths

METRES_PER_DEGREE = 111_320  # at the equator, near which the drawn scenes lie


def drawn(dx: int = 0, dy: int = 0, side_px: int = 120, contrast: int = 90) -> Pair:
    """Returns noise with two squares that are brighter, and a mask that lies (dx, dy) beside them."""
    image = np.random.default_rng(0).integers(40, 60, (side_px, side_px, 3)).astype(np.uint8)
    mask = np.zeros((side_px, side_px), np.uint8)
    for left, top, side in ((24, 30, 28), (68, 64, 24)):
        image[top : top + side, left : left + side] += np.uint8(contrast)
        mask[top + dy : top + dy + side, left + dx : left + dx + side] = 1
    return image, mask


@settings(max_examples=15, deadline=None)
@given(st.integers(-6, 6), st.integers(-6, 6))
def test_the_best_shift_undoes_a_move(dx: int, dy: int):
    best = best_shift([drawn(dx, dy)])
    assert best is not None
    assert (best.dx, best.dy) == (-dx, -dy)
    assert (best.gain > 0) == ((dx, dy) != (0, 0))
    assert best.agreement - best.gain == pytest.approx(agreement(*drawn(dx, dy)))


def test_every_shift_of_a_mask_in_place_loses():
    here, *there = agreements([drawn()], [(0, 0), *ring(3), *ring(8), *ring(REACH_PX - 1)])
    assert here > 0.9
    assert max(there) < here - 0.1


def test_agreement_is_that_of_all_tiles_together():
    tiles = [drawn(), drawn(3, 0), drawn(0, 5)]
    alone = [agreement(*tile, (1, -2)) for tile in tiles]
    assert agreements(tiles, [(1, -2)])[0] == pytest.approx(np.mean(alone))  # as many outline pixels each


def test_strong_edges_decide_hardly_more_than_clear_ones():
    """A glaring square beside its mask does not outvote a plain one, a little longer, in place."""
    image, mask = drawn(contrast=50)
    glaring, moved = drawn(4, 0, contrast=195)
    image[:, 60:], mask[:, 60:] = glaring[:, 60:], moved[:, 60:]
    assert agreement(image, mask) > agreement(image, mask, (-4, 0))


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_edges_across_an_outline_do_not_agree(turns: int):
    """Diagonal stripes: along a diagonal outline they are its edge, across it they are only texture."""
    y, x = np.mgrid[:120, :120]
    noise = np.random.default_rng(0).integers(40, 60, (120, 120, 3)).astype(np.uint8)
    mask = np.rot90((x + y < 120).astype(np.uint8), turns)
    along, across = (noise + (np.rot90(at // 8 % 2, turns) * 90).astype(np.uint8)[..., None] for at in (x + y, x - y))
    assert agreement(along, mask) > 3 * agreement(across, mask)


def test_cut_edges_are_no_outlines():
    """A roof that a tile's border, or the border of its imagery, cuts through has no outline there."""
    image, mask = drawn()
    full = np.ones_like(mask)
    assert np.isnan(agreement(image, full))
    full[:, :50] = IGNORE
    assert np.isnan(agreement(image, full))
    assert best_shift([(image, full), (image, np.zeros_like(mask))]) is None
    mask[:, 56:] = IGNORE  # the first square's right side is too near to it
    best = best_shift([(image, mask)])
    assert best is not None
    assert best.n_px < best_shift([drawn()]).n_px / 2


def test_rings_hold_all_directions():
    assert len(ring(3)) == 20
    angles = np.sort([np.arctan2(dy, dx) for dx, dy in ring(3)])
    assert np.diff(angles).max() < np.deg2rad(22.7)
    assert all(6 <= np.hypot(*shift) < 7 for shift in ring(6))


@pytest.mark.parametrize(("moved_px", "expected"), [(0, 0), (4, -4), (-3, 3)])
def test_shifted_labels_of_a_catalogue_are_found(tmp_path: Path, moved_px: int, expected: int):
    """From footprints to the tiles of `prepare`: labels that lie 4 px too far east would have to go 4 px west."""
    root = write_catalog(tmp_path / "train_tier_1", {"acc": {"one": {}}})
    polygons = write_scene(tmp_path / "again.tif")
    degrees = moved_px / METRES_PER_DEGREE  # the scene's pixels are 1 m
    moved = [shapely.transform(polygon, lambda xy: np.add(xy, (degrees, 0))) for polygon in polygons]
    write_footprints(root / "acc" / "one-labels" / "one.geojson", moved)
    paths = Paths(tmp_path)
    made = prepare(root, paths, grid="native", side_px=128)
    folder = paths.data(made.name)
    best = best_shift(read_pair(folder / tile.image, folder / tile.mask) for tile in made.index.itertuples())
    assert best is not None
    assert (best.dx, best.dy) == (expected, 0)


def test_too_far():
    with pytest.raises(DataError, match="a shift of 13 px along a side") as caught:
        best_shift([drawn()], reach_px=13)
    assert "12 px at most" in caught.value.hint
