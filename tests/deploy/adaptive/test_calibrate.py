"""How early a vote may end is chosen on the images at hand, from how much the networks disagree there."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deploy_fakes import noise
from torch import Tensor

from kit.deploy.adaptive import calibrate as room
from kit.deploy.adaptive import cover, vote
from kit.deploy.adaptive.calibrate import START, calibrate, end_early, seconds_per_pass
from kit.deploy.adaptive.risk import Change
from kit.deploy.adaptive.vote import AdaptiveEnsemble
from kit.deploy.engine.backends import Network
from kit.deploy.engine.predict import predict_image
from kit.deploy.engine.tuning import tune
from kit.deploy.weights.card import Card
from kit.deploy.weights.load import Weights, load_weights
from kit.pipeline.export import Exported


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vote, "BLOCK_PX", 32)
    monkeypatch.setattr(vote, "MARGIN_PX", 16)
    monkeypatch.setattr(vote, "FIRST", 1.0)
    monkeypatch.setattr(cover, "CALL_PX", 0)


@pytest.fixture
def weights(tiny_weights: Exported) -> Weights:
    """Two networks, four views."""
    return load_weights(tiny_weights.path)


def saying(monkeypatch: pytest.MonkeyPatch, *logits: float) -> None:
    """Makes each network say the same everywhere, where red is dark; all are sure of building elsewhere."""

    def said(x: Tensor, value: float) -> Tensor:
        return torch.where(x[:, :1] < 128, value, 9.0)

    networks: list[Network] = [lambda x, value=value: said(x, value) for value in logits]
    monkeypatch.setattr(room, "networks", lambda weights: networks)


BRIGHT, DARK = (np.full((64, 64, 3), value, np.uint8) for value in (255, 0))


def test_networks_that_agree_end_after_the_first_pass(weights: Weights, monkeypatch: pytest.MonkeyPatch):
    saying(monkeypatch, 2.0, 2.0)
    found = calibrate(weights, [BRIGHT, DARK])
    assert (found.price, found.change, found.images) == (START, 0.0, 2)
    assert found.passes == pytest.approx(1 / 8)
    assert (
        str(found) == "adaptive: 12% of the passes, Jaccard within 0.0000 of the full vote's (calibrated on 2 images)"
    )


def test_networks_that_disagree_are_all_asked(weights: Weights, monkeypatch: pytest.MonkeyPatch):
    """The first network denies what the other one is sure of, and does not seem undecided itself."""
    saying(monkeypatch, -1.0, 9.0)
    assert calibrate(weights, [BRIGHT]).price == START
    found = calibrate(weights, [BRIGHT, DARK])
    assert (found.price, found.passes) == (0.0, 1.0)
    assert "no gain" in str(found)
    assert end_early(weights, lambda: [BRIGHT, DARK], "") is weights


def test_the_price_falls_step_by_step(weights: Weights, monkeypatch: pytest.MonkeyPatch):
    """A 64th of the pixels is near one half after one pass, and turns with the others."""
    image = BRIGHT.copy()
    image[:8, :8] = 0
    saying(monkeypatch, -0.1, 9.0)
    found = calibrate(weights, [image])
    assert room.LOWER / 64 < found.price < 1 / 64
    assert found.change == pytest.approx(0, abs=1e-6)
    assert 1 / 8 < found.passes <= room.WORTH


def test_among_many_images_chance_evens_out(weights: Weights, monkeypatch: pytest.MonkeyPatch):
    saying(monkeypatch, 2.0, 2.0)
    monkeypatch.setattr(room, "change_of", lambda *given: Change(0.001, 0.002))
    assert calibrate(weights, [BRIGHT]).price == calibrate(weights, [BRIGHT], share=0.1).price == 0
    assert calibrate(weights, [BRIGHT], share=0.01).price == START


def test_what_happens_at_the_edges_of_windows_counts(weights: Weights, monkeypatch: pytest.MonkeyPatch):
    """Dark pixels are undecided after one pass; in a window, not in the whole image, they are denied."""
    monkeypatch.setattr(room, "START", 0.03)
    image = np.full((128, 128, 3), 255, np.uint8)
    image[:12, :12] = 0
    saying(monkeypatch, 0.75, 0.75)
    assert calibrate(weights, [image]).price == 0.03

    def denying(x: Tensor) -> Tensor:
        return torch.where(x[:, :1] < 128, 0.75 if x.shape[2:] == (128, 128) else -9.0, 9.0)

    monkeypatch.setattr(room, "networks", lambda weights: [denying, denying])
    assert calibrate(weights, [image]).price == 0


def test_the_cheapest_network_comes_first(weights: Weights, monkeypatch: pytest.MonkeyPatch):
    """Networks of one recipe take the same time: their order is not left to chance."""
    first, *_ = weights.card.members
    members = tuple(replace(first, recipe=recipe) for recipe in ("dear", "cheap", "dear", "cheap"))
    mixed = replace(weights, card=replace(weights.card, members=members))
    networks: list[Network] = [lambda x, n=n: x[:, :1] + n for n in range(4)]
    seconds = dict(zip(networks, (3.0, 1.0, 2.0, 0.5), strict=True))
    monkeypatch.setattr(room, "networks", lambda weights: networks)
    monkeypatch.setattr(room, "seconds_per_pass", lambda network, weights: seconds[network])
    assert calibrate(mixed, [BRIGHT]).order == (1, 3, 0, 2)


def test_a_pass_is_timed_on_a_padded_image(weights: Weights):
    sizes = []
    padding = replace(weights, card=replace(weights.card, pad_multiple=96))
    assert seconds_per_pass(lambda x: sizes.append(x.shape) or x[:, :1], padding) > 0
    assert set(sizes) == {(1, 3, 576, 576)}


def test_transparent_pixels_do_not_count(weights: Weights, monkeypatch: pytest.MonkeyPatch):
    saying(monkeypatch, -1.0, 9.0)
    image = np.dstack([BRIGHT, np.full((64, 64), 255, np.uint8)])
    image[:16, :, :] = 0
    assert calibrate(weights, [image]).price == START


def test_without_images_or_stages_all_passes_are_taken(weights: Weights):
    assert calibrate(weights, []).price == 0
    one = replace(weights, card=replace(weights.card, views="none", members=weights.card.members[:1]))
    untouched = iter([BRIGHT])
    assert calibrate(one, untouched).price == 0
    assert next(untouched) is BRIGHT


def test_the_middle_of_large_images_is_predicted(weights: Weights, monkeypatch: pytest.MonkeyPatch):
    saying(monkeypatch, -1.0, 9.0)
    monkeypatch.setattr(room, "LOOK_PX", 64)
    image = np.zeros((128, 128, 3), np.uint8)
    image[32:96, 32:96] = 255
    assert calibrate(weights, [image]).price == START
    monkeypatch.setattr(room, "LOOK_PX", 128)
    assert calibrate(weights, [image]).price == 0


def test_a_calibration_is_remembered(weights: Weights, monkeypatch: pytest.MonkeyPatch, cache: Path):
    saying(monkeypatch, 2.0, 2.0)
    calls: list[str] = []

    def images() -> list[np.ndarray]:
        calls.append("read")
        return [noise(64, 64)]

    first, second = (end_early(weights, images, "a") for _ in range(2))
    assert (first.plan, len(calls)) == (second.plan, 1)
    assert first.plan == f"shipped adaptive 0,1 {START}"
    (kept,) = (cache / "adaptive").iterdir()
    for broken in ("", "[]", json.dumps([json.loads(kept.read_text())[0], {"price": "ab"}])):
        kept.write_text(broken)
        assert end_early(weights, images, "a").plan == first.plan
    assert len(calls) == 4
    end_early(weights, images, "b")
    end_early(weights, images, "b", share=0.5)
    assert len(calls) == 6


def test_cards_with_learnt_bounds_are_read(weights: Weights):
    """Until 0.1.0 `kit export --adaptive` kept bounds there."""
    bounds = {"order": [1, 0], "settled": [0.1, 0.1, 0.1], "score_full": 0.8, "score": 0.8, "cost": 0.5}
    older = json.loads(weights.card.to_json()) | {"adaptive": bounds}
    assert Card.from_json(json.dumps(older)) == weights.card


def test_an_old_export_takes_all_passes(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(room.torchscript, "has_cores", lambda module: False)
    assert end_early(weights, list, "") is weights
    assert "is an old export" in capsys.readouterr().err


@pytest.mark.parametrize("tuning", [False, True])
def test_weights_loaded_or_tuned_end_their_vote_early(weights: Weights, monkeypatch: pytest.MonkeyPatch, tuning: bool):
    monkeypatch.setattr(room, "change_of", lambda *given: Change(0.0, 0.0))
    monkeypatch.setattr(room, "START", 1.0)
    image = noise(96, 128)
    ready = tune(weights, lambda: [image]) if tuning else weights
    early = end_early(ready, lambda: [image], "")
    assert early.plan == f"{ready.plan} adaptive 0,1 1.0"
    assert isinstance(early.module, AdaptiveEnsemble)
    with torch.inference_mode():
        alone = torch.sigmoid(weights.module.core_0(torch.from_numpy(image).permute(2, 0, 1)[None].float()))
    np.testing.assert_allclose(predict_image(early, image), alone[0, 0], atol=0.02 if tuning else 1e-5)


def test_a_submission_that_ends_early(chips: Path, tiny_weights: Exported, tmp_path: Path, cli):
    """All weights can do it; the flag that once prepared them at export is still accepted."""
    command = ("submit", chips, "--weights", tiny_weights.path, "--no-tune", "--adaptive", "--root", tmp_path)
    code, out, err = cli(*command)
    assert (code, Path(out.strip()).suffix) == (0, ".tgz"), err
    assert "calibrated on 4 images" in err
    code, _, err = cli("export", "tiny/fold0", "--name", "a", "--adaptive", "--root", tmp_path)
    assert code == 1
    assert "tiny/fold0 is not finished" in err
