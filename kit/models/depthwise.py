"""Depthwise convolutions whose backward pass is fast on CPUs.

oneDNN (3.11) has compiled kernels for the gradient of depthwise weights up to 3 columns wide, and in bfloat16 for that
of the input at stride 1 alone. Elsewhere it takes a reference kernel: of (8, 1152, 8, 8) with a 5 x 5 kernel the
gradient of the weights takes 5 ms in float32 and 19 ms in bfloat16, of its columns 0 to 2 and 3 to 4 0.5 and 0.3 ms.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["depthwise_conv2d", "depthwise_layers", "fast_backward"]

COLUMNS = 3  # of a kernel, that compiled kernels take


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.groups = stride, padding, groups
        return F.conv2d(x, weight, None, stride, padding, 1, groups)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        own = [_input_gradient, _weight_gradient]
        needed = zip(ctx.needs_input_grad[:2], own, strict=True)
        gradients = [function(ctx, gradient, x, weight) if need else None for need, function in needed]
        return (*gradients, None, None, None)


def _input_gradient(ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    dtype = torch.float32 if x.dtype == torch.bfloat16 and max(ctx.stride) > 1 else x.dtype
    shape = torch.empty_like(x, dtype=dtype)  # its values do not matter
    return _gradient(ctx, gradient.to(dtype), shape, weight.to(dtype), ctx.padding, 0).to(x.dtype)


def _weight_gradient(ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    columns, (rows_pad, pad) = weight.shape[3], ctx.padding
    at_once = COLUMNS if x.shape[3] >= columns else columns  # of narrow maps, some columns meet zeros alone
    parts = []
    for first in range(0, columns, at_once):
        part = weight[..., first : first + at_once]
        end = first + (gradient.shape[3] - 1) * ctx.stride[1] + part.shape[3]  # of the padded columns that it meets
        sides = (pad - first, end - pad - x.shape[3])
        met = F.pad(x, sides) if any(sides) else x
        parts.append(_gradient(ctx, gradient, met, part.contiguous(), [rows_pad, 0], 1))
    return torch.cat(parts, dim=3)


def _gradient(ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, padding: list[int], of: int) -> Tensor:
    """Returns the gradient of the input (0) or of the weights (1)."""
    asked = [of == 0, of == 1, False]
    gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, ctx.stride, padding, [1, 1], False, [0, 0], ctx.groups, asked
    )
    return gradients[of]


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Returns `torch.nn.functional.conv2d` of depthwise weights, with the same gradients.

    Args:
        x: float (N, C, H, W).
        weight: float (C x multiplier, 1, rows, columns).
        stride: in rows and columns.
        padding: zeros on each side, in rows and columns.
    """
    out: Tensor = _DepthwiseConv2d.apply(x, weight, list(stride), list(padding), x.shape[1])
    return out


def depthwise_layers(model: nn.Module) -> list[nn.Conv2d]:
    """Returns the depthwise convolutions of a network."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    return [layer for layer in layers if layer.groups == layer.in_channels > 1]


@contextmanager
def fast_backward(model: nn.Module) -> Iterator[None]:
    """Lets the depthwise convolutions of a network use `depthwise_conv2d` within the block, where it is faster."""
    layers: list[Any] = [layer for layer in depthwise_layers(model) if _is_slow(layer)]
    for layer in layers:
        layer._conv_forward = partial(_conv_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer._conv_forward


def _is_slow(layer: nn.Conv2d) -> bool:
    plain = layer.dilation == (1, 1) and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple)
    return plain and (layer.kernel_size[1] > COLUMNS or max(layer.stride) > 1)


def _conv_forward(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Stands for `nn.Conv2d._conv_forward`."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    out = depthwise_conv2d(x, weight, layer.stride, layer.padding)
    return out if bias is None else out + bias[:, None, None]
