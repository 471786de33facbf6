import pytest
import timm
import torch
from timm import layers
from timm.layers.pool2d_same import MaxPool2dSame
from torch import nn

from kit.models.encoders import encoder
from kit.models.padding import STATIC, make_static, same_padding
from kit.models.pretrained import Source, encoder_source

SAME_LAYERS = {
    "odd": lambda: layers.Conv2dSame(4, 4, 5, stride=2),
    "even": lambda: layers.Conv2dSame(4, 4, (4, 2), stride=(4, 1), bias=False),
    "dilated": lambda: layers.Conv2dSame(4, 4, 3, stride=2, dilation=(3, 1), groups=2),
    "point": lambda: layers.Conv2dSame(4, 4, 1, stride=2),
    "standardised": lambda: layers.StdConv2dSame(4, 4, 3, stride=2),
    "scaled": lambda: layers.ScaledStdConv2dSame(4, 4, 3, stride=2),
    "scaled, static": lambda: layers.ScaledStdConv2dSame(4, 4, 3, stride=1),
    "max": lambda: MaxPool2dSame(3, 2),
    "dilated max": lambda: MaxPool2dSame(2, 2, dilation=2),
    "mean": lambda: layers.AvgPool2dSame(3, 2),
    "mean of the image": lambda: layers.AvgPool2dSame(3, 2, count_include_pad=False),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", SAME_LAYERS)
def test_static_padding_equals_timms_at_multiples(name: str):
    layer = nn.Sequential(SAME_LAYERS[name]())
    xs = [torch.randn(2, 4, 4 * high, 4 * wide) - 3 for high, wide in ((1, 1), (1, 3), (5, 4), (8, 7))]
    expected = [layer(x) for x in xs]
    keys = list(layer.state_dict())
    make_static(layer)
    for x, was in zip(xs, expected, strict=True):
        assert torch.equal(layer(x), was)
    assert list(layer.state_dict()) == keys
    with torch.no_grad():
        odd = torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 12, 8)
        traced = torch.jit.trace(layer, odd[0])
        assert traced(odd[1]).shape == layer(odd[1]).shape


def test_padding_of_tensorflow():
    assert same_padding(nn.Conv2d(1, 1, 3, stride=2)) == [0, 1, 0, 1]
    assert same_padding(nn.Conv2d(1, 1, (5, 3), stride=2, dilation=(1, 2))) == [1, 2, 1, 2]
    assert same_padding(nn.MaxPool2d((2, 3), 4)) == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_b0", "tf_mixnet_s"])
def test_an_encoder_equals_timms_own(name: str):
    with encoder_source(Source(pretrained=False)):
        pyramid = encoder(name).eval()
    assert not {type(layer) for layer in pyramid.modules()} & set(STATIC)
    assert {type(layer) for layer in pyramid.modules()} & set(STATIC.values())
    own = timm.create_model(name, features_only=True, pretrained=False).eval()
    own.load_state_dict(pyramid.state_dict())
    with torch.inference_mode():
        for size in ((32, 32), (64, 96), (160, 32)):
            x = torch.randn(1, 3, *size)
            for made, expected in zip(pyramid(x), own(x), strict=True):
                assert torch.equal(made, expected)


@pytest.mark.slow  # the one pyramid of timm that pools with SAME padding has 80 million parameters
def test_valid_and_same_padding_in_one_network():
    with encoder_source(Source(pretrained=False)):
        pyramid = encoder("pnasnet5large").eval()
    own = timm.create_model("pnasnet5large", features_only=True, pretrained=False).eval()
    own.load_state_dict(pyramid.state_dict())
    own.get_submodule("body.conv_0.conv").padding = (1, 1)
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        for made, expected in zip(pyramid(x), own(x), strict=True):
            assert torch.equal(made, expected)
