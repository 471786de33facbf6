"""Calibrates an adaptive vote on some of the images to be predicted, without labels.

These images are first predicted in full. Then the price of `kit.deploy.adaptive.vote` is lowered until the estimated
change of the Jaccard index (`kit.deploy.adaptive.risk`) is at most `CHANGE`. On imagery unlike the training tiles,
networks disagree more, and fewer passes can be skipped.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kit.console import say, track
from kit.deploy.adaptive.cover import BlockWindow
from kit.deploy.adaptive.risk import change_of
from kit.deploy.adaptive.vote import AdaptiveEnsemble, BlockGrid, Pass, relative, run, stages, vote
from kit.deploy.engine.backends import Network
from kit.deploy.engine.memo import recall, remember
from kit.deploy.engine.tuned import TunedEnsemble, networks
from kit.deploy.freeze.ensemble import VIEWS
from kit.deploy.weights import torchscript
from kit.deploy.weights.load import Weights
from kit.system.ranks import agreed, rank

CHANGE = 0.002  # largest change of the Jaccard index
START = 0.1  # first price to try: hardly more than the first pass
LOWER = 0.85  # ratio of each price to the one before
LEAST = 0.002  # lowest price: lower ones skip almost nothing
WORTH = 0.75  # largest share of passes of an adaptive vote; above, the full vote is used
LOOK_PX = 1024  # side of the middle of an image that is predicted in full

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Calibration:
    """The calibration of an adaptive vote."""

    order: tuple[int, ...]  # the networks, cheapest first
    price: float  # see `kit.deploy.adaptive.vote`; 0 for the full vote
    passes: float  # share of the full vote's passes, 0..1
    change: float  # of the Jaccard index, at most
    images: int  # number of images that were predicted in full

    def __str__(self) -> str:
        images = f"{self.images} image{'s' * (self.images != 1)}"
        if not self.price:
            return f"adaptive: no gain, all passes are used (calibrated on {images})"
        return (
            f"adaptive: {self.passes:.0%} of the passes, Jaccard within {self.change:.4f} of the full vote's "
            f"(calibrated on {images})"
        )

    def plan(self, plan: str) -> str:
        """Returns the `plan` of weights whose vote ends early, see `Weights`."""
        return f"{plan} adaptive {','.join(map(str, self.order))} {self.price}" if self.price else plan


class PassSums(NamedTuple):
    """The predictions of all passes for one image."""

    stages: list[Tensor]  # the sum of each stage's probabilities, float32 (1, 1, H, W), padded, on the CPU
    valid: NDArray[np.bool_]  # (h, w), which pixels of the unpadded image count


def end_early(weights: Weights, images: Callable[[], Iterable[Image]], identity: str, share: float = 1.0) -> Weights:
    """Returns weights with an adaptive vote, or the same weights if it would gain nothing.

    The calibration is cached. All ranks must call it.

    Args:
        weights: tuned or as loaded.
        images: returns some of the images to predict, uint8 (H, W, 3 or 4); not called if the calibration is cached.
        identity: key of the images, for example their ids and versions.
        share: number of `images` divided by that of all images, 0..1.
    """
    if not torchscript.has_cores(weights.module) and not isinstance(weights.module, TunedEnsemble):
        say(f"{weights.path} is an old export, whose networks cannot be called one by one: all passes are used")
        return weights
    calibration = agreed(_calibration(weights, images, identity, share) if rank() == 0 else None)
    if calibration is None or not calibration.price:
        return weights
    return replace(
        weights, module=_adaptive(weights, calibration.order, calibration.price), plan=calibration.plan(weights.plan)
    )


def _calibration(weights: Weights, images: Callable[[], Iterable[Image]], identity: str, share: float) -> Calibration:
    """Returns the calibration, cached or computed, and prints it."""
    key = f"{weights.sha256} {weights.plan} {share:.6f} {hashlib.sha256(identity.encode()).hexdigest()}"
    if (calibration := recall("adaptive", key, Calibration)) is None:
        calibration = calibrate(weights, track(list(images()), "calibrate"), share)
        remember("adaptive", key, calibration)
    say(str(calibration))
    return calibration


def calibrate(weights: Weights, images: Iterable[Image], share: float = 1.0) -> Calibration:
    """Returns the highest price with which the Jaccard index changes by no more than `CHANGE`.

    A price is first tested on the passes over whole images, then by predicting windows, which differ at their edges.

    Args:
        weights: see `end_early`.
        images: see `end_early`; of each the middle is predicted in full.
        share: see `end_early`.
    """
    members, pad, device = networks(weights), weights.card.pad_multiple, weights.device
    by_member = relative(weights.card.weights, len(members))
    order = _cheapest_first(weights, members)
    steps = stages(order, VIEWS[weights.card.views])
    full_vote = Calibration(order, 0.0, 1.0, 0.0, 0)
    if len(steps) == 1:
        return full_vote
    pixels, sums = [], []
    for image in map(_middle, images):
        opaque = image[..., 3] > 0 if image.shape[2] == 4 else np.ones(image.shape[:2], np.bool_)
        pixels.append(image[..., :3])
        sums.append(PassSums(_all_passes(members, steps, _batch(image[..., :3], device), pad, by_member), opaque))
    if not sums:
        return full_vote
    valid = [image.valid for image in sums]
    full, _ = _votes(sums, steps, 0.0, pad, by_member)

    def change(early: Sequence[NDArray[np.float32]]) -> float:
        return change_of(full, early, valid).most(share)

    price, tried = START, 0.0
    early, passes = _votes(sums, steps, price, pad, by_member)
    while passes <= WORTH and price >= LEAST:
        if passes != tried and change(early) <= CHANGE:
            ensemble = _adaptive(weights, order, price)
            measured = change([_probability(ensemble, image, device) for image in pixels])
            if measured <= CHANGE:
                return Calibration(order, price, passes, measured, len(sums))
        price, tried = round(price * LOWER, 6), passes
        early, passes = _votes(sums, steps, price, pad, by_member)
    return replace(full_vote, images=len(sums))


def _cheapest_first(weights: Weights, members: Sequence[Network]) -> tuple[int, ...]:
    """Returns the networks by the time of a pass; those of one recipe take the same time and keep their order."""
    seconds: dict[str, float] = {}
    recipes = [member.recipe for member in weights.card.members]
    for recipe, network in zip(recipes, members, strict=True):
        seconds.setdefault(recipe, 0.0 if len(set(recipes)) == 1 else seconds_per_pass(network, weights))
    return tuple(sorted(range(len(members)), key=lambda member: seconds[recipes[member]]))


def seconds_per_pass(network: Network, weights: Weights) -> float:
    """Returns how long a network takes for 512 x 512 px, or a little more where padding asks for it; best of two."""
    pad = weights.card.pad_multiple
    side_px = -(-512 // pad) * pad
    image = torch.zeros(1, 3, side_px, side_px, device=weights.device)
    seconds = []
    with torch.inference_mode():
        network(image)  # the first run at a size is the slowest
        for _ in range(2):
            start = time.perf_counter()
            network(image)[0, 0, 0, 0].item()  # waits for the GPU
            seconds.append(time.perf_counter() - start)
    return min(seconds)


def _all_passes(
    members: Sequence[Network], steps: Sequence[Sequence[Pass]], batch: Tensor, pad: int, by_member: Sequence[float]
) -> list[Tensor]:
    """Returns the sum of each stage's probabilities for an image (1, 3, H, W): float32 (1, 1, H, W), padded, CPU."""
    padded = F.pad(batch, [0, -batch.shape[3] % pad, 0, -batch.shape[2] % pad], mode="replicate")
    with torch.inference_mode():
        return [run(members, step, padded, by_member).cpu() for step in steps]


