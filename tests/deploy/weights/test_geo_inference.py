"""The example of geo-inference, where it is installed: its program maps a scene as kit does."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from deploy_fakes import export_tiny, write_tiff
from rasterio.transform import Affine

import kit
from kit.pipeline.export import Exported

EXAMPLE = Path(__file__).parents[3] / "examples" / "geo_inference" / "map.py"


@pytest.fixture
def exported(tmp_path: Path) -> Exported:
    return export_tiny(tmp_path / "weights", views="none", seeds=(1,))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("geo_inference") is None, reason="geo-inference is not installed")
@pytest.mark.parametrize("channels", [3, 4])
def test_it_maps_a_scene_as_kit_does(tmp_path: Path, exported: Exported, channels: int):
    image = np.random.default_rng(0).integers(1, 256, (700, 900, channels), dtype=np.uint8)
    image[..., 3:] = 255
    image[:50, :60] = 0
    place = {"crs": "EPSG:32636", "transform": Affine(0.15, 0, 450_000, 0, -0.15, 40_000)}
    scene = write_tiff(tmp_path / "town.tif", image, **place)
    command = [sys.executable, "-W", "ignore", EXAMPLE, exported.path, scene, tmp_path / "masks"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    with rasterio.open(tmp_path / "masks" / run.stdout.split()[-1]) as file:
        mask = file.read(1)
    assert (mask[:50, :60] == 255).all()
    expected = kit.predict(exported.path, image, tuning=False) > 0.5
    seen = mask != 255
    assert 0.1 < expected.mean() < 0.9
    assert seen.mean() > 0.9
    # patches overlap by half, and their probabilities are blended
    assert ((mask == 1) == expected)[seen].mean() > 0.97
