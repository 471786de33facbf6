import dataclasses
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from deploy_fakes import export_tiny, noise
from torch import Tensor

from kit.deploy.engine import tuning
from kit.deploy.engine.backends import EngineOptions, NetworkSetting, check_engine, network
from kit.deploy.engine.predict import predict_image
from kit.deploy.engine.tuned import first_network
from kit.deploy.engine.tuning import choose, predicts_alike, set_up, tune, tuned
from kit.deploy.weights.load import Weights, load_weights
from kit.errors import KitError, WeightsError
from kit.pipeline.export import Exported

IMAGE = noise(70, 83, 4)
IMAGE[..., 3] = 255
IMAGE[:9, :, 3] = 0


@pytest.fixture
def weights(tiny_weights: Exported) -> Weights:
    return load_weights(tiny_weights.path)


@pytest.mark.parametrize("views", ["none", "flips", "d4"])
@pytest.mark.parametrize(
    "setting", [NetworkSetting(), NetworkSetting("channels_last", views=4), NetworkSetting("packed", views=3)], ids=str
)
def test_a_tuned_vote_is_the_shipped_vote(tmp_path: Path, views: str, setting: NetworkSetting):
    shipped = load_weights(export_tiny(tmp_path, views=views).path)
    there = tuned(shipped, [setting, NetworkSetting()])
    np.testing.assert_allclose(predict_image(there, IMAGE), predict_image(shipped, IMAGE), atol=1e-5)
    batch = torch.from_numpy(np.stack([noise(33, 17, seed=seed).transpose(2, 0, 1) for seed in range(3)]))
    with torch.inference_mode():
        torch.testing.assert_close(there.module.members(batch), shipped.module.members(batch), atol=1e-5, rtol=0)
        assert torch.equal(there.module.mask(batch), shipped.module.mask(batch))


def test_half_precision_halves_the_weights_of_convolutions_alone(weights: Weights):
    core = network(weights, 0, NetworkSetting("channels_last", "bfloat16"), "torch")
    x = torch.from_numpy(noise(64, 64)).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        half, full = core(x), weights.module.core_0(x)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.2
    assert not torch.is_autocast_enabled("cpu")


def test_wrong_input_to_a_tuned_vote(weights: Weights):
    with pytest.raises(ValueError, match=r"expected 3 \(RGB\) or 4"):
        tuned(weights, [NetworkSetting()] * 2).module(torch.zeros(1, 2, 8, 8))


class Clock:
    """Time that passes only where it is told."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], wrong: Sequence[str] = ()) -> None:
    """Makes settings take so many seconds a call, 0.05 where nothing is told, for any number of views."""
    clock = Clock()
    monkeypatch.setattr(tuning, "time", clock)

    def slow_network(weights: Weights, member: int, setting: NetworkSetting, engine: str) -> Callable[[Tensor], Tensor]:
        name = f"{engine}-{setting}"

        def run(x: Tensor) -> Tensor:
            clock.now += seconds.get(name, 0.05)
            logits = x[:, :1] - 128
            return -logits if name in wrong else logits

        return run

    monkeypatch.setattr(tuning, "network", slow_network)


@pytest.mark.parametrize(
    ("seconds", "wrong", "expected"),
    [
        ({}, [], "plain-float32-4"),  # the views together take a quarter
        ({"torch-channels_last-float32-1": 0.01}, [], "channels_last-float32-1"),
        ({"torch-channels_last-float32-1": 0.01}, ["torch-channels_last-float32-1"], "plain-float32-4"),
        ({"torch-packed-float32-1": 0.01, "torch-packed-float32-4": 0.2}, [], "packed-float32-1"),
        ({"torch-channels_last-bfloat16-1": 0.001}, [], "channels_last-bfloat16-1"),
    ],
)
def test_the_fastest_setting_that_agrees(
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[str, float],
    wrong: list[str],
    expected: str,
):
    monkeypatch.setattr(tuning, "dtypes", lambda device: ("bfloat16",))
    first = ("torch-channels_last-float32-1", "torch-packed-float32-1", "torch-channels_last-bfloat16-1")
    slowed(monkeypatch, dict.fromkeys(first, 0.1) | seconds, wrong)
    images = [torch.from_numpy(noise(64, 64, seed=seed)).permute(2, 0, 1)[None] for seed in range(3)]
    assert str(choose(weights, 0, images, "torch")) == expected


@pytest.mark.parametrize(
    ("logits", "alike"),
    [
        ([9.0, -9.0, 0.001, 9.0], True),  # a quarter of the mask turns, at no cost
        ([9.0, -9.0, 3.0, 9.0], False),
        ([8.0, -8.0, -0.001, 7.0], True),
        ([9.0, -9.0, -4.0, 9.0], True),  # 0.12 apart on average, but masks are equal
    ],
)
def test_networks_predict_alike_by_mask_or_by_probability(logits: list[float], alike: bool):
    assert predicts_alike(torch.tensor(logits), torch.tensor([9.0, -9.0, -0.001, 9.0])) is alike


def test_no_time_no_trials(weights: Weights, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "SECONDS_PER_NETWORK", 0.0)
    slowed(monkeypatch, {"torch-channels_last-float32-1": 0.001})
    image = torch.from_numpy(noise(64, 64)).permute(2, 0, 1)[None]
    assert choose(weights, 0, [image], "torch") == NetworkSetting()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The networks that are measured from here on."""
    members: list[int] = []

    def choosing(weights: Weights, member: int, images: Sequence[Tensor], engine: str) -> NetworkSetting:
        members.append(member)
        return NetworkSetting("channels_last", views=4)

    monkeypatch.setattr(tuning, "choose", choosing)
    return members


