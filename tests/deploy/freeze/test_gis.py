"""The format onnx-gis: GeoDeep's own program maps a scene as `kit map` does; Deepness reads it, by its rules."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import torch
from deploy_fakes import TinyNet, export_tiny, left_in, record, write_tiff
from rasterio.transform import Affine
from torch import Tensor

from kit.deploy.engine.backends import EngineOptions
from kit.deploy.freeze import formats, runners
from kit.deploy.freeze.gis import gis_metadata
from kit.deploy.mapping.map import MapOptions, map_scene
from kit.deploy.proof.verify import verify
from kit.deploy.weights.card import About, Postprocess, Provenance, TrainedArea, TrainedEncoder
from kit.deploy.weights.cleaning import AS_SHIPPED
from kit.deploy.weights.listing import list_weights
from kit.deploy.weights.load import load_weights
from kit.errors import KitError, WeightsError
from kit.paths import Paths
from kit.pipeline.export import Exported, ExportRequest, export_ensemble
from kit.pipeline.publish import describe, publish_item

onnxruntime = pytest.importorskip("onnxruntime")
TILE_PX, GSD_M = 128, 0.1


class RedRoofs(TinyNet):
    """Building is where red exceeds green around a pixel: sure of it, and blind beyond 4 px."""

    def forward(self, x: Tensor) -> Tensor:
        redness = torch.nn.functional.avg_pool2d(x[:, :1] - x[:, 1:2], 9, 1, 4, count_include_pad=False)
        return torch.cat([torch.zeros_like(redness), redness / 4 - 8], dim=1)


def export_roofs(folder: Path, views: str = "flips", form: str = f"onnx-gis:{TILE_PX}") -> Exported:
    request = ExportRequest("roofs", "tiny", views, 0.5, GSD_M, formats=(form,))
    return export_ensemble(folder, [RedRoofs(1, channels=2)], [record()], request)


@pytest.fixture(scope="module")
def roofs(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Read only."""
    return export_roofs(tmp_path_factory.mktemp("gis"))


def tiles_file(exported: Exported) -> Path:
    return exported.path.with_suffix(".gis.onnx")


def session_of(exported: Exported) -> "onnxruntime.InferenceSession":
    return onnxruntime.InferenceSession(tiles_file(exported), providers=["CPUExecutionProvider"])


def town(height: int, width: int) -> np.ndarray:
    """Red roofs of several sizes and directions on grey ground."""
    random = np.random.default_rng(0)
    image = random.integers(90, 130, (height, width, 1), dtype=np.uint8).repeat(3, 2)
    for y in range(40, height, 110):
        for x in range(40, width, 120):
            size = random.uniform(45, 85, 2).tolist()
            corners = cv2.boxPoints(((x, y), size, float(random.uniform(0, 90)))).astype(np.int32)
            cv2.fillPoly(image, [corners], (210, 90, 80))
    return image


@pytest.mark.skipif(importlib.util.find_spec("geodeep") is None, reason="geodeep is not installed")
def test_geodeep_maps_a_scene_as_kit_does(tmp_path: Path, roofs: Exported):
    """GeoDeep has a median filter of 5 px, which rounds corners; the rest is equal, at the seams of tiles too."""
    place = Affine(GSD_M, 0, 450_000, 0, -GSD_M, 40_000)
    scene = write_tiff(tmp_path / "town.tif", town(530, 710), crs="EPSG:32636", transform=place, tiled=True)
    options = MapOptions(cleaning=AS_SHIPPED)
    summary = map_scene(str(scene), roofs.path, tmp_path / "map", "town", options, EngineOptions("cpu", tuning=False))
    command = [sys.executable, "-m", "geodeep.scripts.main", scene, tiles_file(roofs)]
    command += ["--output-type", "mask", "--output", tmp_path / "geodeep.tif", "--quiet", "--max-threads", "1"]
    run = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert run.returncode == 0, run.stderr
    with rasterio.open(summary.mask) as ours, rasterio.open(tmp_path / "geodeep.tif") as theirs:
        kit_mask, gis_mask = ours.read(1) == 1, theirs.read(1) == 1
        assert ours.transform == theirs.transform
    assert 0.2 < kit_mask.mean() < 0.5
    assert (kit_mask & gis_mask).sum() / (kit_mask | gis_mask).sum() >= 0.98


