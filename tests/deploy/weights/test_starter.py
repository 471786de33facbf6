"""The weights that come with kit: they load with torch alone, say what they are, and find buildings."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from deploy_fakes import export_tiny
from safetensors.torch import load_file

from kit.data.dataset import read_tile
from kit.data.masks import count, pool
from kit.deploy.engine.predict import predict_image
from kit.deploy.weights import starter
from kit.deploy.weights.fetch import find_weights
from kit.deploy.weights.load import load_weights, read_card
from kit.errors import WeightsError
from kit.paths import Paths
from kit.pipeline.start_from import start_file
from kit.sample.sample import draw_sample
from kit.training.fit import rebuild
from kit.training.recipe import load_recipe

WEIGHTS = starter.starter_weights()
LIMIT_BYTES = 12_000_000
FLOOR = 0.9  # Jaccard index on drawn chips, of the city that it was trained on: 0.97 when it was made

ALONE = """
import sys, torch
weights = torch.jit.load(sys.argv[1], map_location="cpu")
probability = weights(torch.zeros(1, 3, 64, 100, dtype=torch.uint8))
assert probability.shape == (1, 1, 64, 100) and probability.dtype == torch.float32
assert not {"kit", "fastai", "timm"} & set(sys.modules)
print("alone")
"""


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for the weights that come with kit."""
    path = export_tiny(tmp_path / "installed" / "weights", "starter").path
    monkeypatch.setattr("kit.__path__", [str(tmp_path / "installed")])
    return path


def test_they_predict_where_nothing_was_exported(shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert find_weights("", "", tmp_path / "weights") == shipped
    assert "no weights of your own: kit's starter weights predict" in capsys.readouterr().err
    own = export_tiny(tmp_path / "weights", "own").path
    assert find_weights("", "", tmp_path / "weights") == own
    assert "starter" not in capsys.readouterr().err.replace("starter.pt", "")


def test_they_have_a_name_that_own_weights_may_take(shipped: Path, tmp_path: Path):
    assert find_weights("starter", "", tmp_path / "weights") == shipped
    own = export_tiny(tmp_path / "weights", "starter").path
    assert find_weights("starter", "", tmp_path / "weights") == own


def test_an_installation_without_them_says_how_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kit.__path__", [str(tmp_path)])
    with pytest.raises(WeightsError, match="no weights are listed") as error:
        find_weights("", "", tmp_path / "weights")
    assert "kit run quickstart" in error.value.hint


def test_training_starts_from_them(tmp_path: Path):
    network = rebuild(load_recipe("lite0", Paths(tmp_path))).model
    file = start_file("starter", 0, Paths(tmp_path))
    assert file == starter.starter_network()
    network.load_state_dict(load_file(file))  # every tensor, of the same shape
    with torch.inference_mode():
        image = torch.rand(1, 3, 256, 256) * 255
        probability = network.eval()(image).softmax(1)[:, 1:]
        assert WEIGHTS is not None
        difference = (load_weights(WEIGHTS).module.core_0(image).sigmoid() - probability).abs().max()
    assert float(difference) < 0.01


def test_the_file_is_small_loads_alone_and_names_its_sources(tmp_path: Path):
    assert WEIGHTS is not None
    assert WEIGHTS.stat().st_size <= LIMIT_BYTES
    run = subprocess.run([sys.executable, "-I", "-c", ALONE, WEIGHTS], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout == "alone\n", run.stderr
    card = read_card(WEIGHTS)
    text = card.to_json()
    for word in ("OpenAerialMap contributors, CC-BY 4.0", "OpenStreetMap contributors, ODbL", "Kampala", "not for"):
        assert word in text, word
    assert (card.storage, len(card.members)) == ("float16", 1)


@pytest.mark.slow
def test_they_find_the_buildings_of_drawn_chips(tmp_path: Path):
    assert WEIGHTS is not None
    sample = draw_sample(tmp_path / "sample")
    weights, counts = load_weights(WEIGHTS), []
    for chip in sorted((sample / "test").glob("*/*.tif")):
        pixels, truth = read_tile(str(chip), str(sample / "test_labels" / f"{chip.stem}.tif"))
        counts.append(count(predict_image(weights, np.ascontiguousarray(pixels[..., :3])) > 0.5, truth))
    assert pool(counts).jaccard > FLOOR
