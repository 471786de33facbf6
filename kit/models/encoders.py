"""timm models as feature pyramids whose maps are exact fractions of the image."""

import warnings
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kit.errors import EncoderError, nearest
from kit.models.padding import make_static, pad_valid
from kit.models.pretrained import load_pretrained, timm

PROBE_STEPS = 3  # side of the probe image in largest strides: odd, and enough for the valid padding of Inception


class ChannelsFirst(nn.Module):
    """Wraps a pyramid with channels-last maps (Swin, MambaOut): returns (N, C, H, W)."""

    def __init__(self, pyramid: nn.Module) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.feature_info, self.pretrained_cfg = pyramid.feature_info, pyramid.pretrained_cfg

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the maps, finest first."""
        return [feature.permute(0, 3, 1, 2).contiguous() for feature in self.pyramid(x)]


def encoder(name: str, **options: Any) -> nn.Module:
    """Returns a timm feature pyramid with the weights of the current `encoder_source`.

    Convolutions with valid padding (Inception) are padded, so that maps are exact fractions of the image, as in
    segmentation_models_pytorch. TensorFlow's SAME padding is made static, see `kit.models.padding`. Channels-last maps
    are transposed. The result is checked on a small image.

    Args:
        name: a timm model name, for example `tf_efficientnet_lite0`.
        options: for `timm.create_model`.

    Shape:
        (N, 3, H, W) float, normalised -> a list of (N, C_i, H / r_i, W / r_i), finest first; C_i and r_i are in
        `feature_info`. H and W are multiples of the largest r_i.

    Raises:
        EncoderError: the name is unknown, the model has no such feature pyramid, or its weights are not available.
    """
    if name.split(".")[0] not in timm.list_models():
        raise EncoderError(f"timm has no model {name!r}", nearest(name, timm.list_models()))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*unexpected keys.*")
            pyramid: nn.Module = timm.create_model(name, features_only=True, pretrained=False, **options)
    except RuntimeError as cause:
        raise EncoderError(f"{name} gives no feature pyramid: {cause}", "choose a model with features_only") from cause
    make_static(pyramid)
    load_pretrained(pyramid, name)
    if str(getattr(pyramid, "output_fmt", "NCHW")).endswith("NHWC"):
        pyramid = ChannelsFirst(pyramid)
    fault = _fault(pyramid)
    if fault and _fault(pad_valid(pyramid)):
        raise EncoderError(
            f"{name} cannot be used as an encoder: {fault}",
            "choose a model that takes images of any size; many transformers take a fixed one",
        )
    return pyramid


def _fault(pyramid: nn.Module) -> str:
    """Returns what is wrong with the maps of a small image; empty if nothing is."""
    channels, strides = pyramid.feature_info.channels(), pyramid.feature_info.reduction()  # type: ignore[operator,union-attr]
    if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
        return f"its maps are 1/{', 1/'.join(map(str, strides))} of the image, expected each half of the one before"
    side_px = PROBE_STEPS * strides[-1]
    image = torch.zeros(1, 3, side_px, side_px, device=next(pyramid.parameters()).device)
    training = pyramid.training
    try:
        with torch.no_grad():
            shapes = [tuple(feature.shape[1:]) for feature in pyramid.eval()(image)]
    except (AssertionError, RuntimeError) as cause:
        return f"on {side_px} x {side_px} px, {str(cause).splitlines()[0]}"
    finally:
        pyramid.train(training)
    expected = [(count, side_px // stride, side_px // stride) for count, stride in zip(channels, strides, strict=True)]
    return "" if shapes == expected else f"the maps of {side_px} x {side_px} px are {shapes}, expected {expected}"
