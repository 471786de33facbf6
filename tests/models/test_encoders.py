import pytest
import torch

from kit.errors import EncoderError
from kit.models.encoders import encoder
from kit.models.pretrained import Source, encoder_source


@pytest.fixture(autouse=True)
def random_weights():
    with encoder_source(Source(pretrained=False)):
        yield


@pytest.mark.parametrize(
    ("name", "finest"),
    [
        ("test_efficientnet", 2),
        ("test_convnext", 4),  # stem of stride 4
        ("tf_efficientnet_lite0", 2),  # TensorFlow SAME padding
        ("inception_v4", 2),  # valid padding
        ("inception_resnet_v2", 2),
        ("mambaout_femto", 4),  # channels last
        ("vgg11", 1),
    ],
)
def test_maps_are_exact_fractions_of_the_image(name: str, finest: int):
    pyramid = encoder(name).eval()
    channels, strides = pyramid.feature_info.channels(), pyramid.feature_info.reduction()
    assert strides[0] == finest
    with torch.inference_mode():
        maps = pyramid(torch.zeros(2, 3, 128, 96))
    expected = [(2, c, 128 // stride, 96 // stride) for c, stride in zip(channels, strides, strict=True)]
    assert [tuple(found.shape) for found in maps] == expected


def test_the_trial_leaves_no_trace():
    """A trial in training mode would move the running statistics of batch norms."""
    pyramid = encoder("test_efficientnet")
    assert pyramid.training
    assert all((buffer == 0).all() for name, buffer in pyramid.named_buffers() if name.endswith("running_mean"))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("swin_tiny_patch4_window7_224", "doesn't match model"),
        ("maxvit_tiny_tf_512", "must be divisible by window"),
        ("xcit_nano_12_p8_224", "1/8, 1/8, 1/8"),
        ("inception_v3", r"the maps of 96 x 96 px are .* expected"),
    ],
)
def test_what_is_no_pyramid_for_any_size_is_refused(name: str, fault: str):
    with pytest.raises(EncoderError, match=f"{name} cannot be used as an encoder: .*{fault}") as caught:
        encoder(name)
    assert "any size" in caught.value.hint


def test_unknown_model_offers_the_nearest():
    with pytest.raises(EncoderError, match="no model 'resnet_18'") as caught:
        encoder("resnet_18")
    assert "did you mean" in caught.value.hint
