"""Buildings that touch, on a map of many scenes: each is one polygon, whichever cells see it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from country_fakes import GROUND, ROOF, Country, draw_terraces, export_brightness, export_walls

from kit.deploy.country.country import CountryRequest, make_plan, map_cells, merge_map, read_plan
from kit.deploy.country.merge import CountrySummary
from kit.deploy.engine.backends import EngineOptions
from kit.deploy.mapping.map import MapOptions


@pytest.fixture(scope="module")
def country(tmp_path_factory: pytest.TempPathFactory) -> Country:
    """Terraces longer than a cell and its halo. Read only."""
    return draw_terraces(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_walls(tmp_path_factory.mktemp("weights"))


def mapped(scenes: Path, weights: Path, folder: Path, parts: int = 1, **options: object) -> CountrySummary:
    request = CountryRequest(
        (str(scenes),), weights, folder, "m", MapOptions(window_px=64, overlap_px=16), EngineOptions("cpu"), cell_m=96
    )
    request = replace(request, **options)
    make_plan(request)
    for index in range(parts, 0, -1):
        states = read_plan(request)
        assert not map_cells(states, states.part(index, parts), request, 1).failed
    return merge_map(states)


def rows(path: Path) -> dict[str, shapely.Polygon]:
    table = pq.read_table(path)
    polygons = shapely.from_wkb(table["geometry"].to_numpy())
    found = dict(zip(table["id"].to_pylist(), shapely.normalize(polygons), strict=True))
    assert len(found) == table.num_rows
    return found


def overlap(polygons: list[shapely.Polygon]) -> float:
    """Returns the largest share of a polygon that another one covers, too."""
    first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    first, second = first[first != second], second[first != second]
    shapes = np.array(polygons)
    shared = shapely.area(shapely.intersection(shapes[first], shapes[second]))
    return float((shared / shapely.area(shapes[first])).max(initial=0))


@pytest.fixture(scope="module")
def whole(country: Country, walls: Path, tmp_path_factory: pytest.TempPathFactory) -> CountrySummary:
    return mapped(country.folder, walls, tmp_path_factory.mktemp("map"))


def test_every_house_of_a_terrace_is_whole_and_there_once(country: Country, whole: CountrySummary):
    found = list(rows(whole.buildings).values())
    assert len(found) == len(country.houses)
    assert not whole.cut
    for house in country.houses:
        shared = shapely.area(shapely.intersection(found, house))
        (best,) = np.flatnonzero(shared > house.area / 2)
        assert shared[best] / found[best].union(house).area > 0.85, house.centroid
    assert overlap(found) < 1e-3


def test_parts_give_the_same_bytes(country: Country, walls: Path, whole: CountrySummary, tmp_path: Path):
    assert mapped(country.folder, walls, tmp_path / "m", 3).buildings.read_bytes() == whole.buildings.read_bytes()


def test_other_cells_give_the_same_buildings(country: Country, walls: Path, whole: CountrySummary, tmp_path: Path):
    large, small = rows(mapped(country.folder, walls, tmp_path / "m", cell_m=192).buildings), rows(whole.buildings)
    assert large.keys() == small.keys()
    assert all(large[name].equals_exact(small[name], 1e-7) for name in large)


def test_weights_without_channels_join_a_terrace(country: Country, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A terrace that no cell sees whole is cut where cells meet, and no part of it is there twice."""
    summary = mapped(country.folder, export_brightness(tmp_path / "weights"), tmp_path / "m")
    assert "does not tell neighbours apart" in capsys.readouterr().err
    found = list(rows(summary.buildings).values())
    assert 5 < len(found) < len(country.houses)
    assert summary.cut > 5
    assert overlap(found) < 1e-3
    assert shapely.area(found).sum() == pytest.approx(shapely.area(country.houses).sum(), rel=0.05)


@pytest.mark.parametrize("shift", [0, 32, 64])
def test_a_hall_that_only_some_cells_see_whole_is_there_once(tmp_path: Path, shift: int):
    """Cells disagree on whether they see it whole: all of them must take their own part."""
    pixels = np.full((3, 64, 480), GROUND, np.uint8)
    pixels[:, 20:40, 40 + shift : 320 + shift] = ROOF
    place = {"crs": "EPSG:32636", "transform": rasterio.Affine(1, 0, 480_000, 0, -1, 40_032)}
    (tmp_path / "scenes").mkdir()
    with rasterio.open(
        tmp_path / "scenes" / "s.tif", "w", driver="GTiff", width=480, height=64, count=3, dtype="uint8", **place
    ) as target:
        target.write(pixels)
    summary = mapped(tmp_path / "scenes", export_brightness(tmp_path / "weights"), tmp_path / "m")
    found = list(rows(summary.buildings).values())
    assert overlap(found) < 1e-3
    assert summary.area_m2 == pytest.approx(280 * 20, rel=0.03)
