"""Whole maps: of any CRS and resolution, without seams, gone on with, as other programs read them."""

import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from archives import doctored
from deploy_fakes import noise
from factories import LATITUDE, LONGITUDE, MERCATOR, UTM, at_kampala, write_bands, write_scene
from map_fakes import band, brightness, faint_at_edges, imagery, map_with, options_of
from rasterio.features import rasterize
from web import Web

from kit.deploy.engine.backends import EngineOptions
from kit.deploy.engine.predict import predict_image
from kit.deploy.mapping import cogs
from kit.deploy.mapping import map as room
from kit.deploy.mapping.map import MapOptions, MapSummary, map_scene
from kit.deploy.mapping.overlay import COLOUR
from kit.deploy.mapping.terraces import COURTYARD_M2
from kit.deploy.mapping.windows import as_levels
from kit.deploy.weights.card import Postprocess
from kit.deploy.weights.cleaning import clean
from kit.deploy.weights.load import load_weights
from kit.errors import KitError, OutputError, RasterError
from kit.pipeline.export import Exported
from kit.system.files import locked

Cli = Callable[..., tuple[int, str, str]]
HOUSES = ((20, 30, 60, 70), (85, 15, 125, 55), (70, 90, 150, 130))  # left, top, right, bottom, px


def place(crs: str, pixel_m: float = 1.0) -> Affine:
    """Returns the transform of pixels of that size at the equator, in any CRS."""
    if crs != "EPSG:4326":
        return at_kampala(crs, pixel_m)
    return Affine(pixel_m / 111_320, 0, LONGITUDE, 0, -pixel_m / 110_575, LATITUDE)


def town(height: int = 150, width: int = 190) -> np.ndarray:
    """Dark ground with bright houses, (3, H, W)."""
    bands = np.full((3, height, width), 40, np.uint8)
    for left, top, right, bottom in HOUSES:
        bands[:, top:bottom, left:right] = 220
    return bands


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow larger: what a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the files of a map, but for its record, which tells when the scene was written."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix not in (".json", ".lock")}


def test_a_pointwise_predictor_gives_the_whole_image_s_result(tmp_path: Path):
    image = noise(230, 310)
    scene = write_bands(tmp_path / "s.tif", image.transpose(2, 0, 1))
    made = map_with(brightness, scene, tmp_path / "out", threshold=0.48, smallest_m2=0, holes_m2=0)
    assert made.windows == 5 * 7
    expected = as_levels(brightness(np.dstack([image, np.full((230, 310), 255, np.uint8)])))
    np.testing.assert_array_equal(band(made.probability), expected)
    np.testing.assert_array_equal(band(made.mask), expected > 0.48 * 255)


def test_no_seams(tmp_path: Path):
    """Of even ground, a predictor that errs at the edges of its windows must not show where they are."""
    scene = write_bands(tmp_path / "s.tif", np.full((3, 400, 400), 200, np.uint8))
    spread = {}
    for overlap in (1, 32):
        made = map_with(faint_at_edges, scene, tmp_path / f"{overlap}", window_px=128, overlap_px=overlap)
        spread[overlap] = np.ptp(band(made.probability)[20:-20, 20:-20].astype(int))
    assert spread[1] > 80  # what a plain cut would show
    assert spread[32] <= 20


def test_windows_that_disagree_leave_no_step(tmp_path: Path):
    scene = write_bands(tmp_path / "s.tif", np.full((3, 400, 400), 200, np.uint8))
    steps = {}
    for overlap in (1, 32):
        values = itertools.cycle([0.2, 0.8, 0.5])
        made = map_with(
            lambda rgba, values=values: np.full(rgba.shape[:2], next(values), np.float32),
            scene, tmp_path / f"{overlap}", window_px=128, overlap_px=overlap,
        )  # fmt: skip
        level = band(made.probability).astype(int)
        steps[overlap] = max(np.abs(np.diff(level, axis=axis)).max() for axis in (0, 1))
    assert steps[1] > 60  # what a plain cut would show
    assert steps[32] <= 9


