import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deploy_fakes import TinyNet, noise
from torch import Tensor

from kit.deploy import adaptive
from kit.deploy.adaptive import AdaptiveEnsemble, Grid, Tile, Window, learn, near, stages, undecided
from kit.deploy.card import Bounds, Card
from kit.deploy.ensemble import VIEWS, Core, Ensemble
from kit.deploy.export import Exported
from kit.deploy.predict import predict_image
from kit.deploy.submit import submit
from kit.deploy.tuning import tune
from kit.deploy.weights import load_weights
from kit.errors import WeightsError


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adaptive, "BLOCK_PX", 32)
    monkeypatch.setattr(adaptive, "MARGIN_PX", 16)


def bounds(*settled: float, order: tuple[int, ...] = (1, 0)) -> Bounds:
    return Bounds(order, settled, 0.8, 0.8, 1.0)


def batch(height: int, width: int) -> Tensor:
    return torch.from_numpy(np.stack([noise(height, width, 4, seed).transpose(2, 0, 1) for seed in range(2)]))


def test_passes_come_cheapest_first_each_network_in_another_view():
    assert stages((1, 0), VIEWS["flips"]) == [
        [(1, 0)], [(0, 1)], [(1, 1), (0, 2)], [(1, 2), (1, 3), (0, 0), (0, 3)],
    ]  # fmt: skip
    assert stages((0,), VIEWS["flips"]) == [[(0, 0)], [(0, 1)], [(0, 2), (0, 3)]]
    assert stages((0, 1), VIEWS["none"]) == [[(0, 0)], [(1, 0)]]
    assert stages((0,), VIEWS["none"]) == [[(0, 0)]]


@pytest.mark.parametrize("members", range(1, 11))
@pytest.mark.parametrize("views", ["none", "flips", "d4"])
def test_all_passes_are_taken_once(members: int, views: str):
    taken = [one for stage in stages(tuple(range(members)), VIEWS[views]) for one in stage]
    assert sorted(taken) == [(member, code) for member in range(members) for code in VIEWS[views]]


def test_the_more_passes_are_taken_the_less_they_turn():
    turning = [near(done, 12) for done in range(1, 13)]
    assert turning == sorted(turning, reverse=True)
    assert turning[2] == pytest.approx(0.1)
    assert turning[-1] == 0


@pytest.mark.parametrize("views", ["none", "flips", "d4"])
@pytest.mark.parametrize("size", [(64, 64), (75, 50), (5, 130)])
def test_a_vote_that_settles_nothing_is_the_full_one(views: str, size: tuple[int, int]):
    networks = [Core(TinyNet(seed).eval()) for seed in range(2)]
    steps = len(stages((1, 0), VIEWS[views]))
    with torch.inference_mode():
        full = Ensemble(networks, views, 16).probability(batch(*size))
        found = AdaptiveEnsemble(networks, bounds(*[0.0] * (steps - 1)), views, 16)(batch(*size))
    torch.testing.assert_close(found, full, atol=1e-6, rtol=0)


