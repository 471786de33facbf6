"""The programs in examples: each runs without kit, in a process of its own, and its masks are those of kit."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from deploy_fakes import export_tiny, noise, record, write_tiff
from rasterio.shutil import copy as translate
from rasterio.transform import Affine
from torch import nn

from kit.data.rasters import read_image
from kit.deploy.engine.predict import predict_image
from kit.deploy.submission.submit import find_chips
from kit.deploy.weights.load import load_weights
from kit.models.pretrained import Source, encoder_source
from kit.models.unet import unet
from kit.pipeline.export import Exported, ExportRequest, export_ensemble

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
MINI = ROOT.parent / "shared" / "open_cities_mini"
UTM, METRES = "EPSG:32636", Affine(1, 0, 450_000, 0, -1, 40_000)
pytestmark = pytest.mark.usefixtures("one_thread")  # as the processes: other sums would have other last bits


def run(*command: object, folder: Path) -> subprocess.CompletedProcess[str]:
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, command)], cwd=folder, env=alone, capture_output=True, text=True, check=False)


def run_python(example: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-I", EXAMPLES / example, *arguments, folder=folder)


def band(path: Path) -> np.ndarray:
    """The mask in a file, which has one band of uint8."""
    with rasterio.open(path) as dataset:
        assert (dataset.count, dataset.dtypes[0]) == (1, "uint8")
        return dataset.read(1)


def kit_mask(weights: Path, image: Path) -> np.ndarray:
    """What kit predicts, which is neither empty nor full."""
    mask = predict_image(load_weights(weights), read_image(image)) > 0.5
    assert 0.05 < mask.mean() < 0.95
    return mask


def imported(example: str) -> set[str]:
    nodes = ast.walk(ast.parse((EXAMPLES / example).read_text()))
    return {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}


@pytest.fixture(params=[3, 4], ids=["rgb", "rgba"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small image of odd size that lies somewhere; of four bands, its left part is no data."""
    pixels = noise(45, 71, request.param)
    pixels[:, :9, 3:], pixels[:, 9:, 3:] = 0, 255
    return write_tiff(tmp_path / "image.tif", pixels, crs=UTM, transform=METRES, interleave="pixel")


def check(done: subprocess.CompletedProcess[str], mask: Path, weights: Path, image: Path) -> None:
    """The example has ended well, and wrote what kit predicts, where the image lies."""
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert np.array_equal(band(mask), kit_mask(weights, image))
    with rasterio.open(mask) as dataset:
        assert (dataset.crs, dataset.transform) == (UTM, METRES)


def test_python(tiny_weights: Exported, image: Path, tmp_path: Path):
    assert imported("python/predict.py") == {"sys", "torch", "rasterio"}
    done = run_python("python/predict.py", tiny_weights.path, image, "mask.tif", folder=tmp_path)
    check(done, tmp_path / "mask.tif", tiny_weights.path, image)


@pytest.mark.slow
def test_onnxruntime(tiny_weights: Exported, image: Path, tmp_path: Path):
    assert imported("onnxruntime/predict.py") == {"sys", "onnxruntime", "rasterio"}
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    made = export_tiny(tmp_path, others=("onnx",))
    weights = made.path.with_suffix(".onnx")
    done = run_python("onnxruntime/predict.py", weights, image, "mask.tif", folder=tmp_path)
    check(done, tmp_path / "mask.tif", tiny_weights.path, image)


@pytest.mark.parametrize("example", ["python", "onnxruntime"])
def test_a_wrong_number_of_arguments(example: str, tmp_path: Path):
    if example == "onnxruntime":
        pytest.importorskip("onnxruntime")
    done = run_python(f"{example}/predict.py", "weights.pt", folder=tmp_path)
    assert done.returncode == 1
    assert re.search(r"python predict\.py weights/\w+\.\w+ image\.tif mask\.tif", done.stderr)