@pytest.mark.parametrize("turn", [0, 25])
@pytest.mark.parametrize("crs", [UTM, MERCATOR, "EPSG:4326", "EPSG:2263"])
def test_any_crs(tmp_path: Path, crs: str, turn: float):
    transform = Affine(3.2808, 0, 985_000, 0, -3.2808, 200_000) if crs == "EPSG:2263" else place(crs)
    transform = transform @ Affine.rotation(turn)
    scene = write_bands(tmp_path / "s.tif", town(), transform, crs)
    made = map_with(brightness, scene, tmp_path / "out", gsd_m=1.0)
    with rasterio.open(made.mask) as mask, rasterio.open(scene) as source:
        assert (mask.crs, mask.transform, mask.shape) == (source.crs, source.transform, source.shape)
        np.testing.assert_array_equal(mask.read(1), source.read(1) > 128)
    info = pyogrio.read_info(made.polygons)
    assert pyproj.CRS(info["crs"]) == pyproj.CRS(crs)
    _, _, geometry, (_, areas, confidence) = pyogrio.raw.read(made.polygons)
    assert sorted(areas) == pytest.approx([1600, 1600, 3200], rel=0.01)
    assert confidence == pytest.approx([220 / 255] * 3, abs=1e-3)
    truth = [
        shapely.Polygon([transform @ (x, y) for x, y in shapely.box(*house).exterior.coords[:-1]]) for house in HOUSES
    ]
    for polygon in shapely.from_wkb(geometry):
        assert min(polygon.hausdorff_distance(house) for house in truth) < 0.05 * abs(transform.a)


@pytest.mark.parametrize("gsd_m", [0.35, 0.8, 1.0, 2.0, 3.1])
def test_scenes_of_other_resolutions_lie_where_they_lay(tmp_path: Path, gsd_m: float):
    """Seen at another resolution and brought back, houses are where they were, to a fraction of a pixel."""
    scene = write_bands(tmp_path / "s.tif", town(), at_kampala())
    made = map_with(brightness, scene, tmp_path / "out", gsd_m=gsd_m, square=True)
    assert made.gsd_m == pytest.approx(gsd_m, rel=0.03)
    truth = town()[0] > 128
    mask = band(made.mask)
    assert mask.shape == truth.shape
    wrong = (mask > 0) != truth
    assert wrong.sum() <= 0.06 * truth.sum() * max(1, gsd_m - 1)
    for left, top, right, bottom in HOUSES:
        part = np.zeros(truth.shape, bool)
        part[top - 4 : bottom + 4, left - 4 : right + 4] = True
        rows, columns = np.nonzero((mask > 0) & part)
        centre = (columns.mean() + 0.5, rows.mean() + 0.5)
        assert centre == pytest.approx(((left + right) / 2, (top + bottom) / 2), abs=0.1)
    assert made.buildings == 3
    assert made.area_m2 == pytest.approx(6400, rel=0.03 * max(1, gsd_m))


def test_the_training_grid(tmp_path: Path):
    valid = np.ones((150, 190), bool)
    valid[:, :40] = False
    scene = write_bands(tmp_path / "s.tif", town(), at_kampala(pixel=0.5), mask=valid)
    made = map_with(brightness, scene, tmp_path / "out", gsd_m=1.0, grid="training")
    with rasterio.open(made.mask) as mask:
        assert mask.shape == (75, 95)
        assert mask.bounds == rasterio.open(scene).bounds
        assert (mask.read(1)[:, :20] == 255).all()
        assert (mask.read(1)[:, 20:] != 255).all()
    assert made.area_m2 == pytest.approx((800 + 400 + 400) - 20 * 40 / 4, rel=0.03)


@pytest.mark.parametrize("gsd_m", [1.0, 2.3])
def test_no_data_are_kept_and_cost_nothing(tmp_path: Path, gsd_m: float):
    alpha = cv2.fillPoly(
        np.zeros((300, 320), np.uint8), [np.array([[200, 10], [310, 90], [250, 290], [190, 200]])], 255
    )
    bands = np.concatenate([np.full((3, 300, 320), 230, np.uint8), alpha[None]])
    scene = write_bands(tmp_path / "s.tif", bands, alpha=True)
    shapes = []

    def counting(rgba: np.ndarray) -> np.ndarray:
        shapes.append(rgba.shape)
        assert rgba[..., 3].any() or gsd_m > 1
        return np.full(rgba.shape[:2], 0.9, np.float32)

    made = map_with(counting, scene, tmp_path / "out", gsd_m=gsd_m)
    assert len(shapes) == made.windows < (49 if gsd_m == 1 else 9)
    np.testing.assert_array_equal(imagery(made.probability), alpha > 0)
    np.testing.assert_array_equal(band(made.mask) == 255, alpha == 0)
    if gsd_m == 1:
        expected = (alpha > 0) * as_levels(np.full(alpha.shape, 0.9, np.float32))
        np.testing.assert_array_equal(band(made.probability), expected)


