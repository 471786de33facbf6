"""The adaptive vote: skips passes where they would hardly change the mask.

The ensemble's passes (one network, one view) are computed in stages, first the cheapest pass over the whole image.
After each stage, pixels that later passes may still flip are counted per block. A window of blocks is computed in the
next stage if it has more such pixels than the pixels to compute times a price. Other windows keep their mean.
`kit.deploy.adaptive.calibrate` chooses the price.

Source: early exits of cascades (Viola and Jones 2001) and of ensembles (Schwartz et al. 2020, arXiv:1907.10597), here
by block instead of by image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kit.deploy.adaptive.cover import BlockWindow, cover
from kit.deploy.engine.backends import Network
from kit.deploy.engine.tuned import mean_over_views
from kit.deploy.freeze.ensemble import TURN, Ensemble
from kit.errors import WeightsError

BLOCK_PX = 128
MARGIN_PX = 192  # context of a window; with 128 masks changed at its edges
TOGETHER_PX = 1024 * 1024  # pixels of views per call of a network: as much memory as a chip
SPREAD = 0.2  # standard deviation of the passes' probabilities where they differ
FIRST = 0.15  # factor on the price after the first stage: a single pass is often wrong

Pass = tuple[int, int]  # a network's number, a view's code


def stages(order: Sequence[int], codes: Sequence[int]) -> list[list[Pass]]:
    """Returns the passes by stage: the cheapest network once, the other networks once, all once more, all the rest.

    Successive networks get different views, and then the same views rotated by 180 degrees: dissimilar passes add most.
    With trained networks, the mean of six of twelve passes was a quarter closer to that of all than with a second view
    that differs by one flip.
    """
    once = [(member, codes[place % len(codes)]) for place, member in enumerate(order)]
    again = [(member, code ^ TURN) for member, code in once if code ^ TURN in codes]
    rest = [(member, code) for member in order for code in codes if (member, code) not in [*once, *again]]
    return [stage for stage in (once[:1], once[1:], again, rest) if stage]


def near(done: Sequence[float], rest: Sequence[float]) -> float:
    """Returns the largest distance from 0.5 at which the mean of some passes may still be flipped by the rest.

    It is the standard error of the mean of a sample drawn without replacement: with equal weights, SPREAD times the
    square root of 1 / n - 1 / N for n of N passes.

    Args:
        done: weights of the computed passes.
        rest: weights of the others.
    """
    if not rest:
        return 0.0
    share = sum(rest) / (sum(done) + sum(rest))  # of the vote that is still open
    return SPREAD * share * math.sqrt(sum(sum(w * w for w in part) / sum(part) ** 2 for part in (done, rest)))


def undecided(mean: Tensor, within: float, block_px: int = BLOCK_PX) -> NDArray[np.int64]:
    """Returns the number of pixels closer than `within` to 0.5 in each block of probabilities (1, 1, H, W)."""
    turning = ((mean - 0.5).abs() < within).float()
    blocks = F.pad(turning, [0, -mean.shape[3] % block_px, 0, -mean.shape[2] % block_px])
    counts: NDArray[np.int64] = F.avg_pool2d(blocks, block_px, divisor_override=1)[0, 0].long().cpu().numpy()
    return counts


@dataclass(frozen=True)
class BlockGrid:
    """The blocks of a padded image."""

    height: int  # of the image, px, a multiple of the ensemble's padding
    width: int  # likewise
    block_px: int  # side of a block, a multiple of the padding, so that windows of blocks need no padding
    margin_px: int  # context that a network sees around a window, likewise

    @classmethod
    def of(cls, height: int, width: int, pad_multiple: int) -> "BlockGrid":
        """Returns the grid of an image, for an ensemble that pads to `pad_multiple`."""
        block_px, margin_px = (-(-px // pad_multiple) * pad_multiple for px in (BLOCK_PX, MARGIN_PX))
        return cls(height, width, block_px, margin_px)

    def context(self, window: BlockWindow) -> BlockWindow:
        """Returns a window with its margin. There are few sizes, because a network's first run at each is slow."""
        return window.grown(self.margin_px, self.block_px, self.height, self.width)

    def open_windows(
        self, total: Tensor, passes: Tensor, within: float, price: float, among: Sequence[BlockWindow]
    ) -> list[BlockWindow]:
        """Returns the windows of the next stage; all of them for a price of 0.

        Args:
            total: sum of the probabilities so far, (1, 1, H, W).
            passes: number of passes so far, (1, 1, H, W).
            within: see `undecided`.
            price: undecided pixels per pixel that a network would see.
            among: windows of the last stage.
        """
        if not price:
            return list(among)
        turning = np.zeros([-(-side // self.block_px) for side in (self.height, self.width)], np.int64)
        for window in among:
            mean = total[:, :, *window.slices] / passes[:, :, *window.slices]
            turning[window.blocks(self.block_px)] = undecided(mean, within, self.block_px)
        return cover(turning, price, self.block_px, self.margin_px, self.height, self.width)


def vote(
    summed: Callable[[int, BlockWindow], Tensor],
    stages: Sequence[Sequence[Pass]],
    price: float,
    grid: BlockGrid,
    like: Tensor,
    weights: Sequence[float],
) -> tuple[Tensor, list[list[BlockWindow]]]:
    """Returns the mean probability of each block's passes, (1, 1, H, W), and the windows of each stage.

    Args:
        summed: returns the sum of a stage's probabilities over a window with its margin, (1, 1, h, w).
        stages: passes by stage.
        price: see `BlockGrid.open_windows`; 0 for the full vote.
        grid: of the image.
        like: float32 (1, 1, H, W), on the device to compute on.
        weights: of the networks' votes, see `relative`; `summed` has applied them.
    """
    windows = [[BlockWindow(0, grid.height, 0, grid.width)]]
    total, passes = torch.zeros_like(like), torch.zeros_like(like)
    by_stage = [[weights[member] for member, _ in stage] for stage in stages]
    for number in range(len(stages)):
        for window in windows[number]:
            context = grid.context(window)
            inner = window.moved(-context.top, -context.left)
            total[:, :, *window.slices] += summed(number, context)[:, :, *inner.slices]
            passes[:, :, *window.slices] += sum(by_stage[number])
        if number + 1 < len(stages):
            within = near(list(chain(*by_stage[: number + 1])), list(chain(*by_stage[number + 1 :])))
            stage_price = price * (1.0 if number else FIRST)
            windows.append(grid.open_windows(total, passes, within, stage_price, windows[number]))
    return total / passes, windows


class AdaptiveEnsemble(Ensemble):
    """`Ensemble` with an adaptive vote.

    Args:
        networks: one per member.
        order: the networks' numbers, cheapest first.
        price: see `BlockGrid.open_windows`; 0 for the full vote.
        views: see Ensemble.
        pad_multiple: see Ensemble.
        weights: see Ensemble.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        order: Sequence[int],
        price: float,
        views: str,
        pad_multiple: int,
        weights: Sequence[float] = (),
    ) -> None:
        super().__init__([], views, pad_multiple, weights)
        self.relative = relative(weights, len(networks))
        self.networks, self.price = list(networks), price
        self.stages = stages(order, self.codes)

    def probability(self, x: Tensor) -> Tensor:
        """Returns the probability of building, float32 (N, 1, H, W), 0..1."""
        self.check(x)
        padded = self.padded(x[:, :3].float())
        return self.cropped(torch.cat([self._vote(image[None]) for image in padded]), x)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `probability`."""
        return self.probability(x)

    def members(self, x: Tensor) -> Tensor:
        """Raises WeightsError: passes are skipped, so not every member predicts every pixel."""
        raise WeightsError("an adaptive vote has no probabilities per member", "use the full vote, without --adaptive")

    def _vote(self, image: Tensor) -> Tensor:
        def summed(stage: int, window: BlockWindow) -> Tensor:
            return run(self.networks, self.stages[stage], image[:, :, *window.slices], self.relative)

        height, width = image.shape[2:]
        grid = BlockGrid.of(height, width, self.pad_multiple)
        return vote(summed, self.stages, self.price, grid, image[:, :1], self.relative)[0]


def relative(weights: Sequence[float], members: int) -> list[float]:
    """Returns the weights of the networks' votes with a mean of 1."""
    return [weight * members for weight in weights] or [1.0] * members


def run(networks: Sequence[Network], stage: Sequence[Pass], image: Tensor, weights: Sequence[float]) -> Tensor:
    """Returns the weighted sum of probabilities, (1, 1, H, W), of a stage's passes over an image (1, 3, H, W).

    Several views of a small window are one batch: small images cost more per pixel than large ones.
    """
    total = torch.zeros_like(image[:, :1])
    at_once = max(1, TOGETHER_PX // image[0, 0].numel())
    for member, network in enumerate(networks):
        codes = [code for number, code in stage if number == member]
        if codes:
            total += weights[member] * len(codes) * mean_over_views(network, image, codes, at_once)[:, :1]
    return total
