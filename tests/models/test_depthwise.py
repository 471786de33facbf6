"""Depthwise convolutions with the fast backward pass are those of torch."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit.models import depthwise
from kit.models.depthwise import depthwise_conv2d, depthwise_layers, fast_backward
from kit.models.encoders import encoder
from kit.models.pretrained import Source, encoder_source


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (7, 7), (5, 3), (3, 4)], ids=str)
def test_gradients_are_those_of_torch(kernel: tuple[int, int]):
    torch.manual_seed(0)
    for stride, pad, multiplier, height in product([(1, 1), (2, 2), (2, 1)], (0, 1, 3), (1, 2), (9, 12)):
        x = torch.randn(2, 4, height, 11, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(4 * multiplier, 1, *kernel, dtype=torch.float64, requires_grad=True)
        x.requires_grad_()
        out, expected = depthwise_conv2d(x, weight, stride, (pad, pad)), F.conv2d(x, weight, None, stride, pad, 1, 4)
        assert torch.equal(out, expected)
        gradient = torch.randn_like(out)
        for one, other in zip(*(torch.autograd.grad(y, (x, weight), gradient) for y in (out, expected)), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16(stride: int):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 16, 12, 12), torch.randn(16, 1, 5, 5)
    x, weight = (part.bfloat16().requires_grad_() for part in (x, weight))
    out = depthwise_conv2d(x, weight, (stride, stride), (2, 2))
    gradient = torch.randn_like(out)
    found = torch.autograd.grad(out, (x, weight), gradient)
    exact = [part.detach().float().requires_grad_() for part in (x, weight)]
    expected = torch.autograd.grad(F.conv2d(*exact, None, stride, 2, 1, 16), exact, gradient.float())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other, atol=0.05, rtol=0.01)


def test_only_what_is_asked_is_computed():
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(4, 1, 5, 5, requires_grad=True)
    depthwise_conv2d(x, weight, (1, 1), (2, 2)).sum().backward()
    assert (x.grad, weight.grad.shape) == (None, weight.shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("autocast", [False, True])
def test_networks_train_the_same(name: str, autocast: bool, monkeypatch: pytest.MonkeyPatch):
    """Kernels of 5 and 7 columns, strides, biases, TensorFlow's padding."""
    calls = []
    monkeypatch.setattr(
        depthwise, "depthwise_conv2d", lambda *given: (calls.append(given), depthwise_conv2d(*given))[1]
    )
    torch.manual_seed(0)
    with encoder_source(Source(pretrained=False)):
        model = encoder(name).train()
    image, gradients = torch.randn(2, 3, 64, 64), []
    for fast in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if fast:
                with fast_backward(model):
                    maps = model(image)
            else:
                maps = model(image)
        sum(part.float().square().mean() for part in maps).backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]))
    assert calls
    assert not [layer for layer in depthwise_layers(model) if "_conv_forward" in vars(layer)]
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert difference < (0.1 if autocast else 1e-4)


def test_what_it_cannot_compute_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(depthwise, "depthwise_conv2d", None)
    layers = [
        nn.Conv2d(4, 4, 5, padding=2, groups=4, padding_mode="reflect"),
        nn.Conv2d(4, 4, 5, padding="same", groups=4),
        nn.Conv2d(4, 4, 5, dilation=2, groups=4),
        nn.Conv2d(4, 8, 5, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 5),
    ]
    model = nn.ModuleList(layers)
    with fast_backward(model):
        for layer in layers:
            layer(torch.zeros(1, 4, 16, 16))