def test_buildings_across_windows_and_bands_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cogs, "BLOCK_PX", 32)
    scene = write_bands(tmp_path / "s.tif", town(), at_kampala())
    made = map_with(brightness, scene, tmp_path / "out")
    monkeypatch.setattr(cogs, "BLOCK_PX", 512)
    whole = map_with(brightness, scene, tmp_path / "whole")
    assert made.buildings == whole.buildings == 3
    _, _, geometry, fields = pyogrio.raw.read(made.polygons)
    _, _, expected, others = pyogrio.raw.read(whole.polygons)
    assert {shapely.from_wkb(part).normalize().wkt for part in geometry} == {
        shapely.from_wkb(part).normalize().wkt for part in expected
    }
    assert sorted(fields[0]) == sorted(others[0])


def test_rasters_are_cogs(tmp_path: Path):
    scene = write_bands(tmp_path / "s.tif", np.kron(town(), np.ones((1, 8, 8), np.uint8)), at_kampala(pixel=0.1))
    made = map_with(brightness, scene, tmp_path / "out", window_px=512, overlap_px=64)
    for path in (made.probability, made.mask):
        with rasterio.open(path) as found:
            assert found.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert (found.count, found.dtypes[0], found.block_shapes[0]) == (1, "uint8", (512, 512))
            assert found.overviews(1) == [2, 4]
    with rasterio.open(made.mask) as mask:
        assert mask.nodata == 255
        assert set(np.unique(mask.read(1))) == {0, 1}
        assert set(np.unique(mask.read(1, out_shape=(300, 380)))) == {0, 1}
    picture = cv2.imread(str(made.overlay))
    assert picture.shape == (1200, 1520, 3)
    assert (picture == COLOUR).all(axis=2).sum() > 1000


def test_a_large_scene_has_a_small_picture(tmp_path: Path):
    scene = write_bands(tmp_path / "s.tif", np.kron(town(30, 190), np.ones((1, 2, 22), np.uint8)))
    made = map_with(brightness, scene, tmp_path / "out", window_px=512, overlap_px=64)
    assert cv2.imread(str(made.overlay)).shape[1] == 2000


def test_a_map_without_buildings(tmp_path: Path):
    scene = write_bands(tmp_path / "s.tif", np.zeros((3, 90, 90), np.uint8), nodata=0)
    for kind in ("gpkg", "geojson"):
        made = map_with(brightness, scene, tmp_path / kind, format=kind)
        assert (made.buildings, made.windows) == (0, 0)
        assert pyogrio.read_info(made.polygons)["features"] == 0
        assert not imagery(made.probability).any()
        assert (band(made.mask) == 255).all()


