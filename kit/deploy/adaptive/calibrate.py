"""How early a vote may end: learnt at export on tiles with labels, held against the images that are to be predicted.

Both ask by how much an early end may change the Jaccard index, also without labels (`kit.deploy.adaptive.risk`). The
networks know imagery that is like their tiles; on other imagery they disagree, more of them must be heard, and this
shows it.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kit.console import say, track
from kit.deploy.adaptive.cover import Window
from kit.deploy.adaptive.risk import change_of, overlap
from kit.deploy.adaptive.vote import AdaptiveEnsemble, BlockGrid, Pass, run, stages, vote
from kit.deploy.engine.backends import Network
from kit.deploy.engine.memo import recall, remember
from kit.deploy.engine.tuned import networks
from kit.deploy.freeze.ensemble import VIEWS
from kit.deploy.weights.card import Bounds
from kit.deploy.weights.load import Weights
from kit.errors import WeightsError
from kit.system.ranks import agreed, rank

# bounds to choose from, undecided pixels for each that a network sees: 0 settles none, 1 all
STEPS = (0.0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.07, 1.0)
LEAST = 0.002  # stricter ones settle next to nothing
CHANGE = 0.002  # of the Jaccard index: the most that an early end may lose by labels, and change at most without
SET = 100  # images of a test set that bounds are learnt for: on a smaller one chance weighs more, the look tells
STRICTER = 0.85  # times: bounds that images do not bear, for the next try
WORTH = 0.75  # of the passes: a vote that ends no earlier is taken in full
LOOK_PX = 1024  # of the middle of an image that is looked at in full


@dataclass(frozen=True)
class PassSums:
    """What the networks give on an image.

    Args:
        summed: by stage, what `run` returns, padded, on the CPU.
        counts: (h, w), which pixels of the unpadded image do.
    """

    summed: Sequence[Tensor]
    counts: NDArray[np.bool_]


def look(
    networks: Sequence[Network],
    steps: Sequence[Sequence[Pass]],
    image: NDArray[np.uint8],
    pad: int,
    device: str = "cpu",
) -> list[Tensor]:
    """Returns what all passes give for an image (H, W, 3), stage by stage: float32 (1, 1, H, W), padded, on the CPU."""
    batch = _batch(image, device)
    padded = F.pad(batch, [0, -batch.shape[3] % pad, 0, -batch.shape[2] % pad], mode="replicate")
    with torch.inference_mode():
        return [run(networks, step, padded).cpu() for step in steps]


def seconds_a_pass(network: Network, pad: int, device: str = "cpu") -> float:
    """Returns how long a network takes for 512 x 512 px or a little more, a multiple of `pad`; the better of two."""
    side_px = -(-512 // pad) * pad
    image = torch.zeros(1, 3, side_px, side_px, device=device)
    found = []
    with torch.inference_mode():
        network(image)  # the first run on a size is the slowest
        for _ in range(2):
            start = time.perf_counter()
            network(image)[0, 0, 0, 0].item()  # waits for a GPU, too
            found.append(time.perf_counter() - start)
    return min(found)


def learn(
    tiles: Sequence[PassSums], buildings: Sequence[NDArray[np.bool_]], order: Sequence[int], codes: Sequence[int],
    seconds: Sequence[float], pad: int,
) -> Bounds:  # fmt: skip
    """Returns the bounds of least cost that lose no more than `CHANGE` by labels, nor may change more without.

    Labels alone would not do: on a few tiles an early end makes as many pixels right as wrong, by luck.

    Args:
        tiles: what the passes give, best out of fold for the network that looks first.
        buildings: (h, w), the labels of each.
        order: the networks, cheapest first.
        codes: of the views.
        seconds: of a pass of each network, by its number.
        pad: see Ensemble.
    """
    steps = stages(order, codes)
    costs = [sum(seconds[member] for member, _ in stage) for stage in steps]
    whole = (0.0,) * (len(steps) - 1)
    full, _ = _ended(tiles, steps, whole, costs, pad)
    counts = [tile.counts for tile in tiles]
    score_full = _labelled(full, buildings, tiles)
    share = min(1.0, len(tiles) / SET)
    best = Bounds(tuple(order), whole, score_full, score_full, 1.0)
    for first in STEPS:
        for later in reversed(STEPS):  # the cheapest comes first
            settled = ((first,) + len(whole) * (later,))[: len(whole)]
            ended, cost = _ended(tiles, steps, settled, costs, pad)
            if cost >= best.cost:
                break
            score = _labelled(ended, buildings, tiles)
            if score >= score_full - CHANGE and change_of(full, ended, counts).most(share) <= CHANGE:
                best = replace(best, settled=settled, score=score, cost=cost)
                break
    return best


@dataclass(frozen=True)
class Fit:
    """Bounds that images bear.

    Args:
        settled: see `Bounds`; all 0 where the full vote is to be taken.
        passes: share of the full vote's that are taken, 0..1.
        change: of the Jaccard index, at most.
        images: that were looked at in full.
    """

    settled: tuple[float, ...]
    passes: float
    change: float
    images: int

    def __str__(self) -> str:
        if not any(self.settled):
            return f"adaptive: nothing to gain, the full vote is taken ({self.images} images looked at)"
        return (
            f"adaptive: {self.passes:.0%} of the passes, "
            f"Jaccard within {self.change:.4f} of the full vote's ({self.images} images looked at)"
        )


def fit(weights: Weights, images: Iterable[NDArray[np.uint8]], share: float = 1.0) -> Fit:
    """Returns the learnt bounds, or stricter ones, with which images change by no more than `CHANGE`.

    Bounds that pass by what the passes give over whole images are tried in earnest: windows have edges.
    Args:
        weights: tuned or as loaded.
        images: uint8 (H, W, 3 or 4), like those that are to be predicted; of each the middle is looked at in full.
        share: of all that are to be predicted that `images` stand for, 0..1: among many chance evens out.
    """
    bounds, members, pad = learnt_bounds(weights), networks(weights), weights.card.pad_multiple
    whole = (0.0,) * len(bounds.settled)
    if bounds.settled == whole:
        return Fit(whole, 1.0, 0.0, 0)
    steps = stages(bounds.order, VIEWS[weights.card.views])
    seen, tiles = [], []
    for image in map(_middle, images):
        shown = image[..., 3] > 0 if image.shape[2] == 4 else np.ones(image.shape[:2], np.bool_)
        seen.append(image[..., :3])
        tiles.append(PassSums(look(members, steps, seen[-1], pad, weights.device), shown))
    if not tiles:
        return Fit(bounds.settled, bounds.cost, 0.0, 0)
    costs, counts = [float(len(step)) for step in steps], [tile.counts for tile in tiles]
    full, _ = _ended(tiles, steps, whole, costs, pad)

    def change(ended: Sequence[NDArray[np.float32]]) -> float:
        return change_of(full, ended, counts).most(share)

    settled, tried = bounds.settled, 0.0
    ended, passes = _ended(tiles, steps, settled, costs, pad)
    while passes <= WORTH and max(settled) >= LEAST:
        if passes != tried and change(ended) <= CHANGE:
            early = _adaptive(weights, settled)
            found = change([_probability(early, image, weights.device) for image in seen])
            if found <= CHANGE:
                return Fit(settled, passes, found, len(tiles))
        settled, tried = tuple(round(kept * STRICTER, 6) for kept in settled), passes
        ended, passes = _ended(tiles, steps, settled, costs, pad)
    return Fit(whole, 1.0, 0.0, len(tiles))


def end_early(
    weights: Weights, images: Callable[[], Iterable[NDArray[np.uint8]]], identity: str, share: float = 1.0
) -> Weights:
    """Returns weights whose vote ends where it is clear; the same ones where nothing is to be gained.

    What images bear is found once and remembered. All ranks must call it; the first one looks.

    Args:
        weights: tuned or as loaded, with learnt bounds.
        images: returns some like those that are to be predicted, see `fit`; called only where nothing is remembered.
        identity: changes when the images do, for example their ids and versions.
        share: see `fit`.

    Raises:
        WeightsError: see `learnt_bounds`.
    """
    found = agreed(_fitted(weights, images, identity, share) if rank() == 0 else None)
    if found is None or not any(found.settled):
        return weights
    return replace(weights, module=_adaptive(weights, found.settled), plan=_plan(weights.plan, found))


def known_plan(sha256: str, plan: str, identity: str, share: float = 1.0) -> str | None:
    """Returns the `plan` that `end_early` would give to weights without looking at images; None where it would look.

    Args:
        sha256: of the weights file.
        plan: of the weights, see `kit.deploy.engine.tuning.known_plan`.
        identity: see `end_early`.
        share: see `end_early`.
    """
    found = recall("adaptive", _key(sha256, plan, identity, share), Fit)
    return _plan(plan, found) if found else None


def _plan(plan: str, fit: Fit) -> str:
    return f"{plan} adaptive {' '.join(map(str, fit.settled))}" if any(fit.settled) else plan


def _key(sha256: str, plan: str, identity: str, share: float) -> str:
    return f"{sha256} {plan} {share:.6f} {hashlib.sha256(identity.encode()).hexdigest()}"


def learnt_bounds(weights: Weights) -> Bounds:
    """Returns when a vote of weights may end.

    Raises:
        WeightsError: it was not learnt at export, or for other stages.
    """
    remedy = "export its runs again: kit export RUN... --name NAME --adaptive"
    if (bounds := weights.card.adaptive) is None:
        raise WeightsError(f"{weights.path} has no adaptive in its card: when a vote may end was not learnt", remedy)
    known = sorted(bounds.order) == list(range(len(weights.card.members)))
    if not known or len(bounds.settled) != len(stages(bounds.order, VIEWS[weights.card.views])) - 1:
        raise WeightsError(f"{weights.path} has an adaptive in its card that does not fit its networks", remedy)
    return bounds


def _adaptive(weights: Weights, settled: tuple[float, ...]) -> AdaptiveEnsemble:
    bounds = replace(learnt_bounds(weights), settled=settled)
    return AdaptiveEnsemble(networks(weights), bounds, weights.card.views, weights.card.pad_multiple)


def _probability(ensemble: AdaptiveEnsemble, image: NDArray[np.uint8], device: str) -> NDArray[np.float32]:
    with torch.inference_mode():
        probability: NDArray[np.float32] = ensemble.probability(_batch(image, device))[0, 0].cpu().numpy()
    return probability


def _batch(image: NDArray[np.uint8], device: str) -> Tensor:
    """Returns an image (H, W, 3) as float32 (1, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float().to(device)


def _fitted(weights: Weights, images: Callable[[], Iterable[NDArray[np.uint8]]], identity: str, share: float) -> Fit:
    """Returns what images bear, remembered or measured now, and says so."""
    learnt_bounds(weights)
    key = _key(weights.sha256, weights.plan, identity, share)
    if (found := recall("adaptive", key, Fit)) is None:
        found = fit(weights, track(list(images()), "look in full"), share)
        remember("adaptive", key, found)
    say(str(found))
    return found


def _middle(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the middle of an image (H, W, C), at most `LOOK_PX` large."""
    top, left = (max(0, side - LOOK_PX) // 2 for side in image.shape[:2])
    return np.ascontiguousarray(image[top : top + LOOK_PX, left : left + LOOK_PX])


def _ended(
    tiles: Sequence[PassSums],
    steps: Sequence[Sequence[Pass]],
    settled: Sequence[float],
    costs: Sequence[float],
    pad: int,
) -> tuple[list[NDArray[np.float32]], float]:
    """Returns the probabilities, (h, w) each, of votes with these bounds, and their share of the full vote's cost."""
    found, spent = [], []
    for tile in tiles:
        height, width = tile.summed[0].shape[2:]
        grid = BlockGrid.of(height, width, pad)

        def summed(stage: int, seen: Window, tile: PassSums = tile) -> Tensor:
            return tile.summed[stage][:, :, *seen.slices]

        probability, taken = vote(summed, steps, settled, grid, torch.zeros(1, 1, height, width))
        areas = [sum(grid.seen(window).px for window in windows) / (height * width) for windows in taken]
        rows, columns = tile.counts.shape
        found.append(probability[0, 0, :rows, :columns].numpy())
        spent.append(float(np.dot(areas, costs) / sum(costs)))
    return found, float(np.mean(spent))


def _labelled(
    probabilities: Sequence[NDArray[np.float32]], buildings: Sequence[NDArray[np.bool_]], tiles: Sequence[PassSums]
) -> float:
    """Returns the pooled Jaccard index by labels; 1 where there are no buildings anywhere."""
    votes = zip(probabilities, buildings, tiles, strict=True)
    shared, union = np.sum([overlap(vote > 0.5, truth, tile.counts) for vote, truth, tile in votes], axis=0)
    return float(shared / union) if union else 1.0
