import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deploy_fakes import noise
from torch import Tensor

from kit.deploy.adaptive import calibrate, cover, vote
from kit.deploy.adaptive.calibrate import PassSums, end_early, fit, learn, seconds_a_pass
from kit.deploy.adaptive.risk import Change
from kit.deploy.adaptive.vote import AdaptiveEnsemble
from kit.deploy.engine.backends import EngineOptions, Network
from kit.deploy.engine.predict import predict_image
from kit.deploy.engine.tuning import tune
from kit.deploy.submission.submit import SubmitOptions, submit
from kit.deploy.weights.card import Bounds, Card
from kit.deploy.weights.load import Weights, load_weights
from kit.errors import WeightsError
from kit.pipeline.export import Exported


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(vote, "BLOCK_PX", 32)
    monkeypatch.setattr(vote, "MARGIN_PX", 16)
    monkeypatch.setattr(cover, "CALL_PX", 0)
    monkeypatch.setenv("KIT_CACHE", str(tmp_path / "cache"))


def settled(*shares: float, order: tuple[int, ...] = (1, 0)) -> Bounds:
    return Bounds(order, shares, 0.8, 0.8, 1.0)


def tile(later: float, first: float = 0.55, side: int = 64) -> PassSums:
    """The first network says 0.55 everywhere, or what is told, the second `later`; some pixels do not count."""
    counts = np.ones((side, side), bool)
    counts[:4] = False
    return PassSums([torch.full((1, 1, side, side), value) for value in (first, later)], counts)


def learnt(tiles: Sequence[PassSums], truths: Sequence[int]) -> Bounds:
    buildings = [np.full(tile.counts.shape, bool(truth)) for tile, truth in zip(tiles, truths, strict=True)]
    return learn(tiles, buildings, (0, 1), [0], [1.0, 3.0], 16)


def test_learnt_bounds_drop_what_changes_nothing():
    assert learnt([tile(0.7), tile(0.7)], [1, 1]) == Bounds((0, 1), (1.0,), 1.0, 1.0, 0.25)


def test_learnt_bounds_keep_what_the_score_needs():
    found = learnt([tile(0.1), tile(0.7)], [0, 1])
    assert (found.settled, found.score, found.score_full, found.cost) == ((0.0,), 1.0, 1.0, 1.0)


def test_an_early_end_that_is_right_by_luck_is_not_taken():
    """The first network alone is right here; the full vote expects it to miss buildings."""
    found = learnt([tile(0.9, first=0.3), tile(0.9)], [0, 1])
    assert (found.settled, found.cost) == ((0.0,), 1.0)


def loaded(exported: Exported, card_bounds: Bounds) -> Weights:
    weights = load_weights(exported.path)
    return replace(weights, card=replace(weights.card, adaptive=card_bounds))


def saying(monkeypatch: pytest.MonkeyPatch, *logits: float) -> None:
    """Makes each network say the same everywhere, where red is dark; all are sure of building elsewhere."""

    def said(x: Tensor, value: float) -> Tensor:
        return torch.where(x[:, :1] < 128, value, 9.0)

    networks: list[Network] = [lambda x, value=value: said(x, value) for value in logits]
    monkeypatch.setattr(calibrate, "networks", lambda weights: networks)


BRIGHT, DARK = (np.full((64, 64, 3), value, np.uint8) for value in (255, 0))


def test_networks_that_agree_end_as_early_as_was_learnt(tiny_weights: Exported, monkeypatch: pytest.MonkeyPatch):
    saying(monkeypatch, 2.0, 2.0)
    found = fit(loaded(tiny_weights, settled(0.1, 0.1, 0.1)), [BRIGHT, DARK])
    assert (found.settled, found.change, found.images) == ((0.1, 0.1, 0.1), 0.0, 2)
    assert found.passes == pytest.approx(1 / 8)