def test_a_stopped_map_goes_on(tmp_path: Path):
    scene = write_bands(tmp_path / "s.tif", noise(300, 200).transpose(2, 0, 1))
    calls = 0

    def stopping(rgba: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 14:
            raise KeyboardInterrupt
        return faint_at_edges(rgba)

    whole = map_with(faint_at_edges, scene, tmp_path / "whole", threshold=0.3, format="geojson")
    with pytest.raises(KeyboardInterrupt):
        map_with(stopping, scene, tmp_path / "cut", threshold=0.3, format="geojson")
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [".m.strips", "m.json"]
    made = map_with(stopping, scene, tmp_path / "cut", threshold=0.3, format="geojson")
    assert 0 < made.windows < whole.windows - 8
    assert calls == 14 + made.windows
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["gpkg", "geojson"])
def test_stopped_while_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    scene = write_bands(tmp_path / "s.tif", town(), at_kampala())
    map_with(brightness, scene, tmp_path / "whole", format=kind)
    for name in ("write_probability", "outlined"):
        with monkeypatch.context() as patch:

            def stopped(*_: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(room, name, stopped)
            with pytest.raises(KeyboardInterrupt):
                map_with(brightness, scene, tmp_path / "cut", format=kind)
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {"m.json", "m_probability.tif"}
    assert map_with(brightness, scene, tmp_path / "cut", format=kind).windows == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_other_polygons_take_no_prediction(tmp_path: Path):
    scene = write_bands(tmp_path / "s.tif", town(), at_kampala())
    first = map_with(brightness, scene, tmp_path / "m")
    again = map_with(brightness, scene, tmp_path / "m", threshold=0.9, format="geojson")
    assert first.windows > again.windows == 0
    assert (first.buildings, again.buildings) == (3, 0)
    assert not first.polygons.exists()  # they would be of another mask
    assert map_with(brightness, scene, tmp_path / "m", overlap_px=8).windows > 0
    record = json.loads((tmp_path / "m/m.json").read_text())
    assert (record["buildings"], record["options"]["overlap_px"]) == (3, 8)
    again.probability.unlink()
    assert map_with(brightness, scene, tmp_path / "m", overlap_px=8).windows > 0


@pytest.mark.parametrize("size", [3_000, 60_000, 90_000, 130_000])
def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(tmp_path: Path, size: int):
    scene = write_bands(tmp_path / "s.tif", noise(300, 300).transpose(2, 0, 1))
    with small_disk(size), pytest.raises(KitError, match=r"cannot write .*(File too large|m_|strip|m\.gpkg)") as caught:
        map_with(brightness, scene, tmp_path / "cut", smallest_m2=0)
    assert "free some space" in caught.value.hint
    left = {path.name for path in (tmp_path / "cut").iterdir()}
    assert left <= {".m.strips", "m.json", "m_probability.tif", "m_mask.tif"}
    map_with(brightness, scene, tmp_path / "cut", smallest_m2=0)
    map_with(brightness, scene, tmp_path / "whole", smallest_m2=0)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_map_goes_on(tmp_path: Path):
    """SIGKILL to a real process, again and again: the files come out as from one call."""
    scene = write_bands(tmp_path / "s.tif", noise(700, 300).transpose(2, 0, 1), at_kampala())
    code = (
        f"import sys, time; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from map_fakes import faint_at_edges, map_with\n"
        "def slow(rgba): time.sleep(0.02); return faint_at_edges(rgba)\n"
        f"map_with(slow, Path({str(scene)!r}), Path({str(tmp_path / 'cut')!r}), threshold=0.3, square=True)\n"
    )
    folder, found = tmp_path / "cut/.m.strips", []
    for strips in (3, 8):
        with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 120
            while len(list(folder.glob("strip*"))) < strips and time.monotonic() < deadline:
                time.sleep(0.01)
            process.kill()
        found.append(len(list(folder.glob("strip*"))))
    assert 3 <= found[0] < found[1] < 15
    map_with(faint_at_edges, scene, tmp_path / "whole", threshold=0.3, square=True)
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_another_engine(tmp_path: Path, tiny_weights: Exported):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    scene = write_bands(tmp_path / "s.tif", noise(100, 120).transpose(2, 0, 1), at_kampala(pixel=0.15))
    made = tiny(scene, tiny_weights, tmp_path / "torch")
    options, engine = MapOptions(), EngineOptions(engine="openvino", tuning=False)
    other = map_scene(str(scene), tiny_weights.path, tmp_path / "o", "m", options, engine)
    assert np.abs(band(made.probability).astype(int) - band(other.probability)).max() <= 1


def tiny(scene: object, weights: Exported, folder: Path, **options: object) -> MapSummary:
    chosen = options_of(**{"window_px": 128, "threshold": 0.6, **options})
    return map_scene(str(scene), weights.path, folder, "m", chosen, EngineOptions(tuning=False))


def test_exported_weights(tmp_path: Path, tiny_weights: Exported):
    """In one window a map is what the weights give; in several it is that but for what lies beyond a window's edge."""
    image = cv2.GaussianBlur(noise(200, 260), (0, 0), 3)
    scene = write_bands(tmp_path / "s.tif", image.transpose(2, 0, 1), at_kampala(pixel=0.15))
    expected = as_levels(predict_image(load_weights(tiny_weights.path), image))
    one = tiny(scene, tiny_weights, tmp_path / "one", window_px=512, overlap_px=64)
    np.testing.assert_array_equal(band(one.probability), expected)
    several = tiny(scene, tiny_weights, tmp_path / "several", overlap_px=32)
    assert several.windows == 6
    assert np.abs(band(several.probability).astype(int) - expected).mean() < 0.2
    record = json.loads((tmp_path / "several/m.json").read_text())
    assert not any(start % 16 for axis in record["prediction"]["windows"] for start in axis["starts"])


def test_a_vote_that_ends_early_is_calibrated_on_each_piece_once(
    tmp_path: Path, tiny_weights: Exported, capsys: pytest.CaptureFixture[str]
):
    scene = write_bands(tmp_path / "s.tif", noise(100, 120).transpose(2, 0, 1), at_kampala(pixel=0.15))
    engine = EngineOptions(tuning=False, adaptive=True)
    map_scene(str(scene), tiny_weights.path, tmp_path / "o", "m", MapOptions(), engine)
    assert "calibrated on 1 image)" in capsys.readouterr().err


def test_the_weights_resolution_is_the_card_s(tmp_path: Path, tiny_weights: Exported):
    scene = write_bands(tmp_path / "s.tif", noise(200, 260).transpose(2, 0, 1), at_kampala(pixel=0.05))
    assert tiny(scene, tiny_weights, tmp_path / "a").gsd_m == pytest.approx(0.15, rel=0.01)
    assert tiny(scene, tiny_weights, tmp_path / "b", gsd_m=0.06).gsd_m == pytest.approx(0.06, rel=0.03)


def test_an_address(tmp_path: Path, web: Web, tiny_weights: Exported):
    scene = write_bands(
        web.folder / "a town.tif", town(), at_kampala(pixel=0.15), tiled=True, blockxsize=64, blockysize=64
    )
    made = tiny(f"{web.url}/a town.tif", tiny_weights, tmp_path / "remote")
    local = tiny(scene, tiny_weights, tmp_path / "local")
    assert made.windows == local.windows
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")
    assert tiny(f"{web.url}/a town.tif", tiny_weights, tmp_path / "remote").windows == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "a threshold of 1.5"), ({"format": "shp"}, "no format 'shp'"),
        ({"grid": "z19"}, "no grid 'z19'"),
        ({"window_px": 10}, "windows of 10 px"), ({"smallest_m2": float("nan")}, "--smallest is nan"),
    ],
)  # fmt: skip
def test_impossible_maps(tmp_path: Path, options: dict[str, object], message: str):
    with pytest.raises(KitError, match=message):
        map_scene("s.tif", tmp_path / "w.pt", tmp_path, "m", options_of(**options))


