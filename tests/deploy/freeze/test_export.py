import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from deploy_fakes import TinyNet, export_tiny, left_in, noise, record
from torch import Tensor, nn

from kit.deploy.proof.verify import verify
from kit.deploy.trust.zip_records import read_extra
from kit.deploy.weights import torchscript
from kit.deploy.weights.card import Card
from kit.deploy.weights.load import load_weights
from kit.errors import WeightsError
from kit.pipeline.export import Exported, ExportRequest, export_ensemble
from kit.system.files import sha256_of

ALONE = """
import sys, torch
weights = torch.jit.load(sys.argv[1], map_location="cpu")
image = torch.arange(1 * 4 * 33 * 20).remainder(256).to(torch.uint8).view(1, 4, 33, 20)
assert weights(image).shape == weights.mask(image).shape == (1, 1, 33, 20)
assert weights.members(image).shape == (1, 2, 33, 20)
assert not {"kit", "fastai", "timm"} & set(sys.modules)
print("alone")
"""


class Branching(TinyNet):
    """A size branch that a trace bakes in."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if x.shape[2] == 32 else -logits


class OnItsDevice(TinyNet):
    """Makes a tensor on the device that the trace happens to run on."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.arange(x.shape[3], device=x.device)


def test_the_file_loads_with_torch_alone(tiny_weights: Exported, tmp_path: Path):
    run = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(tiny_weights.path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.stdout == "alone\n", run.stderr


def test_card_inside_and_beside(tiny_weights: Exported):
    inside = read_extra(tiny_weights.path, "card.json")
    beside = tiny_weights.path.with_suffix(".json").read_text()
    assert Card.from_json(inside or "") == tiny_weights.card == Card.from_json(beside)
    assert sha256_of(tiny_weights.path) in beside
    assert tiny_weights.card.pad_multiple == 16
    assert tiny_weights.card.views == "flips"


def test_the_file_holds_no_path_of_this_machine(tiny_weights: Exported):
    data = tiny_weights.path.read_bytes()
    assert str(Path(__file__).parents[3]).encode() not in data
    assert sys.prefix.encode() not in data


def test_the_loaded_file_says_what_was_expected(tiny_weights: Exported):
    with pytest.raises(torch.jit.Error, match=r"expected 3 \(RGB\) or 4 \(RGBA\) channels"):
        torchscript.load(tiny_weights.path, "cpu")(torch.zeros(1, 2, 32, 32))


def test_parity_is_measured(tiny_weights: Exported):
    assert 0 < tiny_weights.card.parity_max_abs < 1e-5
    assert tiny_weights.card.parity_equal_masks > 0.999


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_members_of_any_targets_vote_together(tmp_path: Path, channels: int):
    nets = [TinyNet(1, channels=channels), TinyNet(2)]
    made = export_ensemble(
        tmp_path, nets, [record(0), record(1)], ExportRequest("w", "tiny", "none", None, 0.15, [noise(40, 48)])
    )
    image = torch.from_numpy(noise(32, 48)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        probs = torchscript.load(made.path, "cpu").members(image)
        logits = nets[0].eval()(image)
    expected = logits.softmax(1)[:, 1] if channels == 2 else logits[:, 0].sigmoid()
    torch.testing.assert_close(probs[:, 0], expected, atol=1e-5, rtol=0)


def test_weights_of_the_votes_are_in_the_card(tmp_path: Path):
    assert export_tiny(tmp_path, weights=(1.0, 3.0)).card.weights == (0.25, 0.75)
    assert export_tiny(tmp_path, weights=(2.0, 2.0)).card.weights == ()
    for wrong, message in (
        ((1.0,), "1 weights for 2 runs"),
        ((1.0, 0.0), "a run's weight of 0, expected a number above 0"),
        ((1.0, float("nan")), "a run's weight of nan"),
    ):
        with pytest.raises(WeightsError, match=message):
            export_tiny(tmp_path, weights=wrong)


def test_members_keep_their_state(tmp_path: Path):
    net = TinyNet(1).to(memory_format=torch.channels_last)
    export_ensemble(tmp_path, [net.train()], [record()], ExportRequest("one", "tiny", "none", 0.5, 0.1))
    assert net.training
    assert net.head.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_network_with_spectral_norm_is_exported_after_training(tmp_path: Path):
    net = TinyNet(1)
    net.head = nn.utils.spectral_norm(net.head)
    net.train()(torch.rand(1, 3, 32, 32) * 255).sum().backward()
    made = export_ensemble(tmp_path, [net], [record()], ExportRequest("one", "tiny", "none", 0.5, 0.1, [noise(40, 48)]))
    assert made.card.parity_max_abs < 1e-5
    net(torch.rand(1, 3, 32, 32)).sum().backward()


def test_members_with_different_multiples_share_the_least_common(tmp_path: Path):
    made = export_ensemble(
        tmp_path,
        [TinyNet(1, 16), TinyNet(2, 24)],
        [record()] * 2,
        ExportRequest("two", "tiny", "none", None, 0.1, [noise(50, 49)]),
    )
    assert made.card.pad_multiple == 48
    assert made.card.score is None


@pytest.fixture
def equal_on_meta() -> Iterator[None]:
    """torch.jit.load compares constants, which the meta device cannot."""
    library = torch.library.Library("aten", "IMPL", "Meta")
    library.impl("equal", lambda first, second: first is second)
    yield
    library._destroy()


@pytest.mark.usefixtures("equal_on_meta")
@pytest.mark.parametrize("method", ["probability", "mask", "members"])
def test_map_location_moves_the_file(tiny_weights: Exported, method: str):
    """The meta device, which every machine has, stands for a GPU."""
    module = torchscript.load(tiny_weights.path, "meta")
    image = torch.zeros(3, 4, 33, 50, dtype=torch.uint8, device="meta")
    moved, here = getattr(module, method)(image), torchscript.load(tiny_weights.path, "cpu")
    expected = getattr(here, method)(torch.zeros(3, 4, 33, 50, dtype=torch.uint8))
    assert (moved.device.type, moved.shape, moved.dtype) == ("meta", expected.shape, expected.dtype)


def test_a_network_tied_to_a_device_is_caught(tmp_path: Path):
    with pytest.raises(WeightsError, match="makes tensors on 'cpu' by name") as error:
        export_ensemble(tmp_path, [OnItsDevice(1)], [record()], ExportRequest("bad", "tiny", "none", 0.5, 0.1))
    assert "x.new_zeros" in error.value.hint
    assert left_in(tmp_path) == []


def test_a_baked_size_branch_is_caught_and_nothing_is_left(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"differs from its networks by 0\.\d+ in probability") as error:
        export_ensemble(
            tmp_path, [Branching(1)], [record()], ExportRequest("bad", "tiny", "none", 0.5, 0.1, [noise(32, 32)])
        )
    assert "branch" in error.value.hint
    assert left_in(tmp_path) == []


def test_a_network_of_nan_is_caught(tmp_path: Path):
    net = TinyNet(1)
    nn.init.constant_(net.head.bias, float("nan"))
    with pytest.raises(WeightsError, match="NaN or infinite"):
        export_ensemble(tmp_path, [net], [record()], ExportRequest("bad", "tiny", "none", 0.5, 0.1))


def test_every_member_has_a_record(tmp_path: Path):
    with pytest.raises(WeightsError, match="1 networks and 0 members"):
        export_ensemble(tmp_path, [TinyNet()], [], ExportRequest("bad", "tiny", "none", 0.5, 0.1))


def test_the_index_lists_each_name_once_newest_last(tmp_path: Path):
    export_tiny(tmp_path, "first", seeds=(1,))
    export_tiny(tmp_path, "second", views="none")
    again = export_tiny(tmp_path, "first", views="d4", seeds=(1,))
    with (tmp_path / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["second", "first"]
    assert rows[1] == {
        "name": "first", "recipe": "tiny", "members": "1", "views": "d4", "score": "0.5000", "gsd_m": "0.1500",
        "created": again.card.created, "file_sha256": sha256_of(again.path),
    }  # fmt: skip
    assert not [path for path in left_in(tmp_path) if path.name.startswith(".")]


def test_weights_stored_as_float16_compute_in_float32(tmp_path: Path):
    nets, members = [TinyNet(1), TinyNet(2)], [record(0), record(1)]
    made = {
        storage: export_ensemble(
            tmp_path,
            nets,
            members,
            ExportRequest(storage, "tiny", "flips", None, 0.15, [noise(40, 48)], storage=storage),
        )
        for storage in ("float32", "float16")
    }
    half = made["float16"]
    assert half.card.storage == Card.from_json(read_extra(half.path, "card.json") or "").storage == "float16"
    assert 1e-5 < half.card.parity_max_abs < 1e-2
    image = torch.from_numpy(noise(32, 48)).permute(2, 0, 1)[None]
    loaded = torchscript.load(half.path, "cpu")
    with torch.inference_mode():
        alone, own = torch.jit.load(half.path)(image), loaded(image)
        full = torchscript.load(made["float32"].path, "cpu")(image)
    assert alone.dtype == own.dtype == torch.float32
    torch.testing.assert_close(alone, own, atol=1e-6, rtol=0)
    assert 0 < float((own - full).abs().max()) < 1e-2
    assert torchscript.has_finite_weights(loaded)
    assert not verify(half.path, "cpu").faults()
    assert load_weights(half.path).card == half.card


def test_half_of_the_weights_is_half_of_the_file(tmp_path: Path):
    net = TinyNet(1)
    net.deep.extend([nn.Conv2d(8, 256, 3, padding=1), nn.Conv2d(256, 8, 3, padding=1)])
    sizes = []
    for storage in ("float32", "float16"):
        request = ExportRequest(storage, "tiny", "none", None, 0.15, storage=storage)
        sizes.append(export_ensemble(tmp_path, [net], [record(0)], request).path.stat().st_size)
    saved = 2 * 2 * 256 * 8 * 9  # bytes
    assert saved <= sizes[0] - sizes[1] < 1.1 * saved
