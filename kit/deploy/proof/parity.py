"""The difference between a weights file and the networks it was frozen from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kit.data.masks import LAYERS
from kit.deploy.freeze.ensemble import CHANNELS, view_codes

# Folded batch norms, other kernels and another order of sums move a probability by about 1e-6; a wrong trace, weight,
# view or padding by far more.
PARITY_LIMIT = 1e-3
HALF_PARITY_LIMIT = 5e-2  # weights that are rounded to float16 move it by about 1e-3, by 2e-2 at a few pixels
EQUAL_LIMIT = 0.999  # of mask pixels: such moves flip only pixels near one half, a few in a million


@dataclass(frozen=True)
class Parity:
    """The difference between a file's predictions and the networks'."""

    max_abs: float = 0.0  # the largest difference in probability; NaN where either is NaN
    equal_px: int = 0  # pixels with the same mask
    pixels: int = 0  # how many were compared

    @property
    def equal_masks(self) -> float:
        """The share of pixels with the same mask, 0..1; 1 without pixels."""
        return self.equal_px / self.pixels if self.pixels else 1.0

    def fault(self, limit: float = PARITY_LIMIT) -> str:
        """Returns how far the two are beyond the limits; an empty text where they agree.

        Args:
            limit: of the difference in probability, see `parity_limit`.
        """
        if self.max_abs <= limit and self.equal_masks >= EQUAL_LIMIT:  # in this form, NaN fails too
            return ""
        return (
            f"{self.max_abs:.2g} in probability, {self.equal_masks:.2%} of mask pixels are equal; expected at most "
            f"{limit} and at least {EQUAL_LIMIT:.1%}"
        )

    def __add__(self, other: "Parity") -> "Parity":
        largest = float(np.maximum(self.max_abs, other.max_abs))  # np.maximum keeps a NaN
        return Parity(largest, self.equal_px + other.equal_px, self.pixels + other.pixels)


def parity_limit(storage: str) -> float:
    """Returns the largest difference in probability of a file whose weights are stored as `float32` or `float16`."""
    return HALF_PARITY_LIMIT if storage == "float16" else PARITY_LIMIT


def measure_parity(
    module: Any,
    members: Sequence[nn.Module],
    views: str,
    pad_multiple: int,
    tiles: Iterable[NDArray[np.uint8]],
    weights: Sequence[float] = (),
) -> Parity:
    """Returns the difference between an exported module and its eager members on `tiles` and on noise of odd size.

    Args:
        module: as `kit.deploy.freeze.ensemble.freeze` returns it, or loaded from disk.
        members: the networks it was frozen from, in eval mode on the CPU.
        views: `none`, `flips` or `d4`.
        pad_multiple: px.
        tiles: uint8 (H, W, 3).
        weights: of the members' votes, adding to 1; empty where all count the same.
    """
    noise = np.random.default_rng(0).integers(0, 256, (3 * pad_multiple + 1, pad_multiple - 1, 3), dtype=np.uint8)
    layers = range(len(LAYERS)) if hasattr(module, CHANNELS) else ()
    parity = Parity()
    for image in [*tiles, noise]:
        expected = eager_probability(members, image, views, pad_multiple, weights)
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
            probability = module.probability(batch)[0, 0].numpy()
            mask = module.mask(batch)[0, 0].numpy()
            channels = module.channels(batch)[0].numpy() if layers else ()
        largest = float(np.abs(probability - expected).max())
        parity += Parity(largest, int((mask == (expected > 0.5)).sum()), mask.size)
        for layer in layers:
            eager = mean_vote(eager_members(members, image, views, pad_multiple, layer), weights)
            parity += Parity(float(np.abs(channels[layer] - eager).max()))
    return parity


def eager_probability(
    members: Sequence[nn.Module], image: NDArray[np.uint8], views: str, pad_multiple: int, weights: Sequence[float] = ()
) -> NDArray[np.float32]:
    """Returns the soft vote, float32 (H, W), 0..1: the mean of `eager_members`, see `mean_vote`."""
    return mean_vote(eager_members(members, image, views, pad_multiple), weights)


def mean_vote(votes: NDArray[np.float32], weights: Sequence[float] = ()) -> NDArray[np.float32]:
    """Returns the mean of probabilities, float32 (M, H, W) -> (H, W), by weight where there are weights."""
    mean = np.average(votes, axis=0, weights=weights) if len(weights) else votes.mean(axis=0)
    return np.asarray(mean, np.float32)


def eager_members(
    members: Sequence[nn.Module], image: NDArray[np.uint8], views: str, pad_multiple: int, layer: int = 0
) -> NDArray[np.float32]:
    """Returns each network's vote, computed without the code of `Ensemble`: numpy pads, flips and averages.

    Args:
        members: networks in eval mode on the CPU.
        image: uint8 (H, W, 3 or 4).
        views: `none`, `flips` or `d4`.
        pad_multiple: px.
        layer: of networks that predict layers: 0 for building, 1 and 2 for boundary and contact.

    Returns:
        float32 (M, H, W), 0..1; 0 where alpha is 0.
    """
    height, width = image.shape[:2]
    padded = np.pad(image[..., :3], ((0, -height % pad_multiple), (0, -width % pad_multiple), (0, 0)), mode="edge")
    probabilities = []
    for member in members:
        votes = []
        for code in view_codes(views):
            turned = padded.swapaxes(0, 1) if code & 4 else padded
            step = (slice(None, None, -1 if code & 2 else 1), slice(None, None, -1 if code & 1 else 1))
            probability = _probability_of(member, turned[step], layer)[step]
            votes.append(probability.swapaxes(0, 1) if code & 4 else probability)
        probabilities.append(np.mean(votes, axis=0)[:height, :width])
    votes_by_member: NDArray[np.float32] = np.stack(probabilities)
    if image.shape[2] == 4:
        votes_by_member[:, image[..., 3] == 0] = 0
    return votes_by_member


def _probability_of(member: nn.Module, image: NDArray[np.uint8], layer: int) -> NDArray[np.float32]:
    """Returns the probability of building or another layer, float32 (H, W), of one uint8 image (H, W, 3)."""
    with torch.inference_mode():
        logits: Tensor = member(torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32)))
        # two channels are classes; the first of one or three is the footprint
        chances = logits.softmax(dim=1)[0, 1] if logits.shape[1] == 2 else logits[0, layer].sigmoid()
        probability: NDArray[np.float32] = chances.numpy()
    return probability
