"""fastai callbacks that mix the images of a training batch, masks included."""

import math

import numpy as np
import torch
from fastai.callback.core import Callback
from torch import Tensor

from kit.errors import RecipeError
from kit.system.ranks import rank

__all__ = ["CutMix", "MixStyle", "MixUp"]


class _Mixing(Callback):
    """Base class. Random numbers depend only on (seed, epoch, iteration, rank); validation is not mixed.

    Images are (N, 3, H, W) uint8 or float, 0 to 255; targets masks (N, H, W) or layers (N, 3, H, W).
    """

    run_valid = False
    stream = 0  # of random numbers, so that two kinds of mixing in one fit are independent

    def random(self) -> np.random.Generator:
        """Returns the batch's generator."""
        return np.random.default_rng([self.dls.train.dataset.seed, self.epoch, self.iter, self.stream, rank()])

    def partners(self, random: np.random.Generator) -> Tensor:
        """Returns which image each one is mixed with: a permutation of the batch, int64 (N,)."""
        return torch.from_numpy(random.permutation(len(self.x))).to(self.x.device)


class MixStyle(_Mixing):
    """Gives images the colours of another one, in part: the mean and the standard deviation of each channel.

    So the network learns that roofs of one place look different under the light, camera and soil of another.

    Args:
        share: of the images that are changed, 0..1; each takes between none and all of the other's colours.

    Raises:
        RecipeError: the share is out of range.

    Source:
        Zhou 2021, arXiv 2104.02008, who mix features of the first stages; here pixels are mixed.
    """

    order = -17  # before images are pasted and averaged
    stream = 3

    def __init__(self, share: float = 0.5) -> None:
        if not 0 <= share <= 1:
            raise RecipeError(f"MixStyle: a share of {share:g} of the images, expected 0 to 1", "0.5 is the default")
        self.share = share

    def before_batch(self) -> None:
        """Changes the images, which keep their dtype."""
        random = self.random()
        partners = self.partners(random)
        amounts = random.uniform(size=len(partners)) * (random.uniform(size=len(partners)) < self.share)
        amount = torch.from_numpy(amounts.astype(np.float32)).view(-1, 1, 1, 1).to(self.x.device)
        pixels = self.x.float()
        mean, spread = pixels.mean((2, 3), keepdim=True), pixels.std((2, 3), keepdim=True) + 1  # an even image has none
        styled = (pixels - mean) / spread * torch.lerp(spread, spread[partners], amount)
        styled = (styled + torch.lerp(mean, mean[partners], amount)).round().clamp(0, 255)
        self.learn.xb = (styled.to(self.x.dtype),)


class MixUp(_Mixing):
    """Trains on a weighted mean of two images, with the same mean of the losses of both masks.

    Args:
        alpha: the weight is drawn from Beta(alpha, alpha), once per batch; with small values most images hardly change.

    Source:
        Zhang 2018, arXiv 1710.09412.
    """

    order = -15  # after CutMix; before Precision, which sets the memory format
    stream = 1

    def __init__(self, alpha: float = 0.4) -> None:
        self.alpha = alpha

    def before_batch(self) -> None:
        """Mixes the images, which become float32."""
        random = self.random()
        self.share = float(random.beta(self.alpha, self.alpha))
        partners = self.partners(random)
        self.learn.xb = (torch.lerp(self.x[partners].float(), self.x.float(), self.share),)
        self.other = self.y[partners]

    def after_loss(self) -> None:
        """Mixes the losses."""
        other = self.loss_func(self.pred, self.other)
        self.learn.loss_grad = torch.lerp(other, self.learn.loss_grad, self.share)
        self.learn.loss = self.learn.loss_grad.clone()


class CutMix(_Mixing):
    """Pastes a rectangle of another image and of its mask.

    Args:
        alpha: the share of the image that is kept is drawn from Beta(alpha, alpha); 1 is uniform.
        probability: 0 to 1, of mixing a batch.

    Source:
        Yun 2019, arXiv 1905.04899; for segmentation French 2020, arXiv 1906.01916.
    """

    order = -16  # before MixUp, which then sees the masks that belong to the images
    stream = 2

    def __init__(self, alpha: float = 1.0, probability: float = 0.5) -> None:
        self.alpha, self.probability = alpha, probability

    def rectangle(self, random: np.random.Generator, height: int, width: int) -> tuple[slice, slice]:
        """Returns rows and columns of a rectangle at a random place, px, clipped to the image."""
        side = math.sqrt(1 - random.beta(self.alpha, self.alpha))  # of the image's sides
        rows, columns = round(height * side), round(width * side)
        top, left = random.integers(height) - rows // 2, random.integers(width) - columns // 2
        return slice(max(0, top), max(0, top + rows)), slice(max(0, left), max(0, left + columns))

    def before_batch(self) -> None:
        """Mixes images and masks."""
        random = self.random()
        if random.random() >= self.probability:
            return
        rows, columns = self.rectangle(random, *self.x.shape[-2:])
        partners = self.partners(random)
        image, target = self.x.clone(), self.y.clone()  # the loader's tensors must not change
        image[..., rows, columns] = self.x[..., rows, columns][partners]
        target[..., rows, columns] = self.y[..., rows, columns][partners]
        self.learn.xb, self.learn.yb = (image,), (target,)
