"""Padding that does not depend on the input's size, so that networks can be traced and exported for any size."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import kit.models.pretrained  # noqa: F401 - imports timm first, without its notices

from timm.layers.conv2d_same import Conv2dSame  # isort: skip
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame  # isort: skip
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2dSame  # isort: skip


class StaticConv2d(Conv2dSame):
    """timm's Conv2dSame with the constant padding of `same_padding`; likewise the other layers here."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C_out, H / stride, W / stride)."""
        out: Tensor = nn.Conv2d.forward(self, F.pad(x, same_padding(self)))
        return out


class StaticStdConv2d(StdConv2dSame):
    """With standardised weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C_out, H / stride, W / stride)."""
        out: Tensor = super().forward(F.pad(x, same_padding(self)))
        return out


class StaticScaledStdConv2d(ScaledStdConv2dSame):
    """With standardised, scaled weights (NFNet)."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C_out, H / stride, W / stride)."""
        out: Tensor = super().forward(F.pad(x, same_padding(self)))
        return out


class StaticMaxPool2d(MaxPool2dSame):
    """Max pooling; the padding never wins."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C, H / stride, W / stride)."""
        out: Tensor = nn.MaxPool2d.forward(self, F.pad(x, same_padding(self), value=-float("inf")))
        return out


class StaticAvgPool2d(AvgPool2dSame):
    """Average pooling; the zeros of the padding count, as in timm."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C, H / stride, W / stride)."""
        out: Tensor = nn.AvgPool2d.forward(self, F.pad(x, same_padding(self)))
        return out


STATIC: dict[type[nn.Module], type[nn.Module]] = {
    cls.__mro__[1]: cls
    for cls in (StaticConv2d, StaticStdConv2d, StaticScaledStdConv2d, StaticMaxPool2d, StaticAvgPool2d)
}


def same_padding(layer: Any) -> list[int]:
    """Returns TensorFlow's SAME padding of a layer as `F.pad` takes it: left, right, above, below, px.

    In general it depends on the size of the input, but it is the same for all multiples of the layer's stride. If the
    image is a multiple of the largest stride, no other sizes occur in a pyramid.
    """
    pads: list[int] = []
    for axis in (1, 0):  # F.pad begins with the last
        kernel, stride, dilation = (pair(getattr(layer, key, 1))[axis] for key in ("kernel_size", "stride", "dilation"))
        total = max(dilation * (kernel - 1) + 1 - stride, 0)
        pads += [total // 2, total - total // 2]
    return pads


def make_static(network: nn.Module) -> None:
    """Makes the SAME padding of timm's layers constant, in place; parameters and their names stay.

    timm computes it from the input's size, which takes torch.export minutes or fails.
    """
    for layer in network.modules():
        static = STATIC.get(type(layer))
        if static and getattr(layer, "same_pad", True):
            layer.__class__ = static  # as torch.nn.utils.parametrize does: only `forward` changes
            if hasattr(layer, "same_pad"):
                layer.same_pad = False  # type: ignore[assignment]


def pad_valid(network: nn.Module) -> nn.Module:
    """Pads layers with valid padding, in place, and returns the network: stride 1 keeps a size, stride 2 halves it."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and type(layer) not in STATIC.values():
            kernel, padding = (pair(layer.kernel_size), pair(layer.padding))  # type: ignore[arg-type]
            layer.padding = tuple(p or k // 2 for p, k in zip(padding, kernel, strict=True))
    return network


def pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    """Returns a size of a window as (rows, columns)."""
    return value if isinstance(value, tuple) else (value, value)