def test_a_choice_is_remembered_for_file_and_machine(
    weights: Weights, measured: list[int], monkeypatch: pytest.MonkeyPatch
):
    first, second = tune(weights, lambda: [IMAGE]), tune(weights, lambda: [IMAGE])
    assert measured == [0, 1]
    assert first.plan == second.plan == "torch channels_last-float32-4 channels_last-float32-4"
    tune(dataclasses.replace(weights, sha256="another"), lambda: [IMAGE])
    assert measured == [0, 1] * 2
    monkeypatch.setattr(tuning, "processor_name", lambda device: "another")
    tune(weights, lambda: [IMAGE])
    assert measured == [0, 1] * 3


def test_a_remembered_choice_needs_no_images(weights: Weights, measured: list[int]):
    there = set_up(weights, lambda: [IMAGE], EngineOptions())

    def unwanted() -> list[np.ndarray]:
        raise AssertionError("images are read")

    assert set_up(weights, unwanted, EngineOptions()).plan == there.plan
    assert set_up(weights, unwanted, EngineOptions(tuning=False)) is weights
    with pytest.raises(KitError, match="has to measure whether int8"):
        set_up(weights, unwanted, EngineOptions(engine="openvino-int8", tuning=False))


@pytest.mark.parametrize("text", ["", "[]", '{"key": 1}', '["key", [{"layout": "plain"}]]', '["key", [7]]', "\x00"])
def test_a_broken_memory_is_measured_again(weights: Weights, measured: list[int], cache: Path, text: str):
    tune(weights, lambda: [IMAGE])
    (kept,) = (cache / "tuning").iterdir()
    kept.write_text(text)
    tune(weights, lambda: [IMAGE])
    assert measured == [0, 1] * 2


def test_a_cache_that_cannot_be_written_costs_time_alone(
    weights: Weights, measured: list[int], cache: Path, capsys: pytest.CaptureFixture[str]
):
    (cache / "tuning").write_text("a file where a folder belongs")
    assert tune(weights, lambda: [IMAGE]).plan.startswith("torch channels_last")
    assert "cannot cache tuning" in capsys.readouterr().err


def test_an_old_export_predicts_as_it_was_shipped(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tuning.torchscript, "has_cores", lambda module: False)
    assert tune(weights, lambda: [IMAGE]) is weights
    assert "is not tuned" in capsys.readouterr().err
    with pytest.raises(WeightsError, match="only torch can run it") as caught:
        tune(weights, lambda: [IMAGE], "openvino")
    assert "kit export" in caught.value.hint


def test_measured_for_real(weights: Weights):
    there = tune(weights, lambda: [IMAGE, noise(40, 40)])
    assert len(there.plan.split()) == 3
    assert ((predict_image(there, IMAGE) > 0.5) == (predict_image(weights, IMAGE) > 0.5)).mean() > 0.99


LIMITED = """
import sys, numpy as np
from kit.deploy.weights.load import load_weights
from kit.deploy.engine.tuning import tune
print(tune(load_weights(__import__("pathlib").Path(sys.argv[1])), lambda: [np.zeros((64, 64, 3), np.uint8)]).plan)
"""


