import copy
from functools import partial

import pytest
import segmentation_models_pytorch as smp
import torch
from fastai.vision import all as fv

from kit.models.pretrained import Source, encoder_source
from kit.models.unet import SCSE, PixelNet, dynamic_unet, split, unet


def build(encoder: str = "test_efficientnet", make=unet, **options) -> PixelNet:
    torch.manual_seed(0)
    with encoder_source(Source(pretrained=False)):
        return make(encoder, **options).eval()


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
    shapes = zip((16, 24, 32, 48, 64), model.strides, strict=True)
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


@pytest.mark.parametrize(
    "options", [{"blur": True}, {"self_attention": True}, {"attention": "scse"}, {"auxiliary": True}, {"n_out": 3}]
)
def test_options_train(options: dict):
    model = build(widths=(16, 8, 8), **options).train()
    logits = model(torch.rand(2, 3, 70, 64) * 255)
    parts = logits if isinstance(logits, tuple) else (logits,)
    assert all(part.shape == (2, options.get("n_out", 2), 70, 64) for part in parts)
    sum(part.mean() for part in parts).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_auxiliary_head_is_seen_by_training_alone():
    model = build(widths=(16, 8, 8), auxiliary=True)
    image = torch.rand(2, 3, 64, 64) * 255
    assert isinstance(model.train()(image), tuple)
    with torch.inference_mode():
        assert model.eval()(image).shape == (2, 2, 64, 64)


def test_scse_is_segmentation_models_scse():
    torch.manual_seed(0)
    theirs, own = smp.base.modules.SCSEModule(64), SCSE(64)
    squeeze, excite = theirs.cSE[1], theirs.cSE[3]
    own.channel[1].load_state_dict(squeeze.state_dict())
    own.channel[3].load_state_dict(excite.state_dict())
    own.spatial.load_state_dict(theirs.sSE[0].state_dict())
    x = torch.randn(2, 64, 9, 7)
    torch.testing.assert_close(own(x), theirs(x))


@pytest.mark.parametrize(("encoder", "skips"), [("test_efficientnet", 4), ("test_resnet", 4), ("test_convnext", 3)])
def test_the_plain_dynamic_unet_finds_every_skip(encoder: str, skips: int):
    """fastai itself finds one skip in an EfficientNet, silently."""
    model = build(encoder, dynamic_unet)
    assert len(model.unet.sfs.hooks) == skips
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 91, 64) * 255).shape == (1, 2, 91, 64)


def test_the_plain_dynamic_unet_reduces_too():
    model = build(make=dynamic_unet, reduce=2)
    assert model.pad_multiple == 64
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 91, 64) * 255).shape == (1, 2, 91, 64)


@pytest.mark.parametrize("make", [unet, dynamic_unet])
def test_a_network_that_has_trained_can_be_copied(make):
    model = build(make=make).train()
    model(torch.rand(2, 3, 64, 64) * 255).mean().backward()
    copy.deepcopy(model)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("encoder", ["test_efficientnet", "tf_efficientnet_lite0", "test_convnext"])
@pytest.mark.parametrize("make", [unet, dynamic_unet])
def test_a_trace_serves_other_sizes(encoder: str, make):
    model = build(encoder, make, **({"widths": (16, 8, 8, 8, 8)} if make is unet else {}))
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.rand(2, 3, 64, 64) * 255, check_trace=False)
        image = torch.rand(1, 3, 96, 160) * 255
        torch.testing.assert_close(traced(image), model(image))


@pytest.mark.parametrize("make", [unet, dynamic_unet])
def test_freeze_leaves_the_encoder_alone_and_unfreeze_trains_it(make):
    learn = fv.Learner(
        fv.DataLoaders([], []),
        build(make=make),
        fv.CrossEntropyLossFlat(axis=1),
        splitter=split,
        opt_func=partial(fv.OptimWrapper, opt=torch.optim.AdamW),
    )
    learn.freeze()
    encoder, rest = split(learn.model)
    # batch norms go on learning in a frozen group: fastai's train_bn
    norms = {id(p) for m in learn.model.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()}
    assert not any(p.requires_grad for p in encoder if id(p) not in norms)
    assert all(p.requires_grad for p in rest)
    learn.unfreeze()
    learn.opt.set_hypers(lr=[1e-4, 1e-2])
    assert all(p.requires_grad for p in learn.model.parameters())
    assert [hyper["lr"] for hyper in learn.opt.hypers] == pytest.approx([1e-4, 1e-2])
