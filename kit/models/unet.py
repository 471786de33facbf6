"""The slim DynamicUnet: fastai's decoder pieces on any timm pyramid, at the cost of a plain U-Net."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fastai.layers import BatchNorm, ConvLayer, PixelShuffle_ICNR, SelfAttention
from torch import Tensor, nn

from kit.models.encoders import encoder as build_encoder

RANGE = 255.0  # networks take pixels as they are stored, 0 to 255


class UpBlock(nn.Module):
    """One step up: PixelShuffle (ICNR), the batch-normed skip beside it, two convolutions.

    Args:
        n_in: channels from below.
        n_skip: channels of the skip; 0 for none.
        width: channels that come out.
        blur: blurs the shuffled pixels against checkerboards.
        self_attention: adds a self-attention layer at the end.

    Shape:
        (N, n_in, H, W) and (N, n_skip, 2H, 2W) -> (N, width, 2H, 2W)

    Source:
        fastai.vision.models.unet.UnetBlock, whose width follows its input; here it is given.
    """

    def __init__(self, n_in: int, n_skip: int, width: int, blur: bool = False, self_attention: bool = False) -> None:
        super().__init__()
        self.up = PixelShuffle_ICNR(n_in, width, blur=blur, norm_type=None)
        self.norm = BatchNorm(n_skip) if n_skip else None
        self.convs = nn.Sequential(ConvLayer(width + n_skip, width), ConvLayer(width, width))
        self.attention = SelfAttention(width) if self_attention else nn.Identity()

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """Returns the features one step finer."""
        x = self.up(x)
        if self.norm is not None and skip is not None:
            if x.shape[-2:] != skip.shape[-2:]:  # encoders with valid padding
                x = F.interpolate(x, skip.shape[-2:], mode="nearest")
            x = torch.cat([x, F.relu(self.norm(skip))], dim=1)
        out: Tensor = self.attention(self.convs(x))
        return out


class SlimDynamicUnet(nn.Module):
    """A U-Net whose decoder is measured from the encoder (dynamic) but as wide as told (slim).

    Pixels go in as they are stored; normalisation is inside, so that whoever holds the network needs nothing else.
    fastai's own DynamicUnet makes its decoder as wide as the encoder, which costs 2.5 to 43 times a plain U-Net.

    Args:
        encoder: a timm `features_only` model.
        mean: per channel, 0 to 1, as in timm's `pretrained_cfg`.
        std: likewise.
        n_out: classes.
        widths: channels of the steps up, coarsest first. Fewer steps than the encoder has strides end the decoder
            early; the logits are then enlarged bilinearly.
        reduce: averages `reduce` x `reduce` input pixels first: the same network sees more ground per second.
        blur: see UpBlock.
        self_attention: on the third step, as in fastai.

    Shape:
        (N, 3, H, W) uint8 or float, 0 to 255 -> (N, n_out, H, W) float logits. Sides that are no multiples of
        `pad_multiple` are padded with their edge, and the logits cut.

    Source:
        U-Net (Ronneberger 2015, arXiv 1505.04597); fastai's DynamicUnet; ICNR (Aitken 2017, arXiv 1707.02937).
    """

    mean: Tensor
    std: Tensor
    encoder_name = ""

    def __init__(
        self,
        encoder: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        n_out: int = 2,
        widths: Sequence[int] = (256, 128, 64, 32, 16),
        reduce: int = 1,
        blur: bool = False,
        self_attention: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.reduce = reduce
        channels: list[int] = encoder.feature_info.channels()  # type: ignore[operator,union-attr]
        strides: list[int] = encoder.feature_info.reduction()  # type: ignore[operator,union-attr]
        self.register_buffer("mean", RANGE * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", RANGE * torch.tensor(std).view(1, 3, 1, 1))
        stride = strides[-1]
        self.pad_multiple = stride * reduce
        self.neck = ConvLayer(channels[-1], widths[0], ks=1)
        skips = dict(zip(strides[:-1], channels[:-1], strict=True))
        self.skip_strides: list[int] = []
        blocks, n_in = [], widths[0]
        for step, width in enumerate(widths):
            stride //= 2
            self.skip_strides.append(stride)
            blocks.append(UpBlock(n_in, skips.get(stride, 0), width, blur, self_attention and step == 2))
            n_in = width
            if stride == 1:
                break
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(n_in, n_out, 1)
        self.enlarge = stride * reduce
        self._strides = strides

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits."""
        height, width = x.shape[-2:]
        below, right = -height % self.pad_multiple, -width % self.pad_multiple
        if below or right:
            x = F.pad(x.float(), (0, right, 0, below), mode="replicate")
        x = (x.float() - self.mean) / self.std
        if self.reduce > 1:
            x = F.avg_pool2d(x, self.reduce)
        features = self.encoder(x)
        by_stride = dict(zip(self._strides, features, strict=True))
        x = self.neck(features[-1])
        for block, stride in zip(self.blocks, self.skip_strides, strict=True):
            x = block(x, by_stride.get(stride))
        logits: Tensor = self.head(x).float().contiguous()  # two planes: enlarging them channels_last is twice as slow
        if self.enlarge > 1:
            logits = F.interpolate(logits, scale_factor=float(self.enlarge), mode="bilinear", align_corners=False)
        return logits[..., :height, :width] if below or right else logits


def unet(
    encoder: str,
    n_out: int = 2,
    widths: Sequence[int] = (256, 128, 64, 32, 16),
    reduce: int = 1,
    blur: bool = False,
    self_attention: bool = False,
) -> SlimDynamicUnet:
    """Returns a slim DynamicUnet over a timm encoder with the weights of the current `encoder_source`.

    Args: as for `SlimDynamicUnet`; `encoder` is a timm model name.

    Raises:
        EncoderError: see `kit.models.encoders.encoder`.
    """
    pyramid = build_encoder(encoder)
    config: Any = pyramid.pretrained_cfg
    model = SlimDynamicUnet(pyramid, config["mean"], config["std"], n_out, widths, reduce, blur, self_attention)
    model.encoder_name = encoder
    return model


def split(model: nn.Module) -> list[list[nn.Parameter]]:
    """Returns the parameter groups for discriminative learning rates: the encoder, and the rest."""
    own = {id(p) for p in model.encoder.parameters()}  # type: ignore[union-attr]
    return [list(model.encoder.parameters()), [p for p in model.parameters() if id(p) not in own]]  # type: ignore[union-attr]