def counting(network: Callable[[Tensor], Tensor], seen: list[tuple[int, int]]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        seen.append((x.shape[2], x.shape[3]))
        return network(x)

    return run


def test_what_is_settled_costs_one_pass_and_what_is_not_is_seen_with_a_margin():
    """Logits are what the red band says: clear on the left, undecided in the upper right corner."""
    image = torch.full((1, 3, 96, 160), 255.0)
    image[:, :, :32, 128:] = 0
    seen: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    networks = [counting(lambda x, n=n: x[:, :1] / 25.5 + 3 * n, seen[n]) for n in range(2)]
    found = AdaptiveEnsemble(networks, bounds(0.5, order=(0, 1)), "none", 16)(image)
    assert seen == ([(96, 160)], [(64, 64)])
    assert found[0, 0, 0, 0] == torch.sigmoid(torch.tensor(10.0))
    assert found[0, 0, 0, 159] == torch.sigmoid(torch.tensor([0.0, 3.0])).mean()


def test_alpha_is_kept_and_wrong_input_told():
    network = AdaptiveEnsemble([lambda x: x[:, :1] + 100], bounds(order=(0,)), "none", 16)
    x = batch(20, 30)
    x[:, 3, :5] = 0
    assert not network(x)[:, :, :5].any()
    with pytest.raises(ValueError, match=r"expected 3 \(RGB\) or 4"):
        network(torch.zeros(1, 2, 8, 8))


def test_shares_of_cut_blocks_are_of_the_pixels_there_are():
    mean = np.full((40, 32), 0.9, np.float32)
    mean[32:] = 0.5
    assert undecided(mean, 0.1, 32).tolist() == [[0.0], [1.0]]


def tile(later: float, truth: int, side: int = 64) -> Tile:
    """The first network says 0.55 everywhere, the second `later`; of pixels that count all are `truth`."""
    mask = np.full((side, side), truth, np.uint8)
    mask[:4] = 255
    return Tile([torch.full((1, 1, side, side), value) for value in (0.55, later)], mask)


def test_learnt_bounds_drop_what_changes_nothing():
    found = learn([tile(0.7, 1), tile(0.7, 1)], (0, 1), [0], [1.0, 3.0], 16)
    assert found == Bounds((0, 1), (1.01,), 1.0, 1.0, 0.25)


def test_learnt_bounds_keep_what_the_score_needs():
    found = learn([tile(0.1, 0), tile(0.7, 1)], (0, 1), [0], [1.0, 3.0], 16)
    assert (found.settled, found.score, found.score_full, found.cost) == ((0.0,), 1.0, 1.0, 1.0)


def test_what_an_early_end_makes_right_does_not_pay_for_what_it_makes_wrong():
    better, worse = tile(0.1, 1), tile(0.1, 0)  # the first network alone is right on one, the full vote on the other
    found = learn([better, better, better, worse], (0, 1), [0], [1.0, 3.0], 16)
    assert (found.settled, found.cost, found.score) == ((0.0,), 1.0, found.score_full)


def test_blocks_that_were_left_are_not_taken_up_again():
    grid = Grid(64, 96, 32, 16)
    mean = torch.full((1, 1, 64, 96), 0.5)
    among = [Window(0, 32, 0, 32), Window(32, 64, 64, 96)]
    covered = grid.open_windows(mean, 0.1, 0.0, among)
    assert sum(window.px for window in covered) <= 64 * 96
    assert grid.open_windows(mean, 0.1, 0.0, []) == []
    assert grid.open_windows(torch.full((1, 1, 64, 96), 0.9), 0.1, 0.1, [Window(0, 64, 0, 96)]) == []


def test_the_card_keeps_the_bounds(tiny_weights: Exported):
    card = replace(tiny_weights.card, adaptive=bounds(0.1, 0.2))
    assert Card.from_json(card.to_json()) == card
    older = json.loads(tiny_weights.card.to_json())
    older.pop("adaptive")
    assert Card.from_json(json.dumps(older)).adaptive is None
    with pytest.raises(WeightsError, match="adaptive has order = 'ab'"):
        Card.from_json(json.dumps(older | {"adaptive": asdict(bounds(0.1)) | {"order": "ab"}}))


@pytest.mark.parametrize("tuning", [False, True])
def test_weights_loaded_or_tuned_end_their_vote_early(tiny_weights: Exported, tuning: bool):
    loaded = load_weights(tiny_weights.path)
    image = noise(96, 130)
    with pytest.raises(WeightsError, match="has no adaptive in its card"):
        adaptive.adaptive(loaded)
    for wrong in (bounds(0.0), bounds(0.0, 0.0, 0.0, order=(0, 2))):
        with pytest.raises(WeightsError, match="does not fit its networks"):
            adaptive.adaptive(replace(loaded, card=replace(loaded.card, adaptive=wrong)))
    known = replace(loaded, card=replace(loaded.card, adaptive=bounds(0.0, 0.0, 0.0)))
    known = tune(known, [image]) if tuning else known
    early = adaptive.adaptive(known)
    np.testing.assert_allclose(predict_image(early, image), predict_image(loaded, image), atol=1e-5)
    assert early.plan == f"{known.plan} adaptive"
    first = replace(early, module=AdaptiveEnsemble(early.module.networks, bounds(1.01, 1.01, 1.01), "flips", 16))
    with torch.inference_mode():
        alone = torch.sigmoid(loaded.module.core_1(batch(64, 64)[:1, :3].float()))
    found = predict_image(first, batch(64, 64)[0, :3].permute(1, 2, 0).numpy())
    np.testing.assert_allclose(found, alone[0, 0], atol=1e-5)


def test_a_submission_without_learnt_bounds_is_refused(chips: Path, tiny_weights: Exported, tmp_path: Path):
    with pytest.raises(WeightsError, match="has no adaptive in its card") as error:
        submit(chips, tiny_weights.path, tmp_path / "one", tuning=False, adaptive=True)
    assert "kit export" in error.value.hint
    assert not (tmp_path / "one").exists()
