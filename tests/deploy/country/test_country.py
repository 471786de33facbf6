"""Maps of many scenes: every house once, whatever the number of parts, workers and lost workers."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pyogrio
import pystac
import pytest
import rasterio
import shapely
from country_fakes import Country, draw_country, export_brightness

from kit import __version__
from kit.deploy.country.cell_map import CellTask, map_task
from kit.deploy.country.collection import list_scenes
from kit.deploy.country.country import (
    CountryRequest,
    make_plan,
    map_cells,
    mark_part,
    merge_map,
    read_plan,
    worker_problem,
)
from kit.deploy.country.hilbert import hilbert_keys
from kit.deploy.country.merge import LEAST_ZOOM, MOST_ZOOM, CountrySummary
from kit.deploy.country.records import EMPTY, FAILED, MAPPED, CellFiles, CellRecord
from kit.deploy.engine.backends import EngineOptions
from kit.deploy.mapping.map import MapOptions
from kit.errors import CatalogError, KitError, OutputError
from kit.system.files import sha256_of
from kit.system.workers import on_cluster

HERE = 1  # process
OPTIONS = MapOptions(window_px=128, overlap_px=32)
ENGINE = EngineOptions("cpu", tuning=False)


@pytest.fixture(scope="module")
def country(tmp_path_factory: pytest.TempPathFactory) -> Country:
    """Eight scenes at two meridians. Read only."""
    return draw_country(tmp_path_factory.mktemp("scenes"), per_side=2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_brightness(tmp_path_factory.mktemp("weights"))


def request_of(scenes: Path, weights: Path, folder: Path, **options: object) -> CountryRequest:
    return replace(CountryRequest((str(scenes),), weights, folder, "m", OPTIONS, ENGINE, cell_m=192), **options)


def map_whole(request: CountryRequest, processes: int = HERE) -> CountrySummary:
    states = make_plan(request)
    map_cells(states, states.cells, request, processes)
    return merge_map(states)


@pytest.fixture(scope="module")
def whole(country: Country, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> CountrySummary:
    """A map in one part. Read only."""
    return map_whole(request_of(country.folder, weights, tmp_path_factory.mktemp("whole")))


def contents(folder: Path) -> dict[str, bytes]:
    """What a map consists of, but for the plan, which knows the dates of files."""
    names = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(names)
        if path.name != "plan.json" and path.parent.name != "parts"
    }


def check_houses(path: Path, houses: list[shapely.Polygon]) -> None:
    """Checks that each house is in the layer once and whole, and nothing else is."""
    buildings = shapely.from_wkb(pq.read_table(path)["geometry"].to_numpy())
    assert len(buildings) == len(houses)
    tree = shapely.STRtree(buildings)
    for house in houses:
        near = tree.query(house, predicate="intersects")
        shared = shapely.area(shapely.intersection(buildings[near], house))
        near = near[shared > 0.05 * house.area]
        assert len(near) == 1, f"{len(near)} buildings at {house.centroid}"
        (found,) = buildings[near]
        assert found.intersection(house).area / found.union(house).area > 0.7, house.centroid


def test_every_house_is_mapped_once_and_whole(country: Country, whole: CountrySummary):
    check_houses(whole.buildings, country.houses)
    assert whole.statuses == {MAPPED: sum(whole.statuses.values())}
    assert not whole.failed
    assert not whole.cut
    assert whole.count == len(country.houses)


def test_zones_of_both_meridians_are_used(whole: CountrySummary):
    cells = {path.parent.parent.name for path in (whole.buildings.parent / "cells").rglob("*.parquet")}
    assert cells == {"35", "36", "37"}


def test_rows_follow_the_hilbert_curve_and_have_unique_ids(whole: CountrySummary):
    table = pq.read_table(whole.buildings)
    keys = hilbert_keys(shapely.from_wkb(table["geometry"].to_numpy()))
    assert (np.diff(keys) >= 0).all()
    ids = table["id"].to_pylist()
    assert len(set(ids)) == len(ids)
    bounds = shapely.bounds(shapely.from_wkb(table["geometry"].to_numpy()))
    given = np.array([[row[end] for end in ("xmin", "ymin", "xmax", "ymax")] for row in table["bbox"].to_pylist()])
    np.testing.assert_array_equal(given, bounds)
    geo = json.loads(pq.ParquetFile(whole.buildings).metadata.metadata[b"geo"])
    assert geo["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]


def test_catalogue_and_coverage_account_for_every_cell(whole: CountrySummary):
    folder = whole.buildings.parent
    collection = pystac.Collection.from_file(str(folder / "collection.json"))
    items = list(collection.get_items())
    assert len(items) == 1 + sum(whole.statuses.values())
    for item in items:
        for asset in item.assets.values():
            assert (Path(item.self_href).parent / asset.href).is_file()
    coverage = json.loads(whole.coverage.read_text())
    assert len(coverage["features"]) == sum(whole.statuses.values())
    assert sum(cell["properties"]["buildings"] for cell in coverage["features"]) >= whole.count


@pytest.mark.parametrize("count", [3, 7])
def test_parts_give_the_same_bytes(country: Country, weights: Path, whole: CountrySummary, tmp_path: Path, count: int):
    request = request_of(country.folder, weights, tmp_path / "map")
    make_plan(request)
    for index in range(count, 0, -1):
        states = read_plan(request)
        mark_part(states.files, index, count)
        map_cells(states, states.part(index, count), request, HERE)
    merge_map(read_plan(request))
    assert contents(tmp_path / "map") == contents(whole.buildings.parent)


def test_merge_says_which_parts_are_missing(country: Country, weights: Path, tmp_path: Path):
    request = request_of(country.folder, weights, tmp_path / "map")
    states = make_plan(request)
    with pytest.raises(KitError, match=r"\d+ of \d+ cells are not mapped yet, first 35n"):
        merge_map(states)
    mark_part(states.files, 2, 3)
    map_cells(states, states.part(2, 3), request, HERE)
    with pytest.raises(KitError, match="of parts 1/3, 3/3") as caught:
        merge_map(states)
    assert "--part 1/3" in caught.value.hint


def test_a_plan_of_other_weights_or_options_is_refused(country: Country, weights: Path, tmp_path: Path):
    request = request_of(country.folder, weights, tmp_path / "map")
    with pytest.raises(KitError, match="no plan in") as caught:
        read_plan(request)
    assert "--plan" in caught.value.hint
    make_plan(request)
    with pytest.raises(KitError, match=r"other options: options.square is False there, here True"):
        read_plan(replace(request, options=replace(OPTIONS, square=True)))
    other = export_brightness(tmp_path / "weights", "other")
    with pytest.raises(KitError, match="other options: weights is"):
        read_plan(replace(request, weights=other))


def test_a_rerun_maps_nothing_and_a_new_scene_only_its_cells(country: Country, weights: Path, tmp_path: Path):
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for scene in country.scenes[1:]:
        (scenes / scene.name).hardlink_to(scene)
    request = request_of(scenes, weights, tmp_path / "map")
    map_whole(request)
    states = make_plan(request)
    assert map_cells(states, states.cells, request, HERE).mapped == 0
    new = country.scenes[0]
    (scenes / new.name).hardlink_to(new)
    states = make_plan(request)
    summary = map_cells(states, states.cells, request, HERE)
    assert 0 < summary.mapped < summary.cells
    touched = [
        cell for cell in states.cells if any(s.id == new.name for s in states.tree.near(states.plan.lattice, cell))
    ]
    assert summary.mapped == len(touched)
    afresh = map_whole(request_of(country.folder, weights, tmp_path / "afresh"))
    assert merge_map(states).buildings.read_bytes() == afresh.buildings.read_bytes()


def test_a_scene_that_vanishes_fails_its_cells_and_a_rerun_mends_them(
    country: Country, weights: Path, whole: CountrySummary, tmp_path: Path
):
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for scene in country.scenes:
        (scenes / scene.name).hardlink_to(scene)
    request = request_of(scenes, weights, tmp_path / "map")
    states = make_plan(request)
    gone = scenes / country.scenes[0].name
    gone.rename(tmp_path / "away.tif")
    summary = map_cells(states, states.cells, request, HERE)
    assert 0 < len(summary.failed) < summary.cells
    assert all("s0_00_00.tif is gone" in record.reason for record in summary.failed)
    merged = merge_map(states)
    assert merged.statuses[FAILED] == len(summary.failed)
    (tmp_path / "away.tif").rename(gone)
    assert map_cells(states, states.cells, request, HERE).mapped == len(summary.failed)
    assert merge_map(states).buildings.read_bytes() == whole.buildings.read_bytes()


def test_the_preferred_scene_alone(country: Country, weights: Path, tmp_path: Path):
    request = request_of(country.folder, weights, tmp_path / "map", prefer="finest")
    states = make_plan(request)
    summary = map_cells(states, states.cells, request, HERE)
    assert not summary.failed
    merged = merge_map(states)
    check_houses(merged.buildings, country.houses)
    windows = sum(states.record(cell).windows for cell in states.cells)
    assert windows < sum(
        CellFiles(states.files.cells, cell).read().windows * len(states.plan.scenes) for cell in states.cells
    )


def test_cells_without_imagery_are_reported(weights: Path, tmp_path: Path):
    """A scene may reach into cells where it has no pixels."""
    pixels = np.full((4, 60, 700), 40, np.uint8)
    pixels[:3, 20:40, 20:40] = 220
    pixels[3] = 255 * (np.arange(700) < 100)
    place = {"crs": "EPSG:32636", "transform": rasterio.Affine(1, 0, 450_000, 0, -1, 40_000)}
    profile = {"driver": "GTiff", "width": 700, "height": 60, "count": 4, "dtype": "uint8", "photometric": "RGB"}
    (tmp_path / "scenes").mkdir()
    with rasterio.open(tmp_path / "scenes/s.tif", "w", **profile, **place) as target:
        target.write(pixels)
    merged = map_whole(request_of(tmp_path / "scenes", weights, tmp_path / "map"))
    assert merged.statuses[EMPTY] >= 2
    assert merged.statuses[MAPPED] >= 1
    cells = [cell["properties"] for cell in json.loads(merged.coverage.read_text())["features"]]
    assert all((cell["imagery"] == 0) == (cell["status"] == EMPTY) for cell in cells)
    assert merged.count == 1


def test_ids_that_occur_twice_are_refused(country: Country):
    same = str(country.scenes[0])
    with pytest.raises(CatalogError, match=r"1 scene ids occur twice, first .*s0_00_00\.tif"):
        list_scenes([same, same])


def test_a_folder_of_other_files_is_refused(country: Country, weights: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="was not written by kit map"):
        make_plan(request_of(country.folder, weights, tmp_path))


@contextmanager
def losing_workers(cells: Path, most: int) -> Iterator[list[int]]:
    """Kills random workers of a local cluster, one after every few cells; yields the ids of the killed."""
    chance, killed, ended = random.Random(0), [], threading.Event()

    def kill() -> None:
        while not ended.is_set() and len(killed) < most:
            time.sleep(0.2)
            done = len(list(cells.rglob("*.json")))
            with suppress(psutil.Error, ProcessLookupError):
                children = psutil.Process().children(recursive=True)
                workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
                if done > 2 * len(killed) and workers:
                    victim = chance.choice(workers)
                    os.kill(victim.pid, signal.SIGKILL)
                    killed.append(victim.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        ended.set()
        killer.join()


@pytest.mark.slow
def test_a_country_in_parts_and_with_lost_workers(weights: Path, tmp_path: Path):
    """200 scenes in three UTM zones: 1, 3 and 7 parts, and a cluster whose workers are killed, give the same bytes."""
    drawn = draw_country(tmp_path / "scenes", per_side=10)
    assert len(drawn.scenes) == 200
    whole = map_whole(request_of(drawn.folder, weights, tmp_path / "1", cell_m=384))
    check_houses(whole.buildings, drawn.houses)
    assert not whole.failed
    assert not whole.cut
    for count in (3, 7):
        request = request_of(drawn.folder, weights, tmp_path / f"{count}", cell_m=384)
        make_plan(request)
        for index in range(1, count + 1):
            states = read_plan(request)
            map_cells(states, states.part(index, count), request, HERE)
        merge_map(read_plan(request))
        assert contents(tmp_path / f"{count}") == contents(tmp_path / "1")
    request = request_of(drawn.folder, weights, tmp_path / "killed", cell_m=384)
    states = make_plan(request)
    with losing_workers(tmp_path / "killed" / "cells", 3) as killed, on_cluster("local:2"):
        summary = map_cells(states, states.cells, request)
    assert len(killed) == 3
    assert not summary.failed
    merge_map(states)
    assert contents(tmp_path / "killed") == contents(tmp_path / "1")


def test_what_a_worker_must_have(weights: Path, tmp_path: Path):
    sha256 = sha256_of(weights)
    assert worker_problem(__version__, str(weights), sha256, str(tmp_path)) == ""
    assert "the plan was made by kit 0.1" in worker_problem("0.1", str(weights), sha256, str(tmp_path))
    assert "it has no weights" in worker_problem(__version__, str(tmp_path / "w.pt"), sha256, str(tmp_path))
    assert "are another file" in worker_problem(__version__, str(weights), "0" * 64, str(tmp_path))
    assert "it has no folder" in worker_problem(__version__, str(weights), sha256, str(tmp_path / "gone"))


def test_a_cell_of_another_kit_or_other_weights_fails_with_the_reason(country: Country, weights: Path, tmp_path: Path):
    request = request_of(country.folder, weights, tmp_path / "map")
    states = make_plan(request)
    task = next(states.tasks(states.cells, weights, "cpu"))
    assert "the plan was made by kit 0.1" in map_task(replace(task, kit="0.1")).reason
    assert "the plan was made with 00000" in map_task(replace(task, sha256="0" * 64)).reason
    assert "w.pt" in map_task(replace(task, weights=str(tmp_path / "w.pt"))).reason
    assert states.record(task.cell).status == FAILED


def map_or_die(task: CellTask) -> CellRecord:
    if task.cell.name == os.environ["DEADLY"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return map_task(task)


def test_a_cell_that_kills_its_process_is_reported_and_the_others_are_mapped(
    country: Country, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    request = request_of(country.folder, weights, tmp_path / "map")
    states = make_plan(request)
    deadly = states.cells[7]
    monkeypatch.setitem(os.environ, "DEADLY", deadly.name)
    monkeypatch.setattr("kit.deploy.country.country.map_task", map_or_die)
    summary = map_cells(states, states.cells[:12], request, 2)
    (failed,) = summary.failed
    assert failed.cell == deadly.name
    assert summary.mapped == 12
    assert states.record(deadly).status == FAILED


def test_the_layer_opens_in_geopandas(whole: CountrySummary):
    geopandas = pytest.importorskip("geopandas")
    frame = geopandas.read_parquet(whole.buildings)
    assert (len(frame), frame.crs.to_string()) == (whole.count, "OGC:CRS84")
    assert frame["area_m2"].sum() == pytest.approx(whole.area_m2)
    west, south, east, north = frame.total_bounds
    some = geopandas.read_parquet(whole.buildings, bbox=(west, south, (west + east) / 2, north))  # by the covering
    assert 0 < len(some) < len(frame)


def test_the_layer_opens_in_gdal(whole: CountrySummary):
    program = shutil.which("ogrinfo") or pytest.skip("no ogrinfo")
    formats = subprocess.run([program, "--formats"], capture_output=True, text=True, check=True).stdout
    if "Parquet" not in formats:
        pytest.skip("this GDAL has no Parquet driver")
    shown = subprocess.run([program, "-so", "-al", whole.buildings], capture_output=True, text=True, check=True).stdout
    assert f"Feature Count: {whole.count}" in shown


def test_the_tiles_open_in_a_reader(whole: CountrySummary):
    reader = pytest.importorskip("pmtiles.reader")
    with whole.tiles.open("rb") as file:
        tiles = reader.Reader(reader.MmapSource(file))
        header, metadata = tiles.header(), tiles.metadata()
        assert (header["min_zoom"], header["max_zoom"]) == (LEAST_ZOOM, MOST_ZOOM)
        (layer,) = metadata["vector_layers"]
        assert layer["id"] == "buildings"
        assert {"id", "area_m2", "confidence"} <= set(layer["fields"])
        west, north = (shapely.from_wkb(pq.read_table(whole.buildings)["geometry"][0].as_py()).centroid.coords)[0]
        places = 2**MOST_ZOOM
        x = int((west + 180) / 360 * places)
        y = int((1 - math.asinh(math.tan(math.radians(north))) / math.pi) / 2 * places)
        assert tiles.get(MOST_ZOOM, x, y)
        assert tiles.get(MOST_ZOOM, 0, 0) is None
    meta, _, geometry, fields = pyogrio.raw.read(whole.tiles, layer="buildings", columns=["id"])
    assert meta["crs"] == "EPSG:3857"
    assert set(fields[0]) <= set(pq.read_table(whole.buildings)["id"].to_pylist())
    assert len(set(fields[0])) > 0.95 * whole.count
    assert len(geometry)