def test_a_name_that_leaves_the_folder(tmp_path: Path):
    with pytest.raises(KitError, match=r"'\.\./m' cannot name a file"):
        map_scene("s.tif", tmp_path / "w.pt", tmp_path, "../m")


def test_the_command(cli: Cli, tmp_path: Path, tiny_weights: Exported):
    scene = write_bands(tmp_path / "town.tif", town(), at_kampala(pixel=0.15))
    more = ("--weights", tiny_weights.path, "--root", tmp_path, "--threshold", "0.6", "--square", "--format", "geojson")
    code, out, err = cli("map", scene, *more)
    assert code == 0, err
    folder = tmp_path / "maps/tiny-town"
    names = ["tiny-town_probability.tif", "tiny-town_mask.tif", "tiny-town_overlay.png", "tiny-town.geojson"]
    assert out.split() == [str(folder / name) for name in names]
    assert {path.name for path in folder.iterdir()} == {*names, "tiny-town.json", ".tiny-town.lock"}
    assert "predicted at 0.15 m per pixel" in err
    assert err.count("tiny does not tell neighbours apart: buildings that touch are one polygon") == 1
    code, out, err = cli("map", scene, *more, "--out", tmp_path / "here", "--name", "n", "--no-tune")
    assert code == 0, err
    assert out.splitlines()[-1] == str(tmp_path / "here/n.geojson")


def test_mistakes_are_one_clear_error(cli: Cli, tmp_path: Path, tiny_weights: Exported):
    scene = write_bands(tmp_path / "town.tif", town(), at_kampala(pixel=0.15))
    weights = ("--weights", tiny_weights.path)
    grey = write_bands(tmp_path / "grey.tif", town()[:1], photometric="minisblack")
    nowhere = write_bands(tmp_path / "nowhere.tif", town(), crs=None)
    for arguments, message in (
        ((tmp_path / "none.tif", *weights), "none.tif does not exist"),
        ((grey, *weights), "has 1 band of uint8, expected 3 or 4"),
        ((nowhere, *weights), "has no coordinate system"),
        ((scene, "--weights", "other"), "no weights"),
        ((scene, *weights, "--format", "shp"), "no format 'shp'"),
        ((scene, *weights, "--overlap", "512"), "an overlap of 512 px"),
    ):
        code, out, err = cli("map", *arguments, "--root", tmp_path)
        assert (code, out) == (1, ""), err
        assert message in err
        assert err.splitlines()[-1].startswith("hint: "), err
    assert not (tmp_path / "maps").exists()


def test_a_broken_scene_keeps_what_was_done(tmp_path: Path):
    blocks = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    scene = write_bands(tmp_path / "s.tif", np.maximum(noise(400, 400), 30).transpose(2, 0, 1), **blocks)
    whole = scene.read_bytes()
    middle = len(whole) // 2
    scene.write_bytes(whole[:middle] + bytes(20_000) + whole[middle + 20_000 :])
    with pytest.raises(RasterError, match=r"s\.tif is broken at row \d+, column \d+"):
        map_with(brightness, scene, tmp_path / "cut")
    assert len(list((tmp_path / "cut/.m.strips").glob("strip*.npz"))) > 1
    scene.write_bytes(whole)
    assert map_with(brightness, scene, tmp_path / "cut").windows < 64


