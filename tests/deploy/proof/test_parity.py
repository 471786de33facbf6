import numpy as np
import pytest
import torch
from deploy_fakes import TinyNet, noise

from kit.deploy.freeze.ensemble import Core, Ensemble
from kit.deploy.proof.parity import Parity, eager_members, eager_probability


@pytest.mark.parametrize("views", ["none", "flips", "d4"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 18), (64, 64), (257, 91)])
def test_the_plain_vote_equals_the_ensemble(views: str, height: int, width: int):
    nets = [TinyNet(1).eval(), TinyNet(2).eval()]
    ensemble = Ensemble([Core(net) for net in nets], views, 16)
    image = noise(height, width)
    with torch.inference_mode():
        expected = ensemble(torch.from_numpy(image).permute(2, 0, 1)[None])[0, 0].numpy()
    np.testing.assert_allclose(eager_probability(nets, image, views, 16), expected, atol=1e-5)


def test_alpha_is_no_building():
    nets, image = [TinyNet(1).eval(), TinyNet(2).eval()], noise(33, 18, 4)
    image[..., 3] = 255
    image[5:9, :, 3] = 0
    votes, opaque = eager_members(nets, image, "flips", 16), eager_members(nets, image[..., :3], "flips", 16)
    assert votes.shape == (2, 33, 18)
    assert (votes[:, 5:9] == 0).all()
    np.testing.assert_array_equal(np.delete(votes, np.s_[5:9], axis=1), np.delete(opaque, np.s_[5:9], axis=1))


@pytest.mark.parametrize(
    ("parity", "holds"),
    [
        (Parity(), True),
        (Parity(9e-4, 999, 1000), True),
        (Parity(2e-3, 1000, 1000), False),
        (Parity(0.0, 998, 1000), False),
        (Parity(float("nan"), 1000, 1000), False),
    ],
)
def test_limits(parity: Parity, holds: bool):
    assert (not parity.fault()) == holds
    assert (not (parity + Parity(1e-6, 5, 5)).fault()) == holds


def test_the_sum_keeps_the_worst():
    both = Parity(0.5, 3, 4) + Parity(0.25, 1, 4)
    assert both == Parity(0.5, 4, 8)
    assert both.equal_masks == 0.5
    assert np.isnan((Parity(float("nan"), 1, 1) + Parity(0.5, 1, 1)).max_abs)
    assert np.isnan((Parity(0.5, 1, 1) + Parity(float("nan"), 1, 1)).max_abs)
