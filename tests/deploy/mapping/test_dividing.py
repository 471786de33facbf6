"""Terraces on a map: each house its own polygon, once, whatever the windows are."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from map_fakes import map_with
from pyogrio.raw import read as read_layer

from kit.deploy.weights.card import Splitting

SPLITTING = Splitting(0.5, 0.5, 0, 0)
WALL_PX = 2


def terraces(path: Path) -> int:
    """Draws rows of houses with shared walls; red: footprint, green: inside. Returns their number."""
    red, green, count = np.zeros((300, 260), np.uint8), np.zeros((300, 260), np.uint8), 0
    for top in range(10, 270, 50):
        for left in range(10, 230, 23):
            red[top : top + 40, left : left + 23] = 255
            green[top + WALL_PX : top + 40 - WALL_PX, left + WALL_PX : left + 23 - WALL_PX] = 255
            count += 1
    place = {"crs": "EPSG:32636", "transform": Affine(0.2, 0, 450_000, 0, -0.2, 40_000)}
    profile = {"driver": "GTiff", "width": 260, "height": 300, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, **place) as target:
        target.write(np.stack([red, green, np.arange(300 * 260).reshape(red.shape).astype(np.uint8)]))
    return count


def targets(rgba: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rgba[..., :2].transpose(2, 0, 1)).astype(np.float32) / 255


def polygons(path: Path) -> np.ndarray:
    return shapely.normalize(shapely.from_wkb(read_layer(path)[2]))


@pytest.mark.parametrize("window_px", [64, 300])
def test_every_house_of_a_terrace_is_a_polygon(tmp_path: Path, window_px: int):
    count = terraces(tmp_path / "s.tif")
    summary = map_with(targets, tmp_path / "s.tif", tmp_path, window_px=window_px, splitting=SPLITTING)
    houses = polygons(summary.polygons)
    assert summary.buildings == len(houses) == count
    assert shapely.area(houses) == pytest.approx(40 * 23 * 0.04, rel=0.15)
    tree = shapely.STRtree(houses)
    one, other = tree.query(houses, predicate="intersects")
    shared = shapely.area(shapely.intersection(houses[one], houses[other]))[one < other]
    assert shared.max() < 1e-6


def test_the_windows_do_not_matter(tmp_path: Path):
    terraces(tmp_path / "s.tif")
    layers = []
    for window_px in (64, 100, 300):
        summary = map_with(
            targets, tmp_path / "s.tif", tmp_path / str(window_px), window_px=window_px, splitting=SPLITTING
        )
        layers.append(polygons(summary.polygons))
    assert all(np.array_equal(shapely.to_wkb(layers[0]), shapely.to_wkb(other)) for other in layers[1:])


def test_without_channels_a_terrace_is_one_polygon(tmp_path: Path):
    terraces(tmp_path / "s.tif")
    whole = map_with(lambda rgba: targets(rgba)[0], tmp_path / "s.tif", tmp_path)
    assert whole.buildings == 6
    assert not list(tmp_path.glob("*_inside.tif"))


def test_groups_too_large_to_divide_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("kit.deploy.mapping.dividing.LARGEST_PX", 40 * 23)
    terraces(tmp_path / "s.tif")
    assert map_with(targets, tmp_path / "s.tif", tmp_path, splitting=SPLITTING).buildings == 6
    assert "too large to divide, each one polygon: 6" in capsys.readouterr().err
