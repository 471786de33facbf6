"""U-Nets over timm encoders: a slim DynamicUnet, and fastai's own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from fastai.layers import BatchNorm, ConvLayer, PixelShuffle_ICNR, SelfAttention
from fastai.vision.models.unet import DynamicUnet
from torch import Tensor, nn

from kit.models.encoders import encoder as build_encoder
from kit.models.targets import at_least_float32

__all__ = ["Attention", "PixelNet", "dynamic_unet", "split", "unet"]

RANGE = 255.0  # networks take pixels of 0 to 255
WIDTHS = (256, 128, 64, 32, 16)  # of the decoder, coarsest first, as in segmentation_models_pytorch
Attention = Literal["none", "scse"]


class SCSE(nn.Module):
    """Concurrent channel and spatial squeeze and excitation.

    Args:
        width: channels.
        reduction: the channel gate squeezes to width / reduction, at least 4.

    Shape:
        (N, width, H, W) -> (N, width, H, W)

    Source:
        Roy 2018, arXiv 1803.02579; the gated maps are added, as in segmentation_models_pytorch.
    """

    def __init__(self, width: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = max(4, width // reduction)
        self.channel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, width, 1)
        )
        self.spatial = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features, gated."""
        gates: Tensor = self.channel(x).sigmoid() + self.spatial(x).sigmoid()
        return x * gates


class UpBlock(nn.Module):
    """A step of the decoder: PixelShuffle (ICNR), concatenation with the normalised skip, two convolutions.

    Args:
        n_in: input channels.
        n_skip: channels of the skip; 0 for none.
        width: output channels.
        attention: `scse` gates the concatenated features and the result.
        blur: blur after PixelShuffle, against checkerboard patterns.
        self_attention: adds a self-attention layer at the end.

    Shape:
        (N, n_in, H, W) and (N, n_skip, 2H, 2W) -> (N, width, 2H, 2W)

    Source:
        fastai.vision.models.unet.UnetBlock, whose width follows from its input.
    """

    def __init__(
        self,
        n_in: int,
        n_skip: int,
        width: int,
        attention: Attention = "none",
        blur: bool = False,
        self_attention: bool = False,
    ) -> None:
        super().__init__()
        self.up = PixelShuffle_ICNR(n_in, width, blur=blur, norm_type=None)
        self.norm = BatchNorm(n_skip) if n_skip else None
        self.joined = SCSE(width + n_skip) if attention == "scse" and n_skip else nn.Identity()
        self.convs = nn.Sequential(ConvLayer(width + n_skip, width), ConvLayer(width, width))
        self.result = nn.Sequential(
            SCSE(width) if attention == "scse" else nn.Identity(),
            SelfAttention(width) if self_attention else nn.Identity(),
        )

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """Returns features at twice the resolution."""
        x = self.up(x)
        if self.norm is not None and skip is not None:
            x = torch.cat([x, F.relu(self.norm(skip))], dim=1)
        out: Tensor = self.result(self.convs(self.joined(x)))
        return out


