"""A vote that ends where it is clear: cheap passes over the whole image, dear ones where they can change the mask.

The ensemble's passes (a network, a view) are taken in stages. After each one the pixels are counted, block by block,
that the passes to come may still turn; where they are few beside the pixels that a network would have to see for them,
the block keeps what it has. Where the bounds come from, see `kit.deploy.adaptive.calibrate`. Source: early exits of
cascades (Viola and Jones 2001) and of ensembles (Schwartz et al. 2020, arXiv:1907.10597), by block instead of by image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kit.deploy.adaptive.cover import Window, cover
from kit.deploy.engine.backends import Network
from kit.deploy.engine.tuned import mean_over_views
from kit.deploy.freeze.ensemble import TURN, Ensemble
from kit.deploy.weights.card import Bounds

BLOCK_PX = 128
MARGIN_PX = 192  # what a network sees around a window: with 128 masks changed at its edges
TOGETHER_PX = 1024 * 1024  # of views that go through a network at once: as much memory as a chip
SPREAD = 0.2  # of the passes' probabilities about their mean, where they differ

Pass = tuple[int, int]  # a network's number, a view's code


def stages(order: Sequence[int], codes: Sequence[int]) -> list[list[Pass]]:
    """Returns the passes by stage: the cheapest network once, the others once, all once more, all in what is left.

    Each network looks in another view than the one before it, and then in the view turned by half: passes tell the
    more, the less alike they are. On trained networks the mean of six passes out of twelve was a quarter nearer to
    that of all than with a second view that differs in one flip.
    """
    once = [(member, codes[place % len(codes)]) for place, member in enumerate(order)]
    again = [(member, code ^ TURN) for member, code in once if code ^ TURN in codes]
    left = [(member, code) for member in order for code in codes if (member, code) not in [*once, *again]]
    return [part for part in (once[:1], once[1:], again, left) if part]


def near(done: int, passes: int) -> float:
    """Returns how far from one half a mean of some of all passes may be and still turn.

    It is the standard error of a mean of `done` out of `passes` values: of a sample drawn without replacement.
    """
    return SPREAD * math.sqrt(1 / done - 1 / passes)


def undecided(mean: Tensor, within: float, block_px: int = BLOCK_PX) -> NDArray[np.int64]:
    """Returns the number of pixels `within` so much of one half in each block of a probability map (1, 1, H, W)."""
    turning = ((mean - 0.5).abs() < within).float()
    blocks = F.pad(turning, [0, -mean.shape[3] % block_px, 0, -mean.shape[2] % block_px])
    counts: NDArray[np.int64] = F.avg_pool2d(blocks, block_px, divisor_override=1)[0, 0].long().cpu().numpy()
    return counts


@dataclass(frozen=True)
class BlockGrid:
    """The blocks of a padded image.

    Args:
        height: of the image, px, a multiple of the ensemble's padding.
        width: likewise.
        block_px: the side of a block, a multiple of the padding: windows of blocks need none of their own.
        margin_px: what a network sees around a window, likewise.
    """

    height: int
    width: int
    block_px: int
    margin_px: int

    @classmethod
    def of(cls, height: int, width: int, pad_multiple: int) -> "BlockGrid":
        """Returns the grid of an image, of an ensemble that pads to `pad_multiple`."""
        block_px, margin_px = (-(-px // pad_multiple) * pad_multiple for px in (BLOCK_PX, MARGIN_PX))
        return cls(height, width, block_px, margin_px)

    def seen(self, window: Window) -> Window:
        """Returns what a network sees of a window; of few sizes, since the first run on each takes the longest."""
        return window.grown(self.margin_px, self.block_px, self.height, self.width)

    def open_windows(
        self, total: Tensor, passes: Tensor, within: float, price: float, among: Sequence[Window]
    ) -> list[Window]:
        """Returns windows, among those of the last stage, that hold more undecided pixels than they cost; all for 0."""
        if not price:
            return list(among)
        turning = np.zeros([-(-side // self.block_px) for side in (self.height, self.width)], np.int64)
        for window in among:
            mean = total[:, :, *window.slices] / passes[:, :, *window.slices]
            turning[window.blocks(self.block_px)] = undecided(mean, within, self.block_px)
        return cover(turning, price, self.block_px, self.margin_px, self.height, self.width)


def vote(
    summed: Callable[[int, Window], Tensor],
    stages: Sequence[Sequence[Pass]],
    settled: Sequence[float],
    grid: BlockGrid,
    total: Tensor,
) -> tuple[Tensor, list[list[Window]]]:
    """Returns the mean probability, (1, 1, H, W), of the passes that each block got, and the windows of each stage.

    Args:
        summed: a stage's passes over what a network sees of a window: the sum of their probabilities, (1, 1, h, w).
        stages: passes by stage.
        settled: see `Bounds`.
        grid: of the image.
        total: zeros, float32 (1, 1, H, W), to be filled.
    """
    whole = Window(0, grid.height, 0, grid.width)
    taken = [[whole]]
    passes = torch.zeros_like(total)
    for number, stage in enumerate(stages):
        for window in taken[number]:
            seen = grid.seen(window)
            inner = window.moved(-seen.top, -seen.left)
            total[:, :, *window.slices] += summed(number, seen)[:, :, *inner.slices]
            passes[:, :, *window.slices] += len(stage)
        if number < len(settled):
            asked = [len(stage) for stage in stages]
            within = near(sum(asked[: number + 1]), sum(asked))
            taken.append(grid.open_windows(total, passes, within, settled[number], taken[number]))
    return total / passes, taken


class AdaptiveEnsemble(Ensemble):
    """The vote of `Ensemble`, over networks that are asked no more than they need be.

    Args:
        networks: one a core.
        bounds: as learnt.
        views: see Ensemble.
        pad_multiple: see Ensemble.
    """

    def __init__(self, networks: Sequence[Network], bounds: Bounds, views: str, pad_multiple: int) -> None:
        super().__init__([], views, pad_multiple)
        self.networks, self.bounds = list(networks), bounds
        self.stages = stages(bounds.order, self.codes)

    def probability(self, x: Tensor) -> Tensor:
        """Returns the probability of building, float32 (N, 1, H, W), 0..1."""
        self.check(x)
        padded = self.padded(x[:, :3].float())
        return self.cropped(torch.cat([self._vote(image[None]) for image in padded]), x)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `probability`."""
        return self.probability(x)

    def members(self, x: Tensor) -> Tensor:
        """Raises NotImplementedError: not every network is asked everywhere."""
        raise NotImplementedError("an adaptive vote knows no members")

    def _vote(self, image: Tensor) -> Tensor:
        def summed(stage: int, seen: Window) -> Tensor:
            return run(self.networks, self.stages[stage], image[:, :, *seen.slices])

        height, width = image.shape[2:]
        grid = BlockGrid.of(height, width, self.pad_multiple)
        return vote(summed, self.stages, self.bounds.settled, grid, torch.zeros_like(image[:, :1]))[0]


def run(networks: Sequence[Network], stage: Sequence[Pass], image: Tensor) -> Tensor:
    """Returns the sum of the probabilities (1, 1, H, W) that the passes of a stage give for an image (1, 3, H, W).

    Views of a window go through a network together: small images cost more a pixel than large ones.
    """
    total = torch.zeros_like(image[:, :1])
    at_once = max(1, TOGETHER_PX // image[0, 0].numel())
    for member, network in enumerate(networks):
        codes = [code for asked, code in stage if asked == member]
        if codes:
            total += len(codes) * mean_over_views(network, image, codes, at_once)
    return total