def test_a_map_in_another_format_removes_its_own_polygons_alone(tmp_path: Path):
    write_scene(tmp_path / "scene.tif")
    (folder := tmp_path / "m").mkdir()
    (folder / "other.geojson").write_text("mine")
    for format_, gone in (("gpkg", "geojson"), ("geojson", "gpkg"), ("gpkg", "geojson")):
        map_with(brightness, tmp_path / "scene.tif", folder, format=format_)
        files = json.loads((folder / "m.json").read_text())["files"]
        assert files == [f"m.{format_}", "m_mask.tif", "m_overlay.png", "m_probability.tif"]
        assert all((folder / name).is_file() for name in files)
        assert not (folder / f"m.{gone}").exists()
    assert (folder / "other.geojson").read_text() == "mine"


def submitted(folder: Path, options: MapOptions) -> np.ndarray:
    """The mask that `kit submit` makes of a map's probability."""
    level, valid = band(folder / "m_probability.tif"), imagery(folder / "m_probability.tif")
    mask = clean(level / 255, options.cleaning.threshold, options.cleaning.smallest_m2, options.cleaning.holes_m2)
    return np.where(valid, mask, 255)


@pytest.mark.parametrize("sizes", [(0, 0), (9, 0), (0, 40), (30, 9)])
def test_the_mask_is_cleaned_as_by_kit_submit_and_the_polygons_agree(
    tmp_path: Path, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cogs, "BLOCK_PX", 32)
    image = cv2.GaussianBlur(noise(130, 110), (0, 0), 2)
    image = np.clip((image.astype(int) - 127) * 8 + 127, 9, 250).astype(np.uint8)
    valid = np.ones((130, 110), bool)
    valid[60:80, 30:50] = False
    scene = write_bands(tmp_path / "s.tif", image.transpose(2, 0, 1), at_kampala(), mask=valid)
    options = options_of(*sizes)
    made = map_with(brightness, scene, tmp_path / "out", smallest_m2=sizes[0], holes_m2=sizes[1], simplify_m=1e-6)
    mask = band(made.mask)
    np.testing.assert_array_equal(mask, submitted(tmp_path / "out", options))
    filled = clean((mask == 1).astype(np.float32), holes_px=COURTYARD_M2)  # pixels of 1 m²
    assert made.area_m2 == pytest.approx(filled.sum(), rel=0.005)
    _, _, geometry, _ = pyogrio.raw.read(made.polygons)
    burnt = rasterize(shapely.from_wkb(geometry), mask.shape, transform=at_kampala())
    np.testing.assert_array_equal(burnt, filled)


def test_a_scene_across_180_degrees(tmp_path: Path):
    x, y = pyproj.Transformer.from_crs(4326, 32760, always_xy=True).transform(180, -17.5)
    scene = write_bands(tmp_path / "s.tif", town(), Affine(1, 0, x - 100, 0, -1, y), "EPSG:32760")
    features = json.loads(map_with(brightness, scene, tmp_path, format="geojson").polygons.read_text())["features"]
    assert sorted(feature["properties"]["area_m2"] for feature in features) == pytest.approx(
        [1600, 1600, 3200], rel=0.01
    )
    kinds = {feature["geometry"]["type"]: feature["geometry"]["coordinates"] for feature in features}
    assert set(kinds) == {"Polygon", "MultiPolygon"}
    for (part,) in kinds["MultiPolygon"]:
        longitudes = [point[0] for point in part]
        assert max(longitudes) - min(longitudes) < 0.001
        assert part[0] == part[-1]
        assert all(one != other for one, other in itertools.pairwise(part))
    package = map_with(brightness, scene, tmp_path)
    info = pyogrio.read_info(package.polygons)
    assert (info["geometry_type"], info["features"]) == ("Polygon", 3)
    assert package.area_m2 == pytest.approx(6400, rel=0.01)


@pytest.mark.parametrize("level", [0, 255], ids=["black", "white"])
def test_a_collar_is_no_building(tmp_path: Path, level: int):
    bands = np.maximum(town(), noise(150, 190).transpose(2, 0, 1) // 8 + 20)
    bands[:, :, 150:] = level
    made = map_with(brightness, write_bands(tmp_path / "s.tif", bands, at_kampala()), tmp_path)
    assert made.buildings == 3
    assert (band(made.mask)[:, 150:] == 255).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (3, 2)])
