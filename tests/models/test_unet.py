import pytest
import segmentation_models_pytorch as smp
import torch
from torch.utils.flop_counter import FlopCounterMode

from kit.models.encoders import Source, encoder_source
from kit.models.unet import SlimDynamicUnet, split, unet


def build(encoder: str = "test_efficientnet", **options) -> SlimDynamicUnet:
    torch.manual_seed(0)
    with encoder_source(Source(pretrained=False)):
        return unet(encoder, **options).eval()


def gflop(model: torch.nn.Module) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, 512, 512))
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize("size", [(32, 32), (33, 64), (91, 257), (1, 1)])
@pytest.mark.parametrize("reduce", [1, 2])
@pytest.mark.parametrize("encoder", ["test_efficientnet", "test_resnet", "test_convnext"])
def test_logits_have_the_size_of_the_image(encoder: str, reduce: int, size: tuple[int, int]):
    model = build(encoder, widths=(16, 8, 8, 8, 8), reduce=reduce)
    image = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    with torch.inference_mode():
        assert model(image).shape == (2, 2, *size)


@pytest.mark.parametrize(("encoder", "skips"), [("test_efficientnet", 4), ("test_resnet", 4), ("test_convnext", 3)])
def test_every_finer_feature_is_a_skip(encoder: str, skips: int):
    model = build(encoder)
    assert sum(block.norm is not None for block in model.blocks) == skips


def test_a_short_decoder_ends_early_and_enlarges():
    model = build(widths=(16, 8))
    assert model.enlarge == 8
    assert len(model.blocks) == 2


def test_bytes_and_floats_are_the_same_pixels():
    model = build(widths=(16, 8, 8))
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(model(image), model(image.float()))


def test_the_image_is_normalised_inside():
    model = build(widths=(16, 8, 8))
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model((model.mean + model.std).expand(1, 3, 64, 64))
    torch.testing.assert_close(seen[0], torch.ones(1, 3, 64, 64))


def test_reduce_and_enlarge_do_not_shift_the_mask():
    """A network that passes its (reduced) input through gives it back where it was, to a hundredth of a pixel."""
    model = build(widths=(16, 8, 8), reduce=2)
    image = torch.zeros(1, 3, 128, 128)
    image[..., 40:72, 56:80] = 255
    through = torch.nn.functional.avg_pool2d(image[:, :2], model.reduce * 4)
    shapes = zip((16, 24, 32, 48, 64), model._strides, strict=True)
    features = [torch.zeros(1, channels, 64 // stride, 64 // stride) for channels, stride in shapes]
    model.encoder.forward = lambda x: features
    model.head.forward = lambda x: through
    with torch.inference_mode():
        logits = model(image)[0, 0]
    rows, columns = torch.arange(128.0) + 0.5, torch.arange(128.0) + 0.5
    assert float((logits.sum(1) * rows).sum() / logits.sum()) == pytest.approx(56, abs=0.01)
    assert float((logits.sum(0) * columns).sum() / logits.sum()) == pytest.approx(68, abs=0.01)


def test_parameter_groups_are_encoder_and_rest():
    model = build()
    encoder, rest = split(model)
    assert len(encoder) + len(rest) == len(list(model.parameters()))
    assert {id(p) for p in encoder} == {id(p) for p in model.encoder.parameters()}


def test_lite0_costs_less_than_a_plain_unet():
    plain = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=2).eval()
    assert gflop(build("tf_efficientnet_lite0")) <= gflop(plain)


@pytest.mark.parametrize("options", [{"blur": True}, {"self_attention": True}])
def test_options_train(options: dict):
    model = build(widths=(16, 8, 8), **options).train()
    model(torch.rand(2, 3, 64, 64) * 255).mean().backward()
    assert all(p.grad is not None for p in model.parameters())
