"""What lies where: neighbours at any latitude, in any coordinate system; blocks that depend on the place alone."""

import numpy as np
import pandas as pd
import pyproj
import pytest
from cities import city, nearer, scene
from factories import MERCATOR, UTM
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.data.folds.ground import Pairs, lay_out
from kit.errors import DataError

PLACES = [
    (UTM, (32.6, 0.35), 0.0),
    (UTM, (35.9, 0.35), 7.3),
    (MERCATOR, (39.2, -6.2), 0.0),
    (MERCATOR, (24.9, 67.4), 0.0),
    ("EPSG:32735", (28.3, -15.4), 0.0),
    ("EPSG:4326", (32.6, 40.0), 0.0007),
    ("EPSG:32760", (179.998, -17.5), 0.0),  # across 180 degrees
    ("EPSG:4326", (179.998, -17.5), 0.0009),  # likewise, counted on
    ("EPSG:32601", (-179.9985, 52.0), 0.0),  # beside it
]
GRID = [(i, j) for i in range(25) for j in range(25)]


def apart(i: int, j: int) -> int:
    """Tiles between two of a 5 x 5 grid, neighbours 1 apart, diagonal ones too."""
    return max(abs(i // 5 - j // 5), abs(i % 5 - j % 5))


def as_set(pairs: Pairs) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for i, j in pairs}


@pytest.mark.parametrize(("crs", "at", "side"), PLACES)
def test_a_gap_of_one_tile_parts_direct_neighbours_alone(crs: str, at: tuple[float, float], side: float):
    ground = lay_out(scene("kam/a", 5, 5, crs=crs, at=at, side=side))
    labels = np.arange(25)
    assert as_set(ground.near(labels, ground.sides_m)) == {(i, j) for i, j in GRID if i < j and apart(i, j) == 1}
    assert not len(ground.overlapping(labels))


@pytest.mark.parametrize(("crs", "at", "side"), PLACES)
def test_tiles_cut_with_overlap(crs: str, at: tuple[float, float], side: float):
    ground = lay_out(scene("kam/a", 5, 5, crs=crs, at=at, side=side, step=0.5))
    assert as_set(ground.overlapping(np.arange(25))) == {(i, j) for i, j in GRID if i < j and apart(i, j) == 1}


def test_gaps_are_metres_of_the_ground():
    """Where a metre of the frame is 38 cm: a gap of one side and a half takes in the next tile but one."""
    crs, at, _ = PLACES[3]
    ground = lay_out(scene("kam/a", 5, 5, crs=crs, at=at))
    near = as_set(ground.near(np.arange(25), 1.5 * ground.sides_m))
    assert near == {(i, j) for i, j in GRID if i < j and apart(i, j) <= 2}


@pytest.mark.parametrize(("share", "found"), [(1e-4, 1), (3e-6, 1), (3e-7, 0), (-3e-7, 0)])
@pytest.mark.parametrize("crs", [UTM, MERCATOR])
def test_a_sliver_of_a_millionth_is_no_overlap(crs: str, share: float, found: int):
    ground = lay_out(city(scene("kam/a", 1, 1, crs=crs), scene("kam/b", 1, 1, x=1 - share, crs=crs)))
    assert len(ground.overlapping(np.arange(2))) == found


def test_labels_that_are_equal_or_negative_stand_aside():
    ground = lay_out(scene("kam/a", 5, 5, step=0.5))
    assert as_set(ground.overlapping(np.array([0, 1, -1, -1, 2] + [-1] * 20))) == {(0, 1)}
    assert not len(ground.overlapping(np.zeros(25, int)))


def test_the_larger_gap_of_two_tiles_counts():
    index = city(scene("kam/small", 1, 1, side=20), scene("kam/large", 1, 1, x=0.7))  # 50 m between them
    ground = lay_out(index)
    for gaps_m, near in (((20.0, 20.0), 0), ((60.0, 20.0), 1), ((20.0, 60.0), 1)):
        assert len(ground.near(np.arange(2), np.array(gaps_m))) == near


@pytest.mark.parametrize("latitude", [0.0, -15.4, 45.0, 60.0])
def test_metres_are_those_of_the_ground(latitude: float):
    """Sides, and the edges of blocks, against geodesics on the ellipsoid."""
    index = scene("kam/a", 30, 30, crs=MERCATOR, at=(39.0, latitude), side=40.0)
    ground, earth = lay_out(index), pyproj.Geod(ellps="WGS84")
    back = pyproj.Transformer.from_crs(MERCATOR, "EPSG:4326", always_xy=True)
    left, right, top = index.loc[0, ["left", "right", "top"]]
    west, east = back.transform(left, top), back.transform(right, top)
    assert ground.sides_m[0] == pytest.approx(earth.inv(*west, *east)[2], rel=0.007)
    blocks = pd.Series(map(tuple, ground.blocks(200.0)))
    longitude, at = back.transform(*ground.centres.T)
    whole = blocks.value_counts().index[0]
    inside = np.array([block == whole for block in blocks])
    width_m = earth.inv(longitude[inside].min(), latitude, longitude[inside].max(), latitude)[2]
    height_m = earth.inv(39.0, at[inside].min(), 39.0, at[inside].max())[2]
    for length_m in (width_m, height_m):  # of the centres: a tile less, at most, than the block
        assert 200 - 1.1 * ground.sides_m[0] - 1.5 <= length_m <= 201.5


@settings(max_examples=30, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3))
def test_the_same_place_is_in_the_same_block(x: float, y: float):
    """Whatever it was cut in: tiles of two systems with nearly the same centre, none near a border of blocks."""
    one = lay_out(scene("kam/a", 1, 1, x=x, y=y, side=100.0))
    other = lay_out(scene("kam/b", 1, 1, x=10 * x + 4.5, y=10 * y - 4.5, crs=UTM, side=10.0))
    np.testing.assert_allclose(one.centres, other.centres, atol=1e-3)
    mercator = lay_out(pd.DataFrame([{
        "tile": "m", "crs": MERCATOR, "left": one.centres[0, 0] - 5, "right": one.centres[0, 0] + 5,
        "bottom": one.centres[0, 1] - 5, "top": one.centres[0, 1] + 5,
    }]))  # fmt: skip
    np.testing.assert_array_equal(one.blocks(333.0), mercator.blocks(333.0))


