"""Folders for model hubs: what they hold, that kit and torch load them, and that damage is noticed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from deploy_fakes import export_tiny, noise
from safetensors.torch import save_file

import kit
from kit.deploy.weights.card import Card
from kit.deploy.weights.hub import write_hub_folder
from kit.errors import KitError, OutputError, WeightsError
from kit.pipeline.export import Exported
from kit.system.files import sha256_of

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, tiny_weights: Exported) -> Path:
    write_hub_folder(tmp_path / "hub" / "tiny", tiny_weights.path, tiny_weights.card, [], "cc-by-4.0")
    return tmp_path / "hub" / "tiny"


def test_the_model_card_has_front_matter(folder: Path, tiny_weights: Exported):
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(front)
    assert (values["license"], values["pipeline_tag"]) == ("cc-by-4.0", "image-segmentation")
    assert values["model-index"][0]["results"][0]["metrics"] == [{"type": "jaccard", "value": 0.5}]
    assert "0.15 m per pixel" in text
    config = json.loads((folder / "config.json").read_text())
    assert Card.from_json(json.dumps(config["card"])) == tiny_weights.card
    assert config["sha256"] == {"tiny.pt": sha256_of(folder / "tiny.pt")}


def test_kit_and_torch_load_it(folder: Path, tiny_weights: Exported, monkeypatch: pytest.MonkeyPatch):
    image = noise(33, 50)
    expected = kit.predict(tiny_weights.path, image, tuning=False)
    assert np.array_equal(kit.predict(kit.load(folder), image), expected)
    assert np.array_equal(kit.predict(str(folder), image, tuning=False), expected)
    module = torch.jit.load(folder / "tiny.pt", map_location="cpu")
    with torch.inference_mode():
        probability = module(torch.from_numpy(image.transpose(2, 0, 1)[None].copy()))[0, 0].numpy()
    assert np.array_equal(probability, expected)
    monkeypatch.setenv("KIT_ROOT", str(tiny_weights.path.parents[1]))
    (link := tiny_weights.path.parents[1] / "weights").exists() or link.symlink_to(tiny_weights.path.parent)
    assert kit.load("tiny").sha256 == kit.load(folder).sha256


def test_the_command_writes_networks_whose_runs_are_here(tmp_path: Path, cli: Cli):
    run = tmp_path / "runs" / "tiny" / "fold0" / "best.safetensors"
    run.parent.mkdir(parents=True)
    save_file({"a": torch.zeros(2)}, run)
    exported = export_tiny(tmp_path / "weights", sha256s=(sha256_of(run), "ab" * 32))
    code, out, err = cli("weights", "--folder", "tiny", "--licence", "mit", "--root", tmp_path)
    assert (code, out.strip()) == (0, str(tmp_path / "hub" / "tiny"))
    assert "no safetensors of tiny/fold1" in err
    written = sorted(path.name for path in (tmp_path / "hub" / "tiny").iterdir())
    assert written == ["README.md", "config.json", "tiny-fold0.safetensors", "tiny.pt"]
    assert cli("weights", "--folder", "tiny", "--root", tmp_path)[0] == 0  # replaces its own
    assert kit.load(tmp_path / "hub" / "tiny").card == exported.card


def truncate(folder: Path) -> None:
    content = (folder / "tiny.pt").read_bytes()
    (folder / "tiny.pt").write_bytes(content[: len(content) // 2])


def outside(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"weights": "tiny.pt"', '"weights": "../tiny.pt"'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"tiny\.pt is damaged: sha256"),
        (lambda folder: (folder / "tiny.pt").unlink(), r"tiny is incomplete: no tiny\.pt"),
        (lambda folder: (folder / "config.json").unlink(), r"tiny has no config\.json of kit: it is damaged"),
        (lambda folder: (folder / "config.json").write_text("{"), r"tiny has no config\.json of kit: it is damaged"),
        (outside, r"names the weights '\.\./tiny\.pt', which it does not list"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "footprintkit"'), r"config\.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "footprintkit"}'), r"config\.json"),
    ],
)
def test_a_damaged_folder_is_refused(folder: Path, damage: Callable[[Path], object], message: str):
    damage(folder)
    with pytest.raises(WeightsError, match=message) as error:
        kit.load(folder)
    assert "kit weights --folder" in error.value.hint


def test_a_folder_of_somebody_else_is_no_hub_folder(tmp_path: Path, tiny_weights: Exported):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(KitError):
        kit.load(tmp_path / "other")
    with pytest.raises(OutputError, match=r"was not written by kit weights --folder: it holds config\.json"):
        write_hub_folder(tmp_path / "other", tiny_weights.path, tiny_weights.card, [], "mit")


def test_licences_are_identifiers(cli: Cli, tmp_path: Path, tiny_weights: Exported):
    shutil.copytree(tiny_weights.path.parent, tmp_path / "weights")
    code, _, err = cli("weights", "--folder", "tiny", "--licence", "a\nb: c", "--root", tmp_path)
    assert code == 1
    assert "is no identifier" in err