def _adaptive(weights: Weights, order: Sequence[int], price: float) -> AdaptiveEnsemble:
    card = weights.card
    return AdaptiveEnsemble(networks(weights), order, price, card.views, card.pad_multiple, card.weights)


def _probability(ensemble: AdaptiveEnsemble, image: Image, device: str) -> NDArray[np.float32]:
    with torch.inference_mode():
        probability: NDArray[np.float32] = ensemble.probability(_batch(image, device))[0, 0].cpu().numpy()
    return probability


def _batch(image: Image, device: str) -> Tensor:
    """Returns an image (H, W, 3) as float32 (1, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float().to(device)


def _middle(image: Image) -> Image:
    """Returns the middle of an image (H, W, C), at most `LOOK_PX` on each side."""
    top, left = (max(0, side - LOOK_PX) // 2 for side in image.shape[:2])
    return np.ascontiguousarray(image[top : top + LOOK_PX, left : left + LOOK_PX])


def _votes(
    sums: Sequence[PassSums], steps: Sequence[Sequence[Pass]], price: float, pad: int, by_member: Sequence[float]
) -> tuple[list[NDArray[np.float32]], float]:
    """Returns the probabilities, (h, w) each, of votes with this price, and the share of the passes that they take."""
    probabilities, shares = [], []
    passes = [len(step) for step in steps]
    for image in sums:
        height, width = image.stages[0].shape[2:]
        grid = BlockGrid.of(height, width, pad)

        def summed(stage: int, window: BlockWindow, image: PassSums = image) -> Tensor:
            return image.stages[stage][:, :, *window.slices]

        probability, windows = vote(summed, steps, price, grid, image.stages[0], by_member)
        areas = [sum(grid.context(window).px for window in of_stage) / (height * width) for of_stage in windows]
        rows, columns = image.valid.shape
        probabilities.append(probability[0, 0, :rows, :columns].numpy())
        shares.append(float(np.dot(areas, passes) / sum(passes)))
    return probabilities, float(np.mean(shares))
