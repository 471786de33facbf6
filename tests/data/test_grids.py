from dataclasses import dataclass

import numpy as np
import pyproj
import pytest
from factories import LATITUDE, LONGITUDE, MERCATOR, UTM
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.transform import Affine

from kit.data.grids import Grid, check_grid, grid_of, ground_m
from kit.errors import DataError


@dataclass
class Image:
    """A scene's place alone."""

    crs: CRS
    transform: Affine
    width: int = 90
    height: int = 70
    name: str = "scene.tif"


def image_at(crs: str, longitude: float, latitude: float, pixel: float = 1.0) -> Image:
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(longitude, latitude)
    return Image(CRS.from_user_input(crs), Affine(pixel, 0, x, 0, -pixel, y))


def measured_m(grid: Grid) -> tuple[float, float]:
    """Returns how long a pixel is on the ellipsoid, across and down."""
    left, bottom, right, top = grid.bounds(0, 0)
    change = pyproj.Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    places = (left, bottom), (right, bottom), (left, top)
    (west, south), (east, _), (_, north) = (change.transform(*place) for place in places)
    earth = pyproj.Geod(ellps="WGS84")
    across, down = earth.inv(west, south, east, south)[2], earth.inv(west, south, west, north)[2]
    return across / grid.side_px, down / grid.side_px


@pytest.mark.parametrize(
    ("crs", "longitude", "latitude"),
    [
        (UTM, LONGITUDE, LATITUDE),
        (MERCATOR, 10.0, 60.0),
        ("ESRI:102100", 10.0, 60.0),  # web mercator under another name
        ("EPSG:3395", 10.0, -45.0),
        ("EPSG:2263", -74.0, 40.7),  # in US survey feet
        ("EPSG:2056", 7.4, 46.9),
    ],
)
def test_a_metric_grid_has_its_resolution_on_the_ground(crs: str, longitude: float, latitude: float):
    grid = grid_of("0.1m", 512, image_at(crs, longitude, latitude))
    np.testing.assert_allclose(measured_m(grid), 0.1, rtol=7e-3)  # web mercator takes the earth for a ball
    assert ground_m(grid, 0, 0) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("zoom", [10, 18, 20])
def test_zooms_are_those_of_the_web(zoom: int):
    grid = grid_of(f"z{zoom}", 256, image_at(UTM, LONGITUDE, LATITUDE))
    x, y = pyproj.Transformer.from_crs("EPSG:4326", MERCATOR, always_xy=True).transform(LONGITUDE, LATITUDE)
    column = int((LONGITUDE + 180) / 360 * 2**zoom)
    row = int((1 - np.arcsinh(np.tan(np.radians(LATITUDE))) / np.pi) / 2 * 2**zoom)
    left, bottom, right, top = grid.bounds(row, column)
    assert left <= x < right
    assert bottom < y <= top
    assert grid.span((x, y, x, y)) == (range(row, row + 1), range(column, column + 1))


def test_native_degrees_are_a_grid_and_metric_ones_are_not():
    image = image_at("EPSG:4326", 10.0, 60.0, 1e-6)
    grid = grid_of("native", 64, image)
    across, down = measured_m(grid)
    assert ground_m(grid, 0, 0) == pytest.approx(np.sqrt(across * down), rel=5e-3)
    with pytest.raises(DataError, match=r"scene\.tif is in EPSG:4326, not in metres"):
        grid_of("0.1m", 64, image)


@pytest.mark.parametrize("name", ["z25", "z", "zoom19", "0m", "-1m", "m", "0.1", "0.1 m", "Native", ""])
def test_other_grids_are_told(name: str):
    with pytest.raises(DataError, match="no grid") as caught:
        check_grid(name, 256, 0)
    assert "z19" in caught.value.hint


@pytest.mark.parametrize("overlap", [-1, 64, 100])
def test_overlaps_are_smaller_than_tiles(overlap: int):
    with pytest.raises(DataError, match=f"an overlap of {overlap} px between tiles of 64 px"):
        check_grid("z19", 64, overlap)


@given(
    st.integers(1, 400), st.integers(1, 400), st.integers(8, 64), st.integers(0, 40), st.floats(-1e6, 1e6),
    st.floats(0.01, 3),
)  # fmt: skip
def test_tiles_cover_each_pixel_once_and_with_an_overlap_at_least_once(
    width: int, height: int, side: int, overlap: int, left: float, pixel: float
):
    overlap = min(overlap, side - 1)
    grid = Grid("EPSG:3857", pixel, pixel, left, 100.0, side, overlap)
    rows, columns = grid.span((left, 100 - height * pixel, left + width * pixel, 100.0))
    for length, tiles in ((height, rows), (width, columns)):
        counts = np.zeros(max(length, tiles[-1] * grid.step_px + side), int)
        for tile in tiles:
            counts[tile * grid.step_px :][:side] += 1
        assert counts[:length].min() >= 1
        assert overlap or counts.max() == 1
        assert tiles[0] == 0
        assert len(tiles) == 1 or tiles[-2] * grid.step_px + side < length  # the last tile is needed
