from collections.abc import Callable

import numpy as np
import pytest
import torch
from deploy_fakes import TinyNet, noise
from torch import Tensor

from kit.deploy.adaptive import cover, vote
from kit.deploy.adaptive.cover import BlockWindow
from kit.deploy.adaptive.vote import AdaptiveEnsemble, BlockGrid, near, stages, undecided
from kit.deploy.freeze.ensemble import VIEWS, Core, Ensemble


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vote, "BLOCK_PX", 32)
    monkeypatch.setattr(vote, "MARGIN_PX", 16)
    monkeypatch.setattr(vote, "FIRST", 1.0)
    monkeypatch.setattr(cover, "CALL_PX", 0)


def batch(height: int, width: int) -> Tensor:
    return torch.from_numpy(np.stack([noise(height, width, 4, seed).transpose(2, 0, 1) for seed in range(2)]))


def test_passes_come_cheapest_first_each_network_in_another_view_then_in_that_turned_by_half():
    assert stages((1, 0), VIEWS["flips"]) == [
        [(1, 0)], [(0, 1)], [(1, 3), (0, 2)], [(1, 1), (1, 2), (0, 0), (0, 3)],
    ]  # fmt: skip
    assert stages((0,), VIEWS["flips"]) == [[(0, 0)], [(0, 3)], [(0, 1), (0, 2)]]
    assert stages((0, 1), VIEWS["none"]) == [[(0, 0)], [(1, 0)]]
    assert stages((0,), VIEWS["none"]) == [[(0, 0)]]


@pytest.mark.parametrize("members", range(1, 11))
@pytest.mark.parametrize("views", ["none", "flips", "d4"])
def test_all_passes_are_taken_once(members: int, views: str):
    taken = [one for stage in stages(tuple(range(members)), VIEWS[views]) for one in stage]
    assert sorted(taken) == [(member, code) for member in range(members) for code in VIEWS[views]]


def test_the_more_passes_are_taken_the_less_they_turn():
    turning = [near([1.0] * done, [1.0] * (12 - done)) for done in range(1, 13)]
    assert turning == sorted(turning, reverse=True)
    assert turning[2] == pytest.approx(0.1)
    assert turning[-1] == 0


@pytest.mark.parametrize("views", ["none", "flips", "d4"])
@pytest.mark.parametrize("size", [(64, 64), (75, 50), (5, 130)])
def test_a_vote_that_settles_nothing_is_the_full_one(views: str, size: tuple[int, int]):
    networks = [Core(TinyNet(seed).eval()) for seed in range(2)]
    with torch.inference_mode():
        full = Ensemble(networks, views, 16).probability(batch(*size))
        found = AdaptiveEnsemble(networks, (1, 0), 0.0, views, 16)(batch(*size))
    torch.testing.assert_close(found, full, atol=1e-6, rtol=0)


def test_a_weighted_vote_that_settles_nothing_is_the_full_one():
    networks, weights = [Core(TinyNet(seed).eval()) for seed in range(3)], (0.6, 0.3, 0.1)
    with torch.inference_mode():
        full = Ensemble(networks, "flips", 16, weights).probability(batch(75, 50))
        early = AdaptiveEnsemble(networks, (1, 0, 2), 0.0, "flips", 16, weights)(batch(75, 50))
    torch.testing.assert_close(early, full, atol=1e-6, rtol=0)


def test_passes_of_little_weight_turn_little():
    """The bound is the deviation of the full vote's mean, as drawn."""
    assert near([1.0], [1.0]) == pytest.approx(vote.SPREAD * (1 - 1 / 2) ** 0.5)
    assert near([1.9], [0.1]) < near([1.0], [1.0]) < near([0.1], [1.9])
    random = np.random.default_rng(0)
    weights, done = np.array([0.5, 1.5, 0.8, 1.2]), 2
    drawn = random.normal(0.5, vote.SPREAD, (100_000, 4))
    early, full = (
        np.average(drawn[:, :done], axis=1, weights=weights[:done]),
        np.average(drawn, axis=1, weights=weights),
    )
    assert near(list(weights[:done]), list(weights[done:])) == pytest.approx((full - early).std(), rel=0.02)


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
    found = AdaptiveEnsemble(networks, (0, 1), 0.2, "none", 16)(image)
    assert seen == ([(96, 160)], [(64, 64)])
    assert found[0, 0, 0, 0] == torch.sigmoid(torch.tensor(10.0))
    assert found[0, 0, 0, 159] == torch.sigmoid(torch.tensor([0.0, 3.0])).mean()


def test_alpha_is_kept_and_wrong_input_told():
    network = AdaptiveEnsemble([lambda x: x[:, :1] + 100], (0,), 0.1, "none", 16)
    x = batch(20, 30)
    x[:, 3, :5] = 0
    assert not network(x)[:, :, :5].any()
    with pytest.raises(ValueError, match=r"expected 3 \(RGB\) or 4"):
        network(torch.zeros(1, 2, 8, 8))


def test_pixels_beyond_the_image_do_not_count():
    mean = torch.full((1, 1, 40, 32), 0.9)
    mean[:, :, 32:] = 0.5
    assert undecided(mean, 0.6, 32).tolist() == [[32 * 32], [8 * 32]]
    assert undecided(mean, 0.1, 32).tolist() == [[0], [8 * 32]]


def test_blocks_that_were_left_are_not_taken_up_again():
    grid = BlockGrid(64, 96, 32, 16)
    unsure, sure, passes = (torch.full((1, 1, 64, 96), value) for value in (1.0, 1.8, 2.0))
    among = [BlockWindow(0, 32, 0, 32), BlockWindow(32, 64, 64, 96)]
    assert grid.open_windows(unsure, passes, 0.1, 0.0, among) == among
    assert grid.open_windows(unsure, passes, 0.1, 0.001, among[:1]) == among[:1]
    assert grid.open_windows(unsure, passes, 0.1, 0.001, []) == []
    assert grid.open_windows(sure, passes, 0.1, 0.001, [BlockWindow(0, 64, 0, 96)]) == []