def deepness_mask(exported: Exported, scene: np.ndarray) -> np.ndarray:
    """What Deepness maps in a scene, uint8 (H, W, 3 or 4), at the resolution of the weights; True is building.

    Rules of its source: `model_base.py`, `preprocessing_utils.py`, `standardization_parameters.py`, `segmentor.py`,
    `tile_params.py`, `map_processor_segmentation.py`.
    """
    session = session_of(exported)
    (image,), (output,) = session.get_inputs(), session.get_outputs()  # other numbers raise
    metadata = session.get_modelmeta().custom_metadata_map
    keys = {key: json.loads(value) for key, value in metadata.items()}
    batch_size, channels, side, _ = image.shape
    assert len(output.shape) == 4
    assert output.shape[2] == output.shape[3]
    mean, std = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    if {"standardization_mean", "standardization_std"} <= keys.keys():
        mean, std = np.float32(keys["standardization_mean"]), np.float32(keys["standardization_std"])
    overlap = round(side * int(keys["tiles_overlap"]) / 100 / 2) * 2
    stride, cut = side - overlap, overlap // 2
    rows, columns = (max(1, -(-(length - overlap) // stride)) for length in scene.shape[:2])
    canvas = np.zeros((rows * stride + overlap, columns * stride + overlap, scene.shape[2]), np.uint8)
    canvas[: scene.shape[0], : scene.shape[1]] = scene  # outside of a layer QGIS gives 0
    mask = np.zeros(canvas.shape[:2], np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride, column * stride
            tile = canvas[None, top : top + side, left : left + side, :channels]  # alpha is dropped
            batch = np.float32(tile * 1.0 / 255.0)
            batch = np.transpose((batch - mean) / std, (0, 3, 1, 2))
            assert len(batch) == batch_size
            result = session.run(None, {image.name: batch})[0]
            result[result < float(keys["seg_thresh"])] = 0.0
            classes = np.argmax(result, axis=1)[0] + 1  # 0 is outside
            above, before = cut * (row > 0), cut * (column > 0)
            mask[top + above : top + side, left + before : left + side] = classes[above:, before:]
    blurred = cv2.medianBlur(mask, int(keys["seg_small_segment"]) // 2 * 2 + 1)
    return blurred[: scene.shape[0], : scene.shape[1]] == 2


@pytest.mark.parametrize("channels", [3, 4])
def test_deepness_maps_a_scene_as_kit_does(tmp_path: Path, roofs: Exported, channels: int):
    """Its rules, on a scene of several tiles: the same mask but for pixels beside the edges of the scene."""
    image = town(300, 420)
    alpha = np.full((300, 420, channels - 3), 255, np.uint8)
    place = Affine(GSD_M, 0, 450_000, 0, -GSD_M, 40_000)
    scene = write_tiff(tmp_path / "town.tif", np.dstack([image, alpha]), crs="EPSG:32636", transform=place)
    options = MapOptions(cleaning=AS_SHIPPED)
    summary = map_scene(str(scene), roofs.path, tmp_path / "map", "town", options, EngineOptions("cpu", tuning=False))
    with rasterio.open(summary.mask) as ours:
        kit_mask = ours.read(1) == 1
    gis_mask = deepness_mask(roofs, np.dstack([image, alpha]))
    assert 0.2 < kit_mask.mean() < 0.5
    assert (kit_mask & gis_mask).sum() / (kit_mask | gis_mask).sum() >= 0.98
    assert np.array_equal(kit_mask[8:-8, 8:-8], gis_mask[8:-8, 8:-8])


def test_deepness_reads_the_metadata_by_its_rules(roofs: Exported):
    session = session_of(roofs)
    (image,), (output,) = session.get_inputs(), session.get_outputs()
    assert (image.type, image.shape) == ("tensor(float)", [1, 3, TILE_PX, TILE_PX])
    assert output.shape == [1, 2, TILE_PX, TILE_PX]
    keys = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert str(keys["model_type"]).capitalize() == "Segmentor"
    names = sorted(keys["class_names"].items(), key=lambda item: int(item[0]))
    assert [int(number) for number, _ in names] == list(range(output.shape[1]))  # a missing number raises
    assert [name for _, name in names] == ["background", "building"]
    assert float(keys["resolution"]) == 10.0
    assert int(keys["tile_size"]) == TILE_PX
    assert 0 <= int(keys["tiles_overlap"]) < 100
    assert isinstance(keys["seg_small_segment"], int)
    assert 0 <= float(keys["seg_thresh"]) <= 1
    assert not {"standardization_mean", "standardization_std", "names"} & keys.keys()


def test_deepness_cuts_the_probability_as_kit_does(roofs: Exported):
    tile = town(TILE_PX, TILE_PX)
    batch = np.float32(tile[None] * 1.0 / 255.0).transpose(0, 3, 1, 2)
    result = session_of(roofs).run(None, {"image": batch})[0]
    assert np.allclose(result.sum(1), 1, atol=1e-6)
    with torch.inference_mode():
        expected = load_weights(roofs.path).module.mask(torch.from_numpy(tile.transpose(2, 0, 1)[None].copy()))
    mask = np.argmax(result, axis=1)
    assert 0.1 < mask.mean() < 0.9
    assert np.array_equal(mask, expected[:, 0].numpy())


@pytest.mark.parametrize("views", ["none", "d4"])
def test_views_and_votes_are_inside(tmp_path: Path, views: str):
    exported = export_tiny(tmp_path, views=views, others=(f"onnx-gis:{TILE_PX}",), weights=(0.9, 0.1))
    assert runners.tile_difference(tiles_file(exported), runners.runner(exported.path)) < 1e-5
    assert [listed.formats for listed in list_weights(tmp_path)] == [("pt", "gis.onnx")]


def test_black_areas_are_no_data(tmp_path: Path):
    """Both programs drop alpha, and GeoDeep fills the outside of a scene with 0."""
    tile = np.random.default_rng(0).integers(9, 256, (1, 3, TILE_PX, TILE_PX)).astype(np.float32) / 255
    tile[:, :, :20, 30:], tile[:, :, 60, 60], tile[:, :, 100:108, 100:108] = 0, 0, 0
    tile[:, :, 5, 40] = 8 / 255  # noise of a compression
    outside = np.zeros((TILE_PX, TILE_PX), bool)
    outside[:20, 30:] = True
    building = session_of(export_tiny(tmp_path, "roofs", others=(f"onnx-gis:{TILE_PX}",))).run(None, {"image": tile})[0]
    assert np.array_equal(building[0, 1] == 0, outside)
    assert (building[0, 0][outside] == 1).all()


def test_verify_compares_a_tile(tmp_path: Path, roofs: Exported):
    verified = verify(roofs.path)
    verified.require()
    results = {check.name: check.result for check in verified.checks}
    assert results["roofs.gis.onnx"].startswith("a tile differs from roofs.pt by at most")
    exported = export_roofs(tmp_path)
    export_tiny(tmp_path / "other", others=(f"onnx-gis:{TILE_PX}",))
    (tmp_path / "other" / "tiny.gis.onnx").replace(tiles_file(exported))
    with pytest.raises(WeightsError, match=r"roofs\.gis\.onnx: a tile differs from roofs\.pt by at most"):
        verify(exported.path).require()


def test_the_metadata_come_from_the_card(roofs: Exported):
    tuned = replace(roofs.card, postprocess=Postprocess(0.6, 4.0, 1.0, 0.5, 0.6))
    assert gis_metadata(tuned, 512) == {
        "model_type": '"Segmentor"', "class_names": '{"0": "background", "1": "building"}', "resolution": "10.0",
        "tile_size": "512", "tiles_overlap": "25", "seg_thresh": "0.6", "seg_small_segment": "10",
    }  # fmt: skip
    low = replace(roofs.card, postprocess=Postprocess(0.4, 0.0, 0.0, 0.5, 0.6))
    assert gis_metadata(low, 512)["seg_thresh"] == "0.5"  # the largest channel decides below it


def test_a_card_without_resolution_is_refused(tmp_path: Path, roofs: Exported):
    with pytest.raises(WeightsError, match="the card has no gsd_m, which onnx-gis needs") as error:
        gis_metadata(replace(roofs.card, gsd_m=0.0), 512)
    assert 'kit export RUN... --about FILE, with {"gsd_m": 0.1}' in error.value.hint
    request = ExportRequest("roofs", "tiny", "none", 0.5, 0.0, formats=(f"onnx-gis:{TILE_PX}",))
    with pytest.raises(WeightsError, match="the card has no gsd_m, which onnx-gis needs"):
        export_ensemble(tmp_path, [RedRoofs(1, channels=2)], [record()], request)
    assert left_in(tmp_path) == []


def test_a_side_that_does_not_fit_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(WeightsError, match="tiles of 100 px, expected a multiple of 16 px") as error:
        export_roofs(tmp_path, form="onnx-gis:100")
    assert error.value.hint == "--format onnx-gis:112"
    assert left_in(tmp_path) == []


def test_its_stac_item_has_the_size_of_its_tiles(tmp_path: Path):
    export_roofs(tmp_path / "weights")
    paths = Paths(tmp_path)
    area = TrainedArea("kam", 1, 9, (32.59, 0.35, 32.6, 0.36))
    describe("roofs", paths, About(provenance=Provenance((area,), (TrainedEncoder("none", "random weights"),))))
    item = publish_item("roofs", paths, None, "MIT")
    assert "gis.onnx" not in json.loads(item.read_text())["assets"]
    tiles = json.loads((tmp_path / "weights" / "roofs.gis.stac.json").read_text())
    assert tiles["properties"]["mlm:input"][0]["input"]["shape"] == [1, 3, TILE_PX, TILE_PX]
    assert sorted(tiles["assets"]) == ["card", "gis.onnx"]


@pytest.mark.parametrize("name", ["onnx-gis:", "onnx-gis:512", "onnx-gis"])
def test_tiles_may_have_a_side(name: str):
    assert formats.chosen(name) == (name,)


@pytest.mark.parametrize("name", ["onnx-gis:63", "onnx-gis:9999", "onnx-gis:big", "onnx-gis:-512"])
def test_impossible_sides_are_refused(name: str):
    with pytest.raises(KitError, match=r"in --format onnx-gis:.*, expected 64 to 4096"):
        formats.chosen(name)


@pytest.mark.parametrize("name", ["onnx:512", "pt2:512", "gis"])
def test_only_gis_files_have_tiles(name: str):
    with pytest.raises(KitError, match=f"no format '{name}', expected torchscript, pt2, onnx or onnx-gis"):
        formats.chosen(name)


def test_other_files_are_no_tiles(tmp_path: Path, roofs: Exported):
    exported = export_tiny(tmp_path, others=("onnx",))
    wrong = exported.path.with_suffix(".onnx").rename(tmp_path / "tiny.gis.onnx")
    with pytest.raises(WeightsError, match=r"takes \['n', 'channels'.*expected tiles \(1, 3, S, S\)"):
        runners.tile_difference(wrong, runners.runner(exported.path))
    wrong.write_bytes(b"not a network")
    with pytest.raises(WeightsError, match="does not load as ONNX"):
        runners.tile_difference(wrong, runners.runner(exported.path))
