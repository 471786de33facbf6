"""Other formats than TorchScript: the same numbers, in a process without kit."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from deploy_fakes import TinyNet, export_tiny, left_in, noise, record
from torch import Tensor, nn

from kit.deploy.freeze import formats, runners
from kit.deploy.proof.verify import verify
from kit.deploy.trust import pt2
from kit.deploy.weights import torchscript
from kit.deploy.weights.card import Card
from kit.errors import KitError, WeightsError
from kit.pipeline.export import Exported, ExportRequest, export_ensemble

ENGINES = [(".pt2", ""), (".onnx", ""), (".onnx", "openvino")]
SHAPES = [
    (1, 3, 32, 32), (3, 4, 33, 33), (1, 4, 64, 64), (3, 3, 257, 91), (1, 3, 18, 64), (2, 4, 40, 257), (1, 3, 1, 1),
]  # fmt: skip
ALONE = {
    ".pt2": """
import sys, numpy, torch
module = torch.export.load(sys.argv[1]).module()
batches = numpy.load(sys.argv[2])
numpy.savez(sys.argv[3], **{name: module(torch.from_numpy(batches[name])).numpy() for name in batches})
assert not {"kit", "fastai", "timm"} & set(sys.modules)
""",
    ".onnx": """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
batches = numpy.load(sys.argv[2])
numpy.savez(sys.argv[3], **{name: session.run(["probability"], {"image": batches[name]})[0] for name in batches})
assert not {"kit", "torch", "timm"} & set(sys.modules)
""",
}


class OnTheValues(TinyNet):
    """A branch that no exporter can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() > -1 else -x


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Two members, four views, three formats. Read only."""
    return export_tiny(tmp_path_factory.mktemp("formats"), others=("pt2", "onnx"))


def batches(*shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Random images, with some nodata where there is alpha."""
    made = {}
    for shape in shapes:
        image = np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)
        if shape[1] == 4:
            image[:, 3, : shape[2] // 3] = 0
        made["x".join(map(str, shape))] = image
    return made


def engine_there(engine: str) -> None:
    if engine and find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed: it is an extra of its own")


def runner_of(path: Path, engine: str) -> Callable[[np.ndarray], np.ndarray]:
    """A file as a function; an ONNX file also in OpenVINO, in float32."""
    if not engine:
        return runners.runner(path)
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: compiled({"image": image})["probability"].copy()


def gap(path: Path, engine: str, *shapes: tuple[int, ...]) -> float:
    """The largest difference from the TorchScript file beside."""
    run, expected = runner_of(path, engine), runners.runner(path.with_suffix(".pt"))
    gaps = []
    for image in batches(*shapes).values():
        probability = run(image)
        assert probability.dtype == np.float32
        assert probability.shape == (len(image), 1, *image.shape[2:])
        gaps.append(np.abs(probability - expected(image)).max())
    return float(max(gaps))


@pytest.mark.parametrize(("suffix", "engine"), ENGINES)
def test_each_format_gives_the_same_probability(everything: Exported, suffix: str, engine: str):
    engine_there(engine)
    assert gap(everything.path.with_suffix(suffix), engine, *SHAPES) < 1e-5


@pytest.mark.slow
def test_each_format_weighs_the_votes(tmp_path: Path):
    made = export_tiny(tmp_path, others=("pt2", "onnx"), weights=(0.9, 0.1))
    for suffix in (".pt2", ".onnx"):
        assert gap(made.path.with_suffix(suffix), "", *SHAPES) < 1e-5
    verify(made.path).require()


@pytest.mark.parametrize("suffix", ALONE)
def test_each_format_runs_without_kit(everything: Exported, suffix: str, tmp_path: Path):
    images = batches(*SHAPES[:5])
    np.savez(tmp_path / "in.npz", **images)
    path = everything.path.with_suffix(suffix)
    command = [
        sys.executable,
        "-I",
        "-c",
        ALONE[suffix],
        str(path),
        str(tmp_path / "in.npz"),
        str(tmp_path / "out.npz"),
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found, expected = np.load(tmp_path / "out.npz"), runners.runner(everything.path)
    for name, image in images.items():
        np.testing.assert_allclose(found[name], expected(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
@pytest.mark.parametrize("channels", [3, 4])
def test_torch_takes_floats_too(everything: Exported, suffix: str, channels: int):
    image = torch.from_numpy(batches((2, channels, 33, 20))[f"2x{channels}x33x20"])
    path = everything.path.with_suffix(suffix)
    module = torchscript.load(path, "cpu") if suffix == ".pt" else pt2.load(path).module()
    with torch.inference_mode():
        assert torch.equal(module(image.float()), module(image))


def test_pt2_is_tied_to_no_device(everything: Exported):
    """The meta device, which every machine has, stands for a GPU."""
    program = pt2.load(everything.path.with_suffix(".pt2"))
    named = [node for node in program.graph.nodes if "device" in node.kwargs and node.kwargs["device"] is not None]
    assert named == []


def test_pt2_says_how_many_channels_it_takes(everything: Exported):
    module = pt2.load(everything.path.with_suffix(".pt2")).module()
    for channels, said in ((2, ">= 3, but got 2"), (5, "<= 4, but got 5")):
        with pytest.raises(RuntimeError, match=said):
            module(torch.zeros(1, channels, 32, 32, dtype=torch.uint8))


def test_onnx_has_names_and_all_outputs(everything: Exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(everything.path.with_suffix(".onnx"), providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["n", "channels", "height", "width"])
    assert [output.name for output in session.get_outputs()] == ["probability", "mask", "members"]
    batch = batches((2, 4, 33, 20))["2x4x33x20"]
    module = torchscript.load(everything.path, "cpu")
    for name, found in zip(formats.OUTPUTS, session.run(None, {"image": batch}), strict=True):
        with torch.inference_mode():
            expected = getattr(module, name)(torch.from_numpy(batch))
        assert found.dtype == expected.numpy().dtype
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5, rtol=0)


def test_the_card_is_inside_each(everything: Exported):
    onnx = pytest.importorskip("onnx")
    files = {"card.json": ""}
    torch.export.load(everything.path.with_suffix(".pt2"), extra_files=files)
    metadata = {entry.key: entry.value for entry in onnx.load(everything.path.with_suffix(".onnx")).metadata_props}
    for text in (files["card.json"], metadata["card.json"]):
        assert Card.from_json(text) == everything.card
        assert "file_sha256" not in json.loads(text)


def test_no_file_holds_a_path_of_this_machine(everything: Exported):
    for path in everything.others:
        data = path.read_bytes()
        assert str(Path(__file__).parents[3]).encode() not in data
        assert sys.prefix.encode() not in data


def test_what_differs_is_told(everything: Exported):
    assert [path.suffix for path in everything.others] == [".pt2", ".onnx"]
    assert all(difference < 1e-5 for difference in everything.others.values())


@pytest.mark.slow
def test_exporters_are_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder):
    export_tiny(tmp_path, seeds=(1,), views="none", others=("pt2", "onnx"))
    out, err = capfd.readouterr()
    assert out == ""
    assert {line.split()[0] for line in err.splitlines()} == {"networks", "compare"}  # kit's own progress
    assert [str(warning.message) for warning in recwarn if "torch.jit" not in str(warning.message)] == []


def test_other_formats_go_with_the_export_they_were_made_of(tmp_path: Path):
    export_tiny(tmp_path, "tiny", seeds=(2,), views="none")
    (tmp_path / "tiny.onnx").write_bytes(b"of an earlier export")
    (tmp_path / "other.onnx").write_bytes(b"of another name")
    export_tiny(tmp_path, "tiny", seeds=(1,), views="none")
    assert sorted(path.name for path in left_in(tmp_path)) == [
        "index.csv", "other.onnx", "tiny.json", "tiny.parity.json", "tiny.pt",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_network_that_branches_leaves_nothing_behind(tmp_path: Path, kind: str):
    with pytest.raises(WeightsError, match=rf"these networks cannot be exported as \.{kind} with torch \d") as error:
        export_ensemble(
            tmp_path, [OnTheValues(1)], [record()], ExportRequest("bad", "tiny", "none", 0.5, 0.1, formats=(kind,))
        )
    assert "branch" in error.value.hint
    assert left_in(tmp_path) == []


def test_a_file_that_differs_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runners, "DIFFERENCE_LIMIT", -1.0)
    with pytest.raises(WeightsError, match=r"the \.pt2 file differs from TorchScript by .* expected at most -1"):
        export_tiny(tmp_path, seeds=(1,), views="none", others=("pt2",))
    assert left_in(tmp_path) == []


def test_onnx_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(formats, "ONNX_LIMIT_BYTES", 1000)
    with pytest.raises(WeightsError, match=r"GB of weights, an ONNX file holds at most") as error:
        export_tiny(tmp_path, seeds=(1,), others=("onnx",))
    assert "pt2" in error.value.hint
    assert left_in(tmp_path) == []


def test_formats_are_chosen_by_name():
    assert formats.chosen("torchscript") == formats.chosen("") == ()
    assert formats.chosen("onnx, pt2,torchscript,onnx") == ("onnx", "pt2")
    with pytest.raises(KitError, match="no format 'onxx', expected torchscript, pt2, onnx or onnx-gis") as error:
        formats.chosen("pt2,onxx")
    assert "did you mean 'onnx'" in error.value.hint


def test_missing_packages_are_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch, everything: Exported):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name.startswith("o") else find_spec(name))
    with pytest.raises(KitError, match="not installed here: onnx, onnxscript, onnxruntime") as error:
        formats.chosen("onnx")
    assert error.value.hint == "pip install onnx onnxscript onnxruntime"
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(KitError, match="not installed here: onnxruntime"):
        runners.runner(everything.path.with_suffix(".onnx"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.onnx", r"no file .*none\.onnx"),
        ("tiny.json", r"tiny\.json has an unknown format"),
        ("broken.onnx", r"broken\.onnx does not load as ONNX"),
        ("broken.pt", r"broken\.pt does not load as TorchScript"),
        ("broken.pt2", r"broken\.pt2 does not load as pt2"),
    ],
)
def test_what_cannot_be_run(everything: Exported, name: str, message: str):
    path = everything.path.with_name(name)
    if name.startswith("broken"):
        path.write_bytes(b"not a network")
    with pytest.raises(WeightsError, match=message):
        runners.runner(path)


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".onnx"])
def test_a_runner_says_what_it_takes(everything: Exported, suffix: str):
    run = runners.runner(everything.path.with_suffix(suffix))
    for wrong in (np.zeros((1, 2, 32, 32), np.uint8), np.zeros((3, 32, 32), np.uint8), np.zeros((1, 3, 8, 8))):
        with pytest.raises(WeightsError, match=r"expected uint8 \(N, 3 or 4, H, W\), got"):
            run(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "options", "views"),
    [
        ("tf_efficientnet_lite0", {"reduce": 2}, "d4"),  # TensorFlow's padding
        ("test_efficientnet", {"attention": "scse", "auxiliary": True}, "flips"),
        ("test_resnet", {"blur": True, "self_attention": True, "n_out": 3}, "d4"),
        ("test_convnext", {"widths": (16, 8), "n_out": 1}, "none"),  # a stem of stride 4; logits are enlarged
        ("mambaout_femto", {}, "none"),  # channels last
        ("inception_v4", {"widths": (8,)}, "none"),  # valid padding
        ("test_efficientnet", {"plain": True}, "flips"),  # fastai's own DynamicUnet
    ],
)
def test_real_networks(tmp_path: Path, encoder: str, options: dict[str, object], views: str):
    from kit.models.pretrained import Source, encoder_source
    from kit.models.unet import dynamic_unet, unet

    torch.manual_seed(0)
    with encoder_source(Source(pretrained=False)):
        if "plain" in options:
            net = dynamic_unet(encoder)
        else:
            net = unet(encoder, **{"widths": (16, 16, 8, 8, 8)} | options)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
    tiles = [noise(64, 64)]
    made = export_ensemble(
        tmp_path, [net], [record()], ExportRequest("w", "tiny", views, 0.5, 0.1, tiles, formats=("pt2", "onnx"))
    )
    for suffix, engine in ENGINES:
        if not engine or find_spec(engine):
            assert gap(made.path.with_suffix(suffix), engine, *SHAPES) < 1e-5