def test_networks_that_disagree_on_these_images_are_heard(tiny_weights: Exported, monkeypatch: pytest.MonkeyPatch):
    """The network that looks first denies what the other one is sure of: it does not seem undecided at all."""
    saying(monkeypatch, 9.0, -1.0)
    weights = loaded(tiny_weights, settled(0.1, 0.1, 0.1))
    assert fit(weights, [BRIGHT]).settled == (0.1, 0.1, 0.1)
    found = fit(weights, [BRIGHT, DARK])
    assert (found.settled, found.passes) == ((0.0, 0.0, 0.0), 1.0)
    assert end_early(weights, lambda: [BRIGHT, DARK], "") is weights


def test_bounds_become_stricter_step_by_step(tiny_weights: Exported, monkeypatch: pytest.MonkeyPatch):
    """A 64th of what is seen is near one half after one pass, and turns with the others."""
    image = BRIGHT.copy()
    image[:8, :8] = 0
    saying(monkeypatch, 9.0, -0.1)
    found = fit(loaded(tiny_weights, settled(0.1, 0.1, 0.1)), [image])
    assert len(set(found.settled)) == 1
    assert calibrate.STRICTER / 64 < found.settled[0] < 1 / 64
    assert found.change == pytest.approx(0, abs=1e-6)
    assert 1 / 8 < found.passes <= calibrate.WORTH


def test_among_many_images_chance_evens_out(tiny_weights: Exported, monkeypatch: pytest.MonkeyPatch):
    saying(monkeypatch, 2.0, 2.0)
    monkeypatch.setattr(calibrate, "change_of", lambda *given: Change(0.001, 0.002))
    weights = loaded(tiny_weights, settled(0.1, 0.1, 0.1))
    assert fit(weights, [BRIGHT]).settled == fit(weights, [BRIGHT], share=0.1).settled == (0.0, 0.0, 0.0)
    assert fit(weights, [BRIGHT], share=0.01).settled == (0.1, 0.1, 0.1)


def test_what_happens_at_the_edges_of_windows_is_seen(tiny_weights: Exported, monkeypatch: pytest.MonkeyPatch):
    """What is dark is undecided after one pass; seen as a window, and not as part of the image, it is denied."""
    image = np.full((128, 128, 3), 255, np.uint8)
    image[:12, :12] = 0
    weights = loaded(tiny_weights, settled(0.03, 0.03, 0.03))
    saying(monkeypatch, 0.75, 0.75)
    assert fit(weights, [image]).settled == (0.03, 0.03, 0.03)

    def denying(x: Tensor) -> Tensor:
        return torch.where(x[:, :1] < 128, 0.75 if x.shape[2:] == (128, 128) else -9.0, 9.0)

    monkeypatch.setattr(calibrate, "networks", lambda weights: [denying, denying])
    assert fit(weights, [image]).settled == (0.0, 0.0, 0.0)


def test_a_pass_is_timed_on_an_image_that_is_padded():
    seen = []
    assert seconds_a_pass(lambda x: seen.append(x.shape) or x[:, :1], 96) > 0
    assert set(seen) == {(1, 3, 576, 576)}


def test_transparent_pixels_do_not_count(tiny_weights: Exported, monkeypatch: pytest.MonkeyPatch):
    saying(monkeypatch, 9.0, -1.0)
    image = np.dstack([BRIGHT, np.full((64, 64), 255, np.uint8)])
    image[:16, :, :] = 0
    assert fit(loaded(tiny_weights, settled(0.1, 0.1, 0.1)), [image]).settled == (0.1, 0.1, 0.1)


def test_without_images_or_gain_nothing_is_looked_at(tiny_weights: Exported):
    nothing = (image for image in [BRIGHT])
    assert fit(loaded(tiny_weights, settled(0.0, 0.0, 0.0)), nothing).passes == 1.0
    assert next(nothing) is BRIGHT
    assert fit(loaded(tiny_weights, settled(0.1, 0.2, 0.2)), []).settled == (0.1, 0.2, 0.2)


