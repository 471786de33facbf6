"""How early a vote may end: learnt at export on tiles with labels, held against the images that are to be predicted.

Both ask what an early end is expected to cost. The full vote tells for every pixel how likely it is building; hence the
Jaccard index that a mask may hope for, without labels, and what it loses where the vote ended early. The networks know
imagery that is like their tiles; on other imagery they disagree, more of them must be heard, and this shows it.
Source: the expected index as a ratio of expectations is that of Nowozin (CVPR 2014), for pixels that are independent.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kit.console import say, track
from kit.deploy.adaptive.blocks import Window
from kit.deploy.adaptive.vote import AdaptiveEnsemble, Grid, Pass, run, stages, vote
from kit.deploy.card import Bounds
from kit.deploy.choices import recall, remember
from kit.deploy.engines import Network
from kit.deploy.ensemble import VIEWS
from kit.deploy.tuning import cores
from kit.deploy.weights import Weights
from kit.errors import WeightsError
from kit.models.ranks import agreed, rank

STEPS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 1.01)  # bounds: share of a block that may turn; 0 settles none
LOSS = 0.001  # of the Jaccard index
WORTH = 0.9  # of the passes: a vote that ends no earlier is taken in full
LOOKS = 8  # images, at least, that are looked at in full to fit the bounds
LOOK_PX = 512  # of their middle


@dataclass(frozen=True)
class Tile:
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
    batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float().to(device)
    padded = F.pad(batch, [0, -batch.shape[3] % pad, 0, -batch.shape[2] % pad], mode="replicate")
    with torch.inference_mode():
        return [run(networks, step, padded).cpu() for step in steps]


def learn(
    tiles: Sequence[Tile], buildings: Sequence[NDArray[np.bool_]], order: Sequence[int], codes: Sequence[int],
    seconds: Sequence[float], pad: int,
) -> Bounds:  # fmt: skip
    """Returns the bounds of least cost that lose no more than `LOSS`, as labels count it and as the full vote expects.

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
    full = [_ended(tile, steps, whole, costs, pad)[0] for tile in tiles]

    def scores(probabilities: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Returns the pooled Jaccard index by labels, and the expected one."""
        counted = [
            [_overlap(probability > 0.5, truth, tile.counts) for truth in (building, hoped)]
            for probability, building, hoped, tile in zip(probabilities, buildings, full, tiles, strict=True)
        ]
        return _jaccard(np.sum(counted, axis=0))

    full_scores = scores(full)
    best = Bounds(tuple(order), whole, float(full_scores[0]), float(full_scores[0]), 1.0)
    for first in STEPS:
        for later in reversed(STEPS):  # the cheapest comes first
            settled = ((first,) + len(whole) * (later,))[: len(whole)]
            ended = [_ended(tile, steps, settled, costs, pad) for tile in tiles]
            cost = float(np.mean([spent for _, spent in ended]))
            if cost >= best.cost:
                break
            found = scores([probability for probability, _ in ended])
            if (found >= full_scores - LOSS).all():
                best = replace(best, settled=settled, score=float(found[0]), cost=cost)
                break
    return best


@dataclass(frozen=True)
class Fit:
    """Bounds that images bear.

    Args:
        settled: see `Bounds`; all 0 where the full vote is to be taken.
        passes: share of the full vote's that are taken, 0..1.
        loss: of the Jaccard index, as expected.
        images: that were looked at in full.
    """

    settled: tuple[float, ...]
    passes: float
    loss: float
    images: int

    def __str__(self) -> str:
        if not any(self.settled):
            return f"adaptive: nothing to gain, the full vote is taken ({self.images} images looked at)"
        return (
            f"adaptive: {self.passes:.0%} of the passes, expected to lose {max(0, self.loss):.4f} of the Jaccard index "
            f"({self.images} images looked at in full)"
        )


def fit(weights: Weights, images: Iterable[NDArray[np.uint8]]) -> Fit:
    """Returns the learnt bounds, or stricter ones, of which images expect to lose no more than `LOSS`.

    Args:
        weights: tuned or as loaded.
        images: uint8 (H, W, 3 or 4), like those that are to be predicted; of each the middle is looked at in full.
    """
    bounds, networks, pad = learnt_bounds(weights), cores(weights), weights.card.pad_multiple
    steps = stages(bounds.order, VIEWS[weights.card.views])
    costs = [float(len(step)) for step in steps]
    whole = (0.0,) * len(bounds.settled)
    if bounds.settled == whole:
        return Fit(whole, 1.0, 0.0, 0)
    ladder = [bounds.settled] + [
        tuple(min(kept, step) for kept in bounds.settled) for step in reversed(STEPS) if 0 < step < max(bounds.settled)
    ]
    counted, full_counted = np.zeros((len(ladder), 2)), np.zeros(2)
    passes, seen = np.zeros(len(ladder)), 0
    for image in images:
        middle = _middle(image)
        shown = middle[..., 3] > 0 if middle.shape[2] == 4 else np.ones(middle.shape[:2], np.bool_)
        tile = Tile(look(networks, steps, middle[..., :3], pad, weights.device), shown)
        full, _ = _ended(tile, steps, whole, costs, pad)
        full_counted += _overlap(full > 0.5, full, tile.counts)
        for row, settled in enumerate(ladder):
            probability, spent = _ended(tile, steps, settled, costs, pad)
            counted[row] += _overlap(probability > 0.5, full, tile.counts)
            passes[row] += spent
        seen += 1
    if not seen:
        return Fit(bounds.settled, bounds.cost, 0.0, 0)
    losses = _jaccard(full_counted) - _jaccard(counted)
    for settled, share, loss in zip(ladder, passes / seen, losses.tolist(), strict=True):
        if loss <= LOSS and share <= WORTH:
            return Fit(settled, float(share), loss, seen)
    return Fit(whole, 1.0, 0.0, seen)


def end_early(weights: Weights, images: Callable[[], Sequence[NDArray[np.uint8]]]) -> Weights:
    """Returns weights whose vote ends where it is clear; the same ones where nothing is to be gained.

    What images bear is found once and remembered. All ranks must call it; the first one looks.

    Args:
        weights: tuned or as loaded, with learnt bounds.
        images: gives some like those that are to be predicted, see `fit`.

    Raises:
        WeightsError: see `learnt_bounds`.
    """
    bounds = learnt_bounds(weights)
    found = agreed(_fitted(weights, images()) if rank() == 0 else None)
    if found is None or not any(found.settled):
        return weights
    bounds = replace(bounds, settled=found.settled)
    module = AdaptiveEnsemble(cores(weights), bounds, weights.card.views, weights.card.pad_multiple)
    return replace(weights, module=module, plan=f"{weights.plan} adaptive {' '.join(map(str, found.settled))}")


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


def _fitted(weights: Weights, images: Sequence[NDArray[np.uint8]]) -> Fit:
    """Returns what images bear, found before or now, and tells it."""
    middles = [_middle(image) for image in images]
    shown = hashlib.sha256()
    for middle in middles:
        shown.update(f"{middle.shape}".encode() + middle.tobytes())
    key = f"{weights.sha256} {weights.plan} {shown.hexdigest()}"
    try:
        kept = recall("adaptive", key)
        found = Fit(tuple(map(float, kept["settled"])), kept["passes"], kept["loss"], kept["images"])
    except (TypeError, KeyError, ValueError):
        found = fit(weights, track(middles, "look in full"))
        remember("adaptive", key, asdict(found))
    say(str(found))
    return found


def _middle(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the middle of an image (H, W, C), at most `LOOK_PX` large."""
    top, left = (max(0, side - LOOK_PX) // 2 for side in image.shape[:2])
    return np.ascontiguousarray(image[top : top + LOOK_PX, left : left + LOOK_PX])


def _ended(
    tile: Tile, steps: Sequence[Sequence[Pass]], settled: Sequence[float], costs: Sequence[float], pad: int
) -> tuple[NDArray[np.float32], float]:
    """Returns the probability of a vote with these bounds, (h, w), and its cost as a share of the full vote's."""
    height, width = tile.summed[0].shape[2:]
    grid = Grid.of(height, width, pad)

    def summed(stage: int, seen: Window) -> Tensor:
        return tile.summed[stage][:, :, seen.top : seen.bottom, seen.left : seen.right]

    probability, taken = vote(summed, steps, settled, grid, torch.zeros(1, 1, height, width))
    areas = [sum(grid.seen(window).px for window in windows) / (height * width) for windows in taken]
    rows, columns = tile.counts.shape
    return probability[0, 0, :rows, :columns].numpy(), float(np.dot(areas, costs) / sum(costs))


def _overlap(
    mask: NDArray[np.bool_], truth: NDArray[np.bool_] | NDArray[np.float32], counts: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Returns the pixels that a mask and the truth share, and those of their union, as expected.

    Args:
        mask: (h, w).
        truth: likewise, how likely each pixel is building: 0 and 1 where that is known.
        counts: likewise, which pixels do.
    """
    shared = truth[mask & counts].sum(dtype=np.float64)
    missed = truth[~mask & counts].sum(dtype=np.float64)
    return np.array([shared, np.count_nonzero(mask & counts) + missed])


def _jaccard(overlaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the Jaccard index of overlaps (..., 2); 1 for empty unions."""
    shared, union = overlaps[..., 0], overlaps[..., 1]
    return np.divide(shared, union, out=np.ones_like(shared), where=union > 0)