def test_a_large_tile_over_many_small_ones():
    """Candidates come from bounding boxes: each with each must find no more."""
    index = city(scene("kam/large", 2, 2, x=1.1, y=-1.3, side=300.0), scene("kam/small", 12, 12, crs=MERCATOR))
    labels = (index["scene"] == "large").to_numpy(int)
    expected = {(i, j) for i, j in nearer(index, 1e-9) if labels[i] != labels[j]}
    assert as_set(lay_out(index).overlapping(labels)) == expected
    assert len(expected) > 20


def test_what_lies_nowhere():
    plain = scene("kam/a", 2, 1)
    assert not lay_out(plain.drop(columns=["crs", "left", "bottom", "right", "top"])).known.any()
    assert not lay_out(plain.assign(crs=np.nan)).known.any()  # as an empty column is read
    assert list(lay_out(plain.assign(left=[np.nan, plain["left"][1]])).known) == [False, True]


def test_impossible_places():
    with pytest.raises(DataError, match="tiles are in EPSG:999999, which has no place on the earth"):
        lay_out(scene("kam/a", 2, 1).assign(crs="EPSG:999999"))
    with pytest.raises(DataError, match="tile kam_a_r0_c0 lies nowhere on the ground in EPSG:4326"):
        lay_out(scene("kam/a", 1, 1, crs="EPSG:4326", at=(0.0, 95.0), side=0.001))


def test_scenes_on_both_sides_of_180_degrees_are_neighbours():
    """The same tiles in the zones east and west of it."""
    east, west = scene("fiji/a", 3, 3, crs="EPSG:32760", at=(179.999, -17.5)), scene("fiji/b", 3, 3, crs="EPSG:32701",
                                                                                   at=(-179.9995, -17.5))  # fmt: skip
    ground = lay_out(city(east, west))
    labels = np.repeat([0, 1], 9)
    assert len(ground.overlapping(labels)) > 5
    alone = lay_out(west)
    np.testing.assert_allclose(alone.sides_m, ground.sides_m[9:])
    assert np.abs(np.diff(ground.centres[:, 0])).max() < 1000
