"""The raster of a prediction: probability, spread and imagery, resumed where it was interrupted."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from audit_city import draw_city, write_weights

from kit.audit.predicted import key_of_raster, predict_raster
from kit.audit.votes import Votes
from kit.deploy.engine.predict import predict_image
from kit.deploy.mapping.map_files import PredictionKey
from kit.deploy.mapping.scene import SceneReader
from kit.deploy.mapping.windows import along
from kit.deploy.weights.load import load_weights
from kit.errors import RasterError


def vote(rgba: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A probability and a spread that depend on a pixel alone."""
    level = rgba[..., 0].astype(np.float32) / 255
    return level, level / 2


def predicted(folder: Path, calls: list[int], fail_at: int = 0) -> Path:
    def counted(rgba: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(1)
        if len(calls) == fail_at:
            raise RasterError("broken")
        return vote(rgba)

    with SceneReader(str(folder / "a.tif")) as reader:
        axes = along(reader.work.height, 192, 48), along(reader.work.width, 192, 48)
        key = PredictionKey("a", "1", "w", "plan", axes, (reader.work.width, reader.work.height))
        predict_raster(reader, counted, key, folder / "out/a.tif")
    return folder / "out/a.tif"


def test_bands(tmp_path: Path):
    draw_city(tmp_path)
    file = predicted(tmp_path, [])
    with rasterio.open(file) as source, rasterio.open(tmp_path / "a.tif") as scene:
        probability, spread, imagery = source.read()
        red = scene.read(1)
        assert source.transform == scene.transform
    assert np.abs(probability.astype(int) - red).max() <= 1
    assert np.abs(spread.astype(int) - red).max() <= 1  # half of it, on a scale up to 0.5
    assert (imagery == 255).all()
    assert key_of_raster(file)
    assert not list((tmp_path / "out").glob(".*"))


def test_an_interrupted_prediction_is_resumed(tmp_path: Path):
    draw_city(tmp_path)
    whole: list[int] = []
    expected = predicted(tmp_path, whole).read_bytes()
    (tmp_path / "out/a.tif").unlink()
    calls: list[int] = []
    with pytest.raises(RasterError, match="broken"):
        predicted(tmp_path, calls, fail_at=len(whole) // 2)
    again: list[int] = []
    assert predicted(tmp_path, again).read_bytes() == expected
    assert 0 < len(again) < len(whole)


def test_no_raster_has_no_key(tmp_path: Path):
    (tmp_path / "a.tif").write_bytes(b"no raster")
    assert key_of_raster(tmp_path / "a.tif") == key_of_raster(tmp_path / "b.tif") == ""


def test_the_mean_vote_is_the_weights_own(tmp_path: Path):
    weights = load_weights(write_weights(tmp_path, limits=(120.0, 160.0)))
    image = np.random.default_rng(0).integers(0, 256, (50, 61, 4), dtype=np.uint8)
    image[..., 3] = 255
    image[:10, :, 3] = 0
    mean, spread = Votes(weights)(image)
    assert np.abs(mean - predict_image(weights, image)).max() < 1e-5
    assert spread[10:].max() > 0.1
    assert spread.max() <= 0.5
    assert (mean[:10] == 0).all()
    assert (spread[:10] == 0).all()


def test_one_view_of_one_member_has_no_spread(tmp_path: Path):
    weights = load_weights(write_weights(tmp_path, limits=(140.0,), views="none"))
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert Votes(weights)(image)[1].max() < 1e-3


def test_an_image_of_one_colour_is_not_predicted(tmp_path: Path):
    weights = load_weights(write_weights(tmp_path))
    mean, spread = Votes(weights)(np.full((20, 20, 3), 255, np.uint8))
    assert mean.max() == spread.max() == 0