def build(command: str, folder: Path) -> Path:
    """Runs a command of docs/weights.md, known by its first word, where predict.cpp lies; returns that folder."""
    if missing := [name for name in ("g++", command) if not shutil.which(name)]:
        pytest.skip(f"no {missing[0]} here")
    shutil.copytree(EXAMPLES / "cpp", folder)
    line = re.search(rf"^{re.escape(command)} (?:.+\\\n)*.+$", (ROOT / "docs/weights.md").read_text(), re.M)
    assert line
    old = "" if torch.compiled_with_cxx11_abi() else "-D_GLIBCXX_USE_CXX11_ABI=0"
    script = f"export TORCH={torch.__path__[0]} CXXFLAGS={old}\n{line[0].replace('g++ ', f'g++ {old} ')}"
    built = run("bash", "-c", script, folder=folder)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ example, built against the torch that is installed."""
    return build("g++", tmp_path_factory.mktemp("build") / "cpp") / "predict"


def planes(image: Path, folder: Path) -> tuple[object, ...]:
    """Writes an image as GDAL does by the command in predict.cpp; returns IMAGE, WIDTH, HEIGHT, BANDS."""
    assert "gdal_translate -of ENVI -co INTERLEAVE=BSQ " in (EXAMPLES / "cpp/predict.cpp").read_text()
    raw = folder / f"{image.stem}.raw"
    translate(image, raw, driver="ENVI", interleave="bsq")
    with rasterio.open(image) as dataset:
        return raw, dataset.width, dataset.height, dataset.count


@pytest.mark.slow
def test_cpp(program: Path, tiny_weights: Exported, image: Path, tmp_path: Path):
    done = run(program, tiny_weights.path, *planes(image, tmp_path), "mask.pgm", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert np.array_equal(band(tmp_path / "mask.pgm"), kit_mask(tiny_weights.path, image))


@pytest.mark.slow
def test_cmake_builds_it_too(tiny_weights: Exported, tmp_path: Path):
    image = write_tiff(tmp_path / "image.tif", noise(20, 30))
    program = build("cmake", tmp_path / "cpp") / "build/predict"
    done = run(program, tiny_weights.path, *planes(image, tmp_path), "mask.pgm", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(band(tmp_path / "mask.pgm"), kit_mask(tiny_weights.path, image))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", r"expected WEIGHTS IMAGE WIDTH HEIGHT BANDS MASK"),
        ("W none.raw 4 2 3 m.pgm", r"No such file or directory \[none\.raw\]"),
        ("W image.raw 4 2 4 m.pgm", r"image\.raw has 24 bytes, expected 4 x 2 x 4"),
        ("W image.raw four 2 3 m.pgm", r"image\.raw has 24 bytes, expected four x 2 x 3"),
        ("W image.raw -4 -2 3 m.pgm", r"image\.raw has 24 bytes, expected -4 x -2 x 3"),
        ("W image.raw 2 2 6 m.pgm", r"expected 3 \(RGB\) or 4 \(RGBA\) channels"),
        ("none.pt image.raw 4 2 3 m.pgm", r"No such file or directory, file path: none\.pt"),
        ("image.raw image.raw 4 2 3 m.pgm", r"failed reading zip archive"),
        ("W image.raw 4 2 3 none/m.pgm", r"cannot write none/m\.pgm"),
    ],
)
def test_cpp_tells_what_is_wrong(program: Path, tiny_weights: Exported, tmp_path: Path, arguments: str, message: str):
    (tmp_path / "image.raw").write_bytes(bytes(range(24)))
    words = [tiny_weights.path if word == "W" else word for word in arguments.split()]
    done = run(program, *words, folder=tmp_path)
    assert done.returncode == 1
    assert re.match(rf"error: (?s:.*){message}", done.stderr)
    assert "frame #" not in done.stderr
    assert not list(tmp_path.glob("*.pgm"))


def unet_on(image: np.ndarray, seed: int) -> nn.Module:
    """A random network of kit's that finds building on half of `image` (H, W, 3), its batch norms having seen it."""
    torch.manual_seed(seed)
    with encoder_source(Source(pretrained=False)):
        net = unet("test_efficientnet", widths=(16, 8, 8), reduce=1)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        for _ in range(20):
            net(batch)
        logits = net.eval()(batch)
        net.head.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    return net


@pytest.mark.slow
@pytest.mark.skipif(not MINI.is_dir(), reason="open_cities_mini does not lie beside the project")
def test_cpp_masks_real_chips_as_kit_submit_does(program: Path, tmp_path: Path):
    """Fifteen chips of 1024 x 1024 px: equal pixel for pixel."""
    chips = find_chips(MINI / "test")
    assert len(chips) == 15
    seen = np.concatenate([read_image(chip.path)[:128, :128] for chip in chips])
    nets = [unet_on(seen, seed) for seed in (1, 2)]
    made = export_ensemble(tmp_path, nets, [record()] * 2, ExportRequest("duo", "tiny", "flips", None, 0.07, [seen]))
    submit = (
        sys.executable,
        "-m",
        "kit",
        "submit",
        MINI / "test",
        "--weights",
        made.path,
        "--device",
        "cpu",
        "--no-tune",
    )
    done = run(*submit, "--name", "kit", "--root", tmp_path, folder=ROOT)
    assert done.returncode == 0, done.stderr
    shares = []
    for chip in chips:
        mask = tmp_path / f"{chip.id}.pgm"
        done = run(program, made.path, *planes(chip.path, tmp_path), mask, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        expected = band(tmp_path / "submissions/kit" / f"{chip.id}.tif")
        assert np.array_equal(band(mask), expected), chip.id
        shares.append(expected.mean())
    assert 0.2 < np.mean(shares) < 0.8
