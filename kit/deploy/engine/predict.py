"""Weights and one image to the probability of building."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kit.deploy.engine.tuning import tune
from kit.deploy.weights.load import Weights, load_weights
from kit.system.devices import pick_device

_READY: dict[tuple[Path, int, str, bool], Weights] = {}  # the file that `predict` used last


def predict(
    weights: Path | str, image: NDArray[np.uint8], tuning: bool = True, device: str = ""
) -> NDArray[np.float32]:
    """Returns the probability of building; the file is loaded once, and tuned to this machine on the first image.

    Args:
        weights: as `kit export` wrote them.
        image: uint8 (H, W, 3 or 4), RGB or RGBA.
        tuning: see `kit.deploy.engine.tuning.tune`; without it the file computes as it was shipped.
        device: as torch names it; the best there is by default.

    Returns:
        float32 (H, W), 0..1; 0 where alpha is 0.

    Raises:
        WeightsError: see `load_weights`.
    """
    path = Path(weights).resolve()
    changed_ns = path.stat().st_mtime_ns if path.is_file() else 0
    key = (path, changed_ns, str(pick_device(device)), tuning)
    if key not in _READY:
        loaded = load_weights(path, key[2])
        _READY.clear()
        _READY[key] = tune(loaded, [image]) if tuning else loaded
    return predict_image(_READY[key], image)


def predict_image(weights: Weights, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the probability of building; an image without ground costs nothing.

    Args:
        weights: as loaded.
        image: uint8 (H, W, 3 or 4), RGB or RGBA.

    Returns:
        float32 (H, W), 0..1; 0 where alpha is 0, and all over where there is no ground.
    """
    if not has_ground(image):
        return np.zeros(image.shape[:2], np.float32)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].to(weights.device)  # (1, C, H, W)
    with torch.inference_mode():
        probability: NDArray[np.float32] = weights.module(batch)[0, 0].cpu().numpy()
    return probability


def has_ground(image: NDArray[np.uint8]) -> bool:
    """Tells whether an image, uint8 (H, W, 3 or 4), shows anything: pixels that are not transparent, of two colours."""
    shown = image[image[..., 3] > 0, :3] if image.shape[2] == 4 else image.reshape(-1, 3)
    return bool((shown != shown[:1]).any())