def test_a_processor_limited_to_avx2_stays_in_float32(tiny_weights: Exported, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    command = [sys.executable, "-c", LIMITED, tiny_weights.path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    plan = done.stdout.split()
    assert plan[0] == "torch"
    assert [setting.split("-")[1] for setting in plan[1:]] == ["float32"] * 2


def test_unknown_or_missing_engines(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(KitError, match="no engine 'openvina', expected torch, openvino, openvino-int8"):
        check_engine("openvina")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(KitError, match="--engine openvino needs openvino, which is not installed") as caught:
        check_engine("openvino")
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize("views", [1, 4])
def test_openvino_votes_alike(weights: Weights, views: int):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    there = tuned(weights, [NetworkSetting(views=views)] * 2, "openvino")
    np.testing.assert_allclose(predict_image(there, IMAGE), predict_image(weights, IMAGE), atol=1e-4)
    assert there.plan.startswith("openvino ")


@pytest.mark.slow
def test_int8_is_made_once_and_taken_where_its_masks_agree(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, cache: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("nncf", reason="the extra int8 is not installed")
    image, shipped = noise(96, 96), predict_image(weights, noise(96, 96))
    monkeypatch.setattr(tuning, "AGREEMENT", 0.9)  # noise is no image: int8 keeps 97 % of its mask here
    monkeypatch.setattr(tuning, "GAIN", 0.0)  # so small a network is not faster
    there = tune(weights, lambda: [image], "openvino-int8")
    assert [setting.split("-")[1] for setting in there.plan.split()[1:]] == ["int8"] * 2
    assert capsys.readouterr().out == ""
    difference = np.abs(predict_image(there, image) - shipped)
    assert 1e-4 < difference.max() < 0.2
    models = sorted((cache / "int8").iterdir())
    assert [path.suffix for path in models] == [".bin", ".xml"] * 2
    made = models[1].stat().st_mtime_ns
    assert tune(weights, lambda: [image], "openvino-int8").plan == there.plan
    assert models[1].stat().st_mtime_ns == made
    models[1].unlink()
    assert tune(weights, lambda: [image], "openvino-int8").plan == there.plan
    assert models[1].is_file()
    models[1].write_text("broken")
    with pytest.raises(WeightsError, match="is not an OpenVINO model"):
        tune(weights, lambda: [image], "openvino-int8")


@pytest.mark.slow
def test_int8_whose_masks_differ_is_left(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("nncf", reason="the extra int8 is not installed")
    monkeypatch.setattr(tuning, "AGREEMENT", 0.99999)
    monkeypatch.setattr(tuning, "DIFFERENCE", 0.00001)
    monkeypatch.setattr(tuning, "GAIN", 0.0)
    plan = tune(weights, lambda: [noise(96, 96)], "openvino-int8").plan
    assert "int8-" not in plan
    assert "network 1 stays in float32" in capsys.readouterr().err


def test_openvino_reports_nothing(tiny_weights: Exported):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    program = "import sys, kit.deploy.engine.backends as e; e.check_engine('openvino')"
    program += "; print(sys.modules['openvino_telemetry'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


@pytest.mark.parametrize("is_tuned", [False, True])
def test_one_network_in_one_view(tmp_path: Path, is_tuned: bool):
    with_flips, plain = (load_weights(export_tiny(tmp_path / v, views=v).path) for v in ("flips", "none"))
    one = first_network(tuned(with_flips, [NetworkSetting()] * 2) if is_tuned else with_flips)
    batch = torch.from_numpy(IMAGE.transpose(2, 0, 1)[None].copy())
    with torch.inference_mode():
        first = plain.module.members(batch)[:, :1]
        torch.testing.assert_close(one.module.members(batch), first, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.module(batch), first * (batch[:, 3:] > 0), atol=1e-5, rtol=0)


def test_tuned_networks_vote_by_weight(tmp_path: Path):
    weights = load_weights(export_tiny(tmp_path, weights=(0.9, 0.1)).path)
    image = torch.from_numpy(noise(40, 33)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = weights.module(image)
        found = tuned(weights, [NetworkSetting()] * 2).module(image)
        equal = weights.module.members(image).mean(1, keepdim=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(found, equal, atol=1e-4)