def test_the_middle_of_large_images_is_looked_at(tiny_weights: Exported, monkeypatch: pytest.MonkeyPatch):
    saying(monkeypatch, 9.0, -1.0)
    monkeypatch.setattr(calibrate, "LOOK_PX", 64)
    image = np.zeros((128, 128, 3), np.uint8)
    image[32:96, 32:96] = 255
    weights = loaded(tiny_weights, settled(0.1, 0.1, 0.1))
    assert fit(weights, [image]).settled == (0.1, 0.1, 0.1)
    monkeypatch.setattr(calibrate, "LOOK_PX", 128)
    assert fit(weights, [image]).settled == (0.0, 0.0, 0.0)


def test_what_images_bear_is_remembered(tiny_weights: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    looked = []
    monkeypatch.setattr(calibrate, "look", lambda *given, look=calibrate.look: looked.append(1) or look(*given))
    weights = loaded(tiny_weights, settled(1.0, 1.0, 1.0))
    first, second = (end_early(weights, lambda: [noise(64, 64)], "a") for _ in range(2))
    assert (first.plan, len(looked)) == (second.plan, 1)
    (kept,) = (tmp_path / "cache/adaptive").iterdir()
    for broken in ("", "[]", json.dumps([json.loads(kept.read_text())[0], {"settled": "ab"}])):
        kept.write_text(broken)
        assert end_early(weights, lambda: [noise(64, 64)], "a").plan == first.plan
    assert len(looked) == 4
    end_early(weights, lambda: [noise(64, 64)], "b")
    assert len(looked) == 5


def test_the_card_keeps_the_settled(tiny_weights: Exported):
    card = replace(tiny_weights.card, adaptive=settled(0.1, 0.2))
    assert Card.from_json(card.to_json()) == card
    older = json.loads(tiny_weights.card.to_json())
    older.pop("adaptive")
    assert Card.from_json(json.dumps(older)).adaptive is None
    with pytest.raises(WeightsError, match=r"field adaptive.order: .*, not 'ab'"):
        Card.from_json(json.dumps(older | {"adaptive": asdict(settled(0.1)) | {"order": "ab"}}))


def test_weights_that_know_no_bounds_are_refused(tiny_weights: Exported):
    with pytest.raises(WeightsError, match="has no adaptive in its card"):
        end_early(load_weights(tiny_weights.path), list, "")
    for wrong in (settled(0.0), settled(0.0, 0.0, 0.0, order=(0, 2))):
        with pytest.raises(WeightsError, match="does not fit its networks"):
            end_early(loaded(tiny_weights, wrong), list, "")


@pytest.mark.parametrize("tuning", [False, True])
def test_weights_loaded_or_tuned_end_their_vote_early(tiny_weights: Exported, tuning: bool):
    weights, image = loaded(tiny_weights, settled(1.0, 1.0, 1.0)), noise(96, 128)
    weights = tune(weights, lambda: [image]) if tuning else weights
    early = end_early(weights, list, "")
    assert early.plan == f"{weights.plan} adaptive 1.0 1.0 1.0"
    assert isinstance(early.module, AdaptiveEnsemble)
    with torch.inference_mode():
        alone = torch.sigmoid(
            load_weights(tiny_weights.path).module.core_1(torch.from_numpy(image).permute(2, 0, 1)[None].float())
        )
    np.testing.assert_allclose(predict_image(early, image), alone[0, 0], atol=1e-5)


def test_a_submission_without_learnt_bounds_is_refused(chips: Path, tiny_weights: Exported, tmp_path: Path):
    with pytest.raises(WeightsError, match="has no adaptive in its card") as error:
        submit(chips, tiny_weights.path, tmp_path / "one", SubmitOptions(EngineOptions(tuning=False, adaptive=True)))
    assert "kit export" in error.value.hint
    assert not (tmp_path / "one").exists()