class PixelNet(nn.Module, ABC):
    """Base class of kit's networks: from pixels of 0 to 255 to logits of the same size.

    Padding, reduction and normalisation are part of the network. Subclasses implement `logits`.

    Args:
        pyramid: a timm `features_only` model, as `kit.models.encoders.encoder` returns it.
        reduce: averages blocks of `reduce` x `reduce` pixels first: faster, at a coarser resolution.
        encoder_name: stored in settings and cards.

    Shape:
        (N, 3, H, W) uint8 or float, 0 to 255 -> (N, n_out, H, W) float32 logits. Sides that are not multiples of
        `pad_multiple` are padded with their edge values. Two outputs are classes (background, building), one is the
        footprint, three are footprint, boundary and contact.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, pyramid: nn.Module, reduce: int = 1, encoder_name: str = "") -> None:
        super().__init__()
        config: Any = pyramid.pretrained_cfg
        self.strides: list[int] = pyramid.feature_info.reduction()  # type: ignore[operator,union-attr]
        self.pad_multiple = self.strides[-1] * reduce
        self.reduce, self.encoder_name = reduce, encoder_name
        self.register_buffer("mean", RANGE * torch.tensor(config["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", RANGE * torch.tensor(config["std"]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Any:
        """Returns logits; in training, a network with an auxiliary head returns (logits, auxiliary logits)."""
        height, width = x.shape[-2:]
        below, right = -height % self.pad_multiple, -width % self.pad_multiple
        if below or right:
            x = F.pad(x.float(), (0, right, 0, below), mode="replicate")
        x = x.float()
        if self.reduce > 1:
            x = F.avg_pool2d(x, self.reduce)
        logits = self.logits((x - self.mean) / self.std)
        if not (below or right):
            return logits
        if isinstance(logits, tuple):
            return tuple(part[..., :height, :width] for part in logits)
        return logits[..., :height, :width]

    @abstractmethod
    def logits(self, x: Tensor) -> Any:
        """Returns logits at full size for (N, 3, H, W) float that are padded, reduced and normalised."""


@dataclass(frozen=True)
class Decoder:
    """The decoder of a `SlimDynamicUnet`."""

    # channels of the steps up, coarsest first. Fewer steps than the encoder has strides end the decoder early; the
    # logits are then enlarged bilinearly
    widths: Sequence[int] = WIDTHS
    attention: Attention = "none"  # `scse` in every step, as the seed's EfficientNet-B4
    blur: bool = False  # see UpBlock
    self_attention: bool = False  # on the third step, as in fastai
    # a second head on the first step's features, which only training uses (`kit.models.losses.Auxiliary`)
    auxiliary: bool = False


class SlimDynamicUnet(PixelNet):
    """A U-Net that adapts to the encoder's maps and has a decoder of given widths.

    The decoder of fastai's DynamicUnet is as wide as the encoder, which costs 2.5 to 43 times as much as a plain U-Net.

    Args:
        pyramid, n_out, reduce, encoder_name: see PixelNet.
        decoder: widths and blocks.

    Source:
        U-Net (Ronneberger 2015, arXiv 1505.04597); fastai's DynamicUnet; ICNR (Aitken 2017, arXiv 1707.02937);
        auxiliary head: PSPNet (Zhao 2017, arXiv 1612.01105).
    """

    def __init__(
        self,
        pyramid: nn.Module,
        n_out: int = 2,
        decoder: Decoder | None = None,
        reduce: int = 1,
        encoder_name: str = "",
    ) -> None:
        super().__init__(pyramid, reduce, encoder_name)
        decoder = decoder or Decoder()
        widths = decoder.widths
        self.encoder = pyramid
        channels: list[int] = pyramid.feature_info.channels()  # type: ignore[operator,union-attr]
        skips = dict(zip(self.strides[:-1], channels[:-1], strict=True))
        stride = self.strides[-1]
        self.neck = ConvLayer(channels[-1], widths[0], ks=1)
        self.skip_strides: list[int] = []
        blocks, n_in = [], widths[0]
        for step, width in enumerate(widths):
            stride //= 2
            self.skip_strides.append(stride)
            self_attention = decoder.self_attention and step == 2
            blocks.append(UpBlock(n_in, skips.get(stride, 0), width, decoder.attention, decoder.blur, self_attention))
            n_in = width
            if stride == 1:
                break
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(n_in, n_out, 1)
        self.enlarge = stride * reduce
        self.auxiliary = nn.Conv2d(widths[0], n_out, 1) if decoder.auxiliary else None

    def logits(self, x: Tensor) -> Any:
        """Returns logits, or (logits, auxiliary logits), see PixelNet."""
        features = self.encoder(x)
        by_stride = dict(zip(self.strides, features, strict=True))
        steps = [self.neck(features[-1])]
        for block, stride in zip(self.blocks, self.skip_strides, strict=True):
            steps.append(block(steps[-1], by_stride.get(stride)))
        logits = enlarged(self.head(steps[-1]), self.enlarge)
        if self.auxiliary is None or not self.training:
            return logits
        return logits, enlarged(self.auxiliary(steps[1]), self.skip_strides[0] * self.reduce)


def enlarged(logits: Tensor, factor: int) -> Tensor:
    """Returns logits upsampled bilinearly by a factor, in at least float32."""
    logits = at_least_float32(logits).contiguous()  # few channels: channels_last would be twice as slow
    if factor == 1:
        return logits
    return F.interpolate(logits, scale_factor=float(factor), mode="bilinear", align_corners=False)


class _Tap(nn.Module):
    """One map of a pyramid as a layer of a Sequential; the first tap runs the pyramid for all."""

    def __init__(self, place: int, maps: list[Tensor], pyramid: nn.Module | None = None) -> None:
        super().__init__()
        self.place, self.maps, self.pyramid = place, maps, pyramid

    def forward(self, x: Tensor) -> Tensor:
        """Returns map `place`."""
        if self.pyramid is not None:
            self.maps[:] = self.pyramid(x)
        return self.maps[self.place]


class PlainDynamicUnet(PixelNet):
    """fastai's DynamicUnet, unchanged, over a timm pyramid.

    fastai takes skips from the top-level children of an encoder, of which most timm models offer few or none. Here each
    map of the pyramid is such a child.

    Args:
        pyramid, n_out, reduce, encoder_name: see PixelNet.
        options: for `fastai.vision.models.unet.DynamicUnet`, such as `blur`, `self_attention`, `last_cross`.
    """

    def __init__(
        self, pyramid: nn.Module, n_out: int = 2, reduce: int = 1, encoder_name: str = "", **options: Any
    ) -> None:
        super().__init__(pyramid, reduce, encoder_name)
        self.maps: list[Tensor] = []
        taps = [_Tap(place, self.maps, None if place else pyramid) for place in range(len(self.strides))]
        side_px = 4 * self.strides[-1]
        self.unet = DynamicUnet(nn.Sequential(*taps), n_out, (side_px, side_px), **options)
        self.unet.layers[-1] = nn.Identity()  # not ToTensorBase: torch.export does not support tensor subclasses

    @property
    def encoder(self) -> nn.Module:
        """The pyramid, as taps."""
        taps: nn.Module = self.unet.layers[0]
        return taps

    def logits(self, x: Tensor) -> Any:
        """Returns logits, see PixelNet."""
        logits = enlarged(self.unet(x), self.reduce)
        self.maps.clear()  # a network with stored activations cannot be copied
        for hook in self.unet.sfs:
            hook.stored = None
        return logits


def unet(
    encoder: str,
    n_out: int = 2,
    widths: Sequence[int] = WIDTHS,
    reduce: int = 1,
    attention: Attention = "none",
    blur: bool = False,
    self_attention: bool = False,
    auxiliary: bool = False,
) -> SlimDynamicUnet:
    """Returns a slim DynamicUnet over a timm encoder with the weights of the current `encoder_source`.

    Args: as for `SlimDynamicUnet` and `Decoder`; `encoder` is a timm model name.

    Raises:
        EncoderError: see `kit.models.encoders.encoder`.
    """
    decoder = Decoder(widths, attention, blur, self_attention, auxiliary)
    return SlimDynamicUnet(build_encoder(encoder), n_out, decoder, reduce, encoder)


def dynamic_unet(encoder: str, n_out: int = 2, reduce: int = 1, **options: Any) -> PlainDynamicUnet:
    """Returns fastai's own DynamicUnet over a timm encoder: 2.5 to 43 times the cost of a plain U-Net.

    Args: as for `PlainDynamicUnet`; `encoder` is a timm model name.

    Raises:
        EncoderError: see `kit.models.encoders.encoder`.
    """
    return PlainDynamicUnet(build_encoder(encoder), n_out, reduce, encoder, **options)


def split(model: PixelNet) -> list[list[nn.Parameter]]:
    """Returns the parameter groups for discriminative learning rates and `freeze`: the encoder, and the rest."""
    encoder = list(model.encoder.parameters())  # type: ignore[union-attr]
    own = {id(p) for p in encoder}
    return [encoder, [p for p in model.parameters() if id(p) not in own]]
