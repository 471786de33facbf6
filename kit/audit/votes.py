"""What all members and views of weights predict of an image: their mean, and how far they differ."""

import numpy as np
import torch
from numpy.typing import NDArray

from kit.deploy.engine.predict import has_ground, predict_image
from kit.deploy.engine.tuned import TunedEnsemble, networks
from kit.deploy.freeze.ensemble import Ensemble, unview, view
from kit.deploy.weights import torchscript
from kit.deploy.weights.load import Weights
from kit.errors import KitError

__all__ = ["Votes"]

Plane = NDArray[np.float32]


class Votes:
    """Predicts images with every member and view of weights. Callable.

    Args:
        weights: as loaded, or tuned to this machine. Of an old export, whose networks cannot be called one by one, the
            spread is 0.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.apart = isinstance(weights.module, TunedEnsemble) or torchscript.has_cores(weights.module)
        card = weights.card
        self.networks = networks(weights) if self.apart else []
        self.shares = card.weights or [1 / len(card.members)] * len(card.members)
        self.frame = Ensemble([], card.views, card.pad_multiple)  # pads and crops

    def __call__(self, image: NDArray[np.uint8]) -> tuple[Plane, Plane]:
        """Returns the mean probability and the standard deviation over members and views, float32 (H, W), 0..1.

        Args:
            image: uint8 (H, W, 3 or 4), RGB or RGBA.

        Raises:
            KitError: the device has too little memory.
        """
        if not has_ground(image):
            return np.zeros(image.shape[:2], np.float32), np.zeros(image.shape[:2], np.float32)
        try:
            if not self.apart:
                return predict_image(self.weights, image), np.zeros(image.shape[:2], np.float32)
            return self._voted(image)
        except torch.OutOfMemoryError as cause:
            raise KitError(
                f"{self.weights.device} has too little memory for windows of {image.shape[1]} x {image.shape[0]} px",
                "leave --device out to use the CPU, or take weights of fewer views",
            ) from cause

    @torch.inference_mode()
    def _voted(self, image: NDArray[np.uint8]) -> tuple[Plane, Plane]:
        batch = torch.from_numpy(image).permute(2, 0, 1)[None].to(self.weights.device)  # (1, C, H, W)
        padded = self.frame.padded(batch[:, :3].float())
        mean = torch.zeros_like(padded[:, :1])
        square = torch.zeros_like(mean)
        for network, share in zip(self.networks, self.shares, strict=True):
            for code in self.frame.codes:
                vote = unview(torch.sigmoid(network(view(padded, code))[:, :1]), code).float()
                mean += share / len(self.frame.codes) * vote
                square += share / len(self.frame.codes) * vote**2
        spread = (square - mean**2).clamp(min=0).sqrt()
        planes = self.frame.cropped(torch.cat([mean.clamp(max=1), spread], dim=1), batch)[0].cpu().numpy()
        return planes[0], planes[1]
