"""Predicts the probability of building for one image."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kit.deploy.engine.tuning import tune
from kit.deploy.weights.load import Weights, load_weights, named_weights
from kit.errors import DataError
from kit.paths import Paths
from kit.system.devices import pick_device

EXPECTED = "expected 8-bit pixels as an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, or a PIL image"

_LAST: dict[tuple[Path, int, str, bool], Weights] = {}  # the last file of `predict`


def load(weights: Path | str, device: str = "") -> Weights:
    """Returns a weights file, checked and loaded; `kit.predict` accepts it instead of the path.

    Args:
        weights: a file of `kit export`, a folder of `kit weights --folder`, or a name below `weights` in the working
            root.
        device: as torch names it; by default a GPU where there is one, else the CPU.

    Raises:
        WeightsError: the file is missing, damaged or not kit's.
        KitError: there is no such device.
    """
    return load_weights(_file_of(weights), str(pick_device(device)))


def _file_of(weights: Path | str) -> Path:
    """Returns the file of a path, a folder or a name; names lie below `KIT_ROOT`, by default the current folder."""
    return named_weights(str(weights), Paths(Path(os.environ.get("KIT_ROOT", ""))).weights)


def predict(weights: Path | str | Weights, image: Any, tuning: bool = True, device: str = "") -> NDArray[np.float32]:
    """Returns the probability of building in an image.

    A file is loaded once, and tuned to this machine on the first image.

    Args:
        weights: as for `kit.load`, or its result, which is used untuned on its device.
        image: 8-bit pixels: an array (H, W) or (H, W, 1) grey, (H, W, 3) RGB, (H, W, 4) RGBA; or a PIL image, which is
            turned upright by its EXIF orientation.
        tuning: see `kit.deploy.engine.tuning.tune`; without it the file computes as it was exported.
        device: as torch names it; by default a GPU where there is one, else the CPU.

    Returns:
        float32 (H, W), 0..1; 0 where alpha is 0.

    Raises:
        DataError: the image has another shape or type.
        WeightsError: the file is missing, damaged or not kit's.
    """
    pixels = as_pixels(image)
    if isinstance(weights, Weights):
        return predict_image(weights, pixels)
    path = _file_of(weights).resolve()
    modified_ns = path.stat().st_mtime_ns if path.is_file() else 0
    key = (path, modified_ns, str(pick_device(device)), tuning)
    if key not in _LAST:
        loaded = load_weights(path, key[2])
        _LAST.clear()
        _LAST[key] = tune(loaded, lambda: [pixels]) if tuning else loaded
    return predict_image(_LAST[key], pixels)


def as_pixels(image: Any) -> NDArray[np.uint8]:
    """Returns an image as a contiguous array, uint8 (H, W, 3 or 4), RGB or RGBA.

    Args:
        image: see `predict`.

    Raises:
        DataError: it has another shape or type.
    """
    pil = sys.modules.get("PIL.Image")  # if PIL is not imported, this is no PIL image
    if pil and isinstance(image, pil.Image):
        return _pixels_of_pil(image)
    try:
        array = np.asarray(image)
    except Exception as cause:  # of any class, for example for a tensor on a GPU or a ragged list
        raise DataError(f"the image, a {type(image).__name__}, is not an array: {cause}", EXPECTED) from cause
    if array.dtype.kind in "OSU":  # a path, None
        raise DataError(f"the image is a {type(image).__name__}, not pixels", EXPECTED)
    shape = " x ".join(map(str, array.shape)) or "no dimensions"
    if array.dtype != np.uint8:
        raise DataError(f"the image is an array of {array.dtype} ({shape}), expected uint8", EXPECTED)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        channels_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = "move the channels to the end: image.transpose(1, 2, 0)" if channels_first else EXPECTED
        raise DataError(f"the image is an array of {shape}, expected (H, W), or (H, W, 1, 3 or 4)", hint)
    return np.ascontiguousarray(array.repeat(3, axis=2) if array.shape[2] == 1 else array)


def _pixels_of_pil(image: Any) -> NDArray[np.uint8]:
    """Returns the pixels of a PIL image, turned upright; palettes, grey, CMYK and such are converted to RGB or RGBA."""
    from PIL import ImageOps

    if image.mode.startswith(("I", "F")):  # 16 and 32 bits
        raise DataError(f"the PIL image has the mode {image.mode}, which is not 8 bits per channel", EXPECTED)
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    try:
        return np.array(ImageOps.exif_transpose(image).convert("RGBA" if transparent else "RGB"))
    except (OSError, ValueError, SyntaxError) as cause:  # PIL decodes lazily
        raise DataError(f"the PIL image cannot be decoded: {cause}", "is its file whole?") from cause


def predict_image(weights: Weights, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the probability of building.

    Args:
        weights: as loaded.
        image: uint8 (H, W, 3 or 4), RGB or RGBA.

    Returns:
        float32 (H, W), 0..1; 0 where alpha is 0. An image of a single colour is 0 everywhere, and is not computed.
    """
    if not has_ground(image):
        return np.zeros(image.shape[:2], np.float32)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].to(weights.device)  # (1, C, H, W)
    with torch.inference_mode():
        probability: NDArray[np.float32] = weights.module(batch)[0, 0].cpu().numpy()
    return probability


def predict_channels(weights: Weights, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the probabilities of footprint, boundary and contact, float32 (3, H, W), 0..1; see `predict_image`.

    Args:
        weights: as loaded, with `channels` in their card.
        image: uint8 (H, W, 3 or 4), RGB or RGBA.
    """
    if not has_ground(image):
        return np.zeros((len(weights.card.channels), *image.shape[:2]), np.float32)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].to(weights.device)  # (1, C, H, W)
    with torch.inference_mode():
        channels: NDArray[np.float32] = weights.module.channels(batch)[0].cpu().numpy()
    return channels


def has_ground(image: NDArray[np.uint8]) -> bool:
    """Returns whether an image, uint8 (H, W, 3 or 4), has opaque pixels of two colours or more."""
    shown = image[image[..., 3] > 0, :3] if image.shape[2] == 4 else image.reshape(-1, 3)
    return bool((shown != shown[:1]).any())
