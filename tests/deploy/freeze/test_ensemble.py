import pytest
import torch
from deploy_fakes import TinyNet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kit.deploy.freeze.ensemble import VIEWS, Core, Ensemble, freeze, portable, unview, view
from kit.errors import WeightsError


@pytest.fixture(scope="module")
def frozen():
    return freeze([portable(TinyNet(1)), portable(TinyNet(2))], "d4", 16)


@given(code=st.integers(0, 7), n=st.integers(1, 2), height=st.integers(1, 7), width=st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_a_view_and_its_inverse_is_the_identity(code: int, n: int, height: int, width: int):
    x = torch.arange(n * 2 * height * width).view(n, 2, height, width)
    assert torch.equal(unview(view(x, code), code), x)


def test_the_eight_views_differ():
    x = torch.arange(9).view(1, 1, 3, 3)
    assert len({tuple(view(x, code).flatten().tolist()) for code in VIEWS["d4"]}) == 8


def test_unknown_views():
    with pytest.raises(WeightsError, match="no views 'flip'") as error:
        Ensemble([Core(TinyNet())], "flip", 16)
    assert "flips" in error.value.hint


def test_soft_vote_is_the_mean_over_views_and_members():
    nets = [TinyNet(1).eval(), TinyNet(2).eval()]
    x = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    with torch.inference_mode():
        flipped = [net(x.flip(3)).softmax(1).flip(3)[:, 1] for net in nets]
        plain = [net(x).softmax(1)[:, 1] for net in nets]
        both = [net(x.flip(2, 3)).softmax(1).flip(2, 3)[:, 1] for net in nets]
        upside = [net(x.flip(2)).softmax(1).flip(2)[:, 1] for net in nets]
        votes = torch.stack([torch.stack(v).mean(0) for v in zip(plain, flipped, upside, both, strict=True)], dim=1)
        ensemble = Ensemble([Core(net) for net in nets], "flips", 16)
        torch.testing.assert_close(ensemble.members(x), votes)
        torch.testing.assert_close(ensemble(x), votes.mean(1, keepdim=True))


def test_votes_count_by_weight():
    nets, weights = [TinyNet(seed).eval() for seed in range(3)], (0.5, 0.3, 0.2)
    x = torch.randint(0, 256, (2, 4, 33, 48), dtype=torch.uint8)
    frozen = freeze([portable(net) for net in nets], "flips", 16, weights)
    equal = freeze([portable(net) for net in nets], "flips", 16)
    with torch.inference_mode():
        members = frozen.members(x)
        assert torch.equal(members, equal.members(x))  # unweighted
        expected = (members * torch.tensor(weights).view(1, 3, 1, 1)).sum(1, keepdim=True)
        for module in (frozen, Ensemble([Core(net) for net in nets], "flips", 16, weights)):
            torch.testing.assert_close(module(x), expected, atol=1e-6, rtol=0)
            assert torch.equal(module.probability(x), module(x))
            assert torch.equal(module.mask(x), (module(x) > 0.5).byte())
        torch.testing.assert_close(equal(x), members.mean(1, keepdim=True), atol=0, rtol=0)
        certain = Ensemble([], "none", 16, (0.1, 0.2, 0.7)).vote(torch.ones(1, 3, 2, 2))
        assert certain.max() <= 1
    assert "weight" not in equal.code


def test_d4_does_not_depend_on_the_orientation():
    ensemble = Ensemble([Core(TinyNet(1).eval())], "d4", 16)
    x = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    with torch.inference_mode():
        expected = ensemble(x)
        for code in VIEWS["d4"]:
            torch.testing.assert_close(unview(ensemble(view(x, code)), code), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("n", "height", "width"),
    [(1, 32, 32), (3, 33, 33), (1, 64, 64), (1, 257, 91), (3, 1, 1), (1, 1, 40), (2, 40, 1), (0, 32, 32)],
)
@pytest.mark.parametrize("channels", [3, 4])
def test_any_size_and_batch(frozen, n: int, height: int, width: int, channels: int):
    x = torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8)
    eager = Ensemble([Core(TinyNet(1).eval()), Core(TinyNet(2).eval())], "d4", 16)
    with torch.inference_mode():
        probability, mask, members = frozen(x), frozen.mask(x), frozen.members(x)
        torch.testing.assert_close(probability, eager(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(frozen(x.float()), probability, atol=0, rtol=0)
    assert (probability.shape, probability.dtype) == ((n, 1, height, width), torch.float32)
    assert (mask.shape, mask.dtype) == ((n, 1, height, width), torch.uint8)
    assert (members.shape, members.dtype) == ((n, 2, height, width), torch.float32)
    assert torch.equal(frozen.probability(x), probability)
    assert torch.equal(mask, (probability > 0.5).byte())


def test_alpha_zero_is_probability_zero(frozen):
    x = torch.randint(1, 256, (1, 4, 20, 30), dtype=torch.uint8)
    x[:, 3, :, :10] = 0
    with torch.inference_mode():
        members = frozen.members(x)
        opaque = frozen.members(x[:, :3])
    assert members[..., :10].abs().max() == 0
    assert torch.equal(members[..., 10:], opaque[..., 10:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats(frozen, dtype: torch.dtype):
    x = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(frozen(x.to(dtype)), frozen(x))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 32, 32), "got 3 dimensions"),
        (torch.zeros(1, 32, 32, 3), "got 32"),
        (torch.zeros(1, 1, 32, 32), r"expected 3 \(RGB\) or 4 \(RGBA\) channels in \(N, C, H, W\), got 1"),
        (torch.zeros(1, 3, 0, 32), "got 32 x 0"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), r"expected uint8 or float in 0\.\.255, got"),
    ],
)
def test_wrong_input_says_what_was_expected(frozen, x: torch.Tensor, message: str):
    with pytest.raises(torch.jit.Error, match=message):
        frozen(x)
    with pytest.raises(ValueError, match=message):
        Ensemble([nn.Identity()], "none", 16)(x)


def test_repeated_calls_are_bit_equal(frozen):
    x = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    with torch.inference_mode():
        first, *others = [frozen(x) for _ in range(5)]
    assert all(torch.equal(first, other) for other in others)
