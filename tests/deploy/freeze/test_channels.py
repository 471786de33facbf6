"""Networks that predict layers: one more method, and every other one as before."""

from pathlib import Path

import numpy as np
import pytest
import torch
from deploy_fakes import ODD, TinyNet, noise, record

from kit.deploy.engine.backends import NetworkSetting
from kit.deploy.engine.predict import predict_channels, predict_image
from kit.deploy.engine.tuning import tuned
from kit.deploy.freeze.ensemble import freeze
from kit.deploy.proof.parity import eager_members, mean_vote
from kit.deploy.weights.card import Splitting
from kit.deploy.weights.load import load_weights
from kit.pipeline.export import ExportRequest, export_ensemble

pytestmark = pytest.mark.usefixtures("one_thread")
NETS = [TinyNet(1, channels=3), TinyNet(2, channels=3)]


def test_the_channels_are_the_vote_of_every_layer(tmp_path: Path):
    splitting = Splitting(0.4, 1.0, 0.5, 0.6)
    request = ExportRequest("t", "tiny", "d4", 0.5, 0.15, [noise(40, 48)], ODD[:2], splitting=splitting, weights=(1, 3))
    exported = export_ensemble(tmp_path, [net.eval() for net in NETS], [record(0), record(1)], request)
    weights = load_weights(exported.path)
    assert weights.card.channels == ("footprint", "boundary", "contact")
    assert weights.card.splitting == splitting
    image = noise(50, 61, 4)
    image[:9, ..., 3], image[9:, ..., 3] = 0, 255
    channels = predict_channels(weights, image)
    assert channels.shape == (3, 50, 61)
    assert not channels[:, :9].any()
    np.testing.assert_array_equal(channels[0], predict_image(weights, image))
    for layer in range(3):
        eager = mean_vote(eager_members([net.eval() for net in NETS], image, "d4", 16, layer), (0.25, 0.75))
        np.testing.assert_allclose(channels[layer], eager, atol=1e-5)
    fast = tuned(weights, [NetworkSetting("packed", views=4), NetworkSetting("channels_last")])
    np.testing.assert_allclose(predict_channels(fast, image), channels, atol=1e-5)
    np.testing.assert_allclose(predict_image(fast, image), channels[0], atol=1e-5)
    assert not predict_channels(weights, np.zeros((5, 6, 3), np.uint8)).any()


def test_where_one_network_has_no_layers_the_file_has_no_channels():
    module = freeze([net.eval() for net in (NETS[0], TinyNet(3))], "none", 16)
    assert not hasattr(module, "channels")
    assert module.members(torch.zeros(1, 3, 20, 20, dtype=torch.uint8)).shape == (1, 2, 20, 20)