def test_a_tiny_scene(tmp_path: Path, shape: tuple[int, int]):
    scene = write_bands(tmp_path / "s.tif", np.full((3, *shape), 220, np.uint8), at_kampala())
    made = map_with(brightness, scene, tmp_path / "out")
    assert (made.windows, made.buildings) == (-(-shape[1] // 64) if shape[1] > 64 else 1, 1)
    assert (band(made.mask) == 1).all()


def refused(tmp_path: Path, scene: Path, weights: Exported, message: str) -> str:
    """Returns the hint of the error; nothing is written."""
    with pytest.raises(KitError, match=message) as caught:
        map_scene(str(scene), weights.path, tmp_path / "out", "m", engine=EngineOptions(tuning=False))
    assert not (tmp_path / "out").exists()
    return caught.value.hint


def test_scenes_that_cannot_be_mapped(tmp_path: Path, tiny_weights: Exported):
    os.mkfifo(tmp_path / "pipe.tif")
    refused(tmp_path, tmp_path / "pipe.tif", tiny_weights, r"pipe\.tif is not a regular file")
    (tmp_path / "folder.tif").mkdir()
    refused(tmp_path, tmp_path / "folder.tif", tiny_weights, "is not a regular file")
    refused(tmp_path, tmp_path / "none.tif", tiny_weights, r"none\.tif does not exist")
    identity = write_bands(tmp_path / "i.tif", town(), Affine.identity())
    assert "-a_ullr" in refused(tmp_path, identity, tiny_weights, "no transform that places its pixels")
    skewed = write_bands(tmp_path / "k.tif", town(), at_kampala(pixel=0.15) @ Affine.shear(30, 0))
    assert "gdalwarp" in refused(tmp_path, skewed, tiny_weights, "rows and columns meet at 60 degrees")


def claiming(path: Path, width: int, height: int, **blocks: object) -> Path:
    """Writes a scene of a few kilobytes that claims a size."""
    profile = {"count": 3, "dtype": "uint8", "crs": UTM, "transform": at_kampala(pixel=0.15), "SPARSE_OK": True}
    with rasterio.open(path, "w", driver="GTiff", width=width, height=height, **profile, **blocks):
        return path


def test_scenes_that_take_too_much_memory(tmp_path: Path, tiny_weights: Exported):
    wide = claiming(tmp_path / "w.tif", 1_000_000, 64, tiled=True, blockxsize=512, blockysize=512)
    assert "-srcwin" in refused(tmp_path, wide, tiny_weights, "1,000,000 px wide: .* 11 GiB of memory, at most 8")
    block = claiming(tmp_path / "b.tif", 20_000, 20_000, tiled=True, blockxsize=20_000, blockysize=20_000)
    assert "TILED" in refused(tmp_path, block, tiny_weights, "blocks of 400,000,000 px, expected at most 268,435,456")


def test_a_vrt_reads_files_of_its_own_folder_alone(tmp_path: Path, tiny_weights: Exported):
    scene = write_bands(tmp_path / "elsewhere/s.tif", town(), at_kampala(pixel=0.15))
    (tmp_path / "maps").mkdir()
    for folder in ("maps", "elsewhere"):
        rasterio.shutil.copy(scene, tmp_path / folder / "s.vrt", driver="VRT")
    hint = refused(tmp_path, tmp_path / "maps/s.vrt", tiny_weights, r"s\.vrt is a VRT that reads .*elsewhere/s\.tif")
    assert "--allow-outside" in hint
    tiny(tmp_path / "elsewhere/s.vrt", tiny_weights, tmp_path / "a")
    tiny(tmp_path / "maps/s.vrt", tiny_weights, tmp_path / "b", allow_outside=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_folder_that_cannot_be_written_is_found_before_any_work(tmp_path: Path):
    scene = write_bands(tmp_path / "s.tif", town(), at_kampala(pixel=0.15))
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(OutputError, match=f"cannot write .*{name}"):
            map_scene(str(scene), tmp_path / "no-weights.pt", tmp_path / name, "m")


def test_two_maps_at_once(tmp_path: Path, tiny_weights: Exported):
    scene = write_bands(tmp_path / "s.tif", town(), at_kampala(pixel=0.15))
    with locked(tmp_path / "out/m"), pytest.raises(KitError, match="another process writes"):
        tiny(scene, tiny_weights, tmp_path / "out")


def test_a_damaged_probability_is_named(tmp_path: Path):
    scene = write_bands(tmp_path / "s.tif", noise(300, 300).transpose(2, 0, 1), at_kampala())
    made = map_with(brightness, scene, tmp_path)
    content = made.probability.read_bytes()
    made.probability.write_bytes(content[: len(content) // 2])
    with pytest.raises(RasterError, match=r"m_probability\.tif is damaged") as caught:
        map_with(brightness, scene, tmp_path)
    assert "remove it and rerun" in caught.value.hint
    made.probability.unlink()
    assert map_with(brightness, scene, tmp_path).windows > 0


def test_the_options_of_kit_submit(cli: Cli, tmp_path: Path, tiny_weights: Exported):
    scene = write_bands(tmp_path / "town.tif", town(), at_kampala(pixel=0.15))

    def chosen(*options: object) -> dict[str, float]:
        code, _, err = cli("map", scene, "--weights", tiny_weights.path, "--root", tmp_path, "--no-tune", *options)
        assert code == 0, err
        return json.loads((tmp_path / "maps/tiny-town/tiny-town.json").read_text())["options"]["cleaning"]

    assert chosen() == {"threshold": 0.5, "smallest_m2": 2, "holes_m2": 2}
    expected = {"threshold": 0.6, "smallest_m2": 3, "holes_m2": 4}
    assert chosen("--threshold", 0.6, "--smallest", 3, "--holes", 4) == expected
    assert chosen("--threshold", 0.6, "--min-area", 3, "--min-hole", 4) == expected
    code, _, err = cli("map", scene, "--weights", tiny_weights.path, "--root", tmp_path, "--clean")
    assert code == 1
    assert "has no postprocess in its card" in err


def test_the_clean_up_of_the_card(cli: Cli, tmp_path: Path, tiny_weights: Exported):
    choice = Postprocess(threshold=0.45, smallest_m2=3.0, hole_m2=2.5, score_before=0.78, score_after=0.79)
    card = replace(tiny_weights.card, postprocess=choice).to_json()
    weights = doctored(tiny_weights.path, tmp_path / "tidy.pt", "extra/card.json", lambda _: card.encode())
    scene = write_bands(tmp_path / "town.tif", town(), at_kampala(pixel=0.15))
    command = ("map", scene, "--weights", weights, "--root", tmp_path, "--no-tune", "--clean", "--holes", 0)
    code, _, err = cli(*command)
    assert code == 0, err
    assert "masks: threshold 0.45, smallest 3 m2, holes 0 m2" in err
    record = json.loads((tmp_path / "maps/tidy-town/tidy-town.json").read_text())
    assert record["options"]["cleaning"] == {"threshold": 0.45, "smallest_m2": 3, "holes_m2": 0}


def test_the_layer_says_what_it_was_made_from(tmp_path: Path):
    scene = write_bands(tmp_path / "s.tif", town(), at_kampala())
    made = map_with(brightness, scene, tmp_path / "without")
    about = pyogrio.read_info(made.polygons)["layer_metadata"]
    assert about["SOURCE"] == "s.tif"
    assert "IMAGERY_DATE" not in about
    with rasterio.open(scene, "r+") as source:
        source.update_tags(TIFFTAG_DATETIME="2019:05:01 10:00:00")
    made = map_with(brightness, scene, tmp_path / "dated")
    assert pyogrio.read_info(made.polygons)["layer_metadata"] == about | {"IMAGERY_DATE": "2019:05:01 10:00:00"}


def test_no_two_buildings_overlap(tmp_path: Path):
    scene = write_bands(tmp_path / "s.tif", noise(300, 300).transpose(2, 0, 1), at_kampala())
    made = map_with(brightness, scene, tmp_path / "m", square=True, smallest_m2=0)
    polygons = shapely.from_wkb(pyogrio.raw.read(made.polygons)[2])
    first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    apart = first < second
    assert len(polygons) == made.buildings > 100
    assert shapely.area(shapely.intersection(polygons[first[apart]], polygons[second[apart]])).max(initial=0) < 1e-6


def test_ids_stay_in_reruns_and_windows_of_any_size(tmp_path: Path):
    scene = write_bands(tmp_path / "s.tif", town(), at_kampala())
    layers = []
    for folder, window in (("a", 64), ("a", 64), ("b", 96), ("c", 1024)):
        made = map_with(brightness, scene, tmp_path / folder, window_px=window, square=True)
        _, _, geometry, fields = pyogrio.raw.read(made.polygons)
        layers.append({name: (polygon, *rest) for polygon, name, *rest in zip(geometry, *fields, strict=True)})
        assert len(layers[-1]) == made.buildings == 3
    assert all(layer == layers[0] for layer in layers[1:])
