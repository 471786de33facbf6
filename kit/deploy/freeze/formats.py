"""The ensemble in other formats than TorchScript: torch.export's `.pt2`, and ONNX for onnxruntime and OpenVINO."""

import copy
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kit.console import muted
from kit.deploy.engine import openvino
from kit.deploy.freeze import pt2
from kit.deploy.freeze.ensemble import Core, OneGraph
from kit.deploy.weights import torchscript
from kit.errors import KitError, WeightsError, nearest

Runner: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

SUFFIXES = {"torchscript": ".pt", "pt2": ".pt2", "onnx": ".onnx"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}
AXES = {0: "n", 1: "channels", 2: "height", 3: "width"}
OUTPUTS = ("probability", "mask", "members")
DIFFERENCE_LIMIT = 1e-4  # other kernels and other batches move a probability by about 1e-6
ONNX_LIMIT_BYTES = 2_000_000_000  # a protobuf file ends at 2 GiB; the graph needs some of it


class Outputs(nn.Module):
    """The ensemble as ONNX has it: all outputs of one call.

    Args:
        ensemble: the soft vote.

    Shape:
        uint8 (N, 3 or 4, H, W) -> probability float32 (N, 1, H, W), mask uint8 (N, 1, H, W), members float32
        (N, M, H, W).
    """

    def __init__(self, ensemble: OneGraph) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns probability, mask and members."""
        members = self.ensemble.members(image)
        probability = members.mean(dim=1, keepdim=True)
        return probability, (probability > 0.5).to(torch.uint8), members


def chosen(text: str) -> tuple[str, ...]:
    """Returns the formats beside TorchScript in a comma-separated list.

    Raises:
        KitError: an unknown format, or one whose packages are not installed.
    """
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    for name in wanted:
        if name not in SUFFIXES:
            raise KitError(f"no format {name!r}, expected torchscript, pt2 or onnx", nearest(name, SUFFIXES))
        need(*PACKAGES.get(name, ()))
    return tuple(name for name in dict.fromkeys(wanted) if name != "torchscript")


def need(*packages: str) -> None:
    """Raises KitError, with the remedy, when one of the packages is not installed."""
    if missing := [package for package in packages if find_spec(package) is None]:
        raise KitError(f"not installed here: {', '.join(missing)}", f"pip install {' '.join(missing)}")


def write(name: str, path: Path, members: Sequence[nn.Module], views: str, pad_multiple: int, card: str) -> None:
    """Writes an ensemble as `pt2` or `onnx`: any batch, height and width, RGB or RGBA, all in one graph.

    Args:
        name: of the format.
        path: with the format's suffix.
        members: networks as `kit.pipeline.export.portable` makes them.
        views: `none`, `flips` or `d4`.
        pad_multiple: px; a multiple of every member's.
        card: JSON, kept inside as `card.json`.

    Raises:
        WeightsError: a network cannot be followed with symbols for sizes, or the file would be too large.
    """
    copies = copy.deepcopy(list(members))  # an exporter replaces the attributes that a network sets as it runs
    ensemble = OneGraph([Core(member) for member in copies], views, pad_multiple).eval()
    try:
        with muted():
            if name == "onnx":
                _write_onnx(path, ensemble, card)
            else:
                pt2.save(_program(ensemble, pad_multiple), path, card)
    except KitError:
        raise
    except Exception as cause:  # exporters raise whatever they meet
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise WeightsError(
            f"{path.suffix} cannot be made of these networks with torch {torch.__version__}: {reason}",
            "a network must not branch on the size or the values of its input; torch 2.15 was tried",
        ) from cause


def _program(module: nn.Module, pad_multiple: int) -> torch.export.ExportedProgram:
    """Returns the steps of a module that takes an image batch, with symbols for batch, channels and sides."""
    dim = torch.export.Dim
    sides = (dim("n", min=1), dim("channels", min=3, max=4), dim("height", min=1), dim("width", min=1))
    example = torch.zeros(2, 4, 2 * pad_multiple + 1, 3 * pad_multiple - 1, dtype=torch.uint8)  # sides that differ
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=(dict(enumerate(sides)),), strict=False)


def _write_onnx(path: Path, ensemble: OneGraph, card: str) -> None:
    """Writes one file: input `image`, outputs `OUTPUTS`, the card among its metadata."""
    import onnx

    size = sum(tensor.nbytes for tensor in ensemble.state_dict().values())
    if size > ONNX_LIMIT_BYTES:
        raise WeightsError(
            f"{size / 1e9:.1f} GB of weights, an ONNX file holds at most {ONNX_LIMIT_BYTES / 1e9:.0f} GB",
            "export fewer members, or pt2",
        )
    program = torch.onnx.export(
        _program(Outputs(ensemble), ensemble.pad_multiple),
        dynamo=True,
        input_names=["image"],
        output_names=OUTPUTS,
        dynamic_shapes=(AXES,),
        verbose=False,
    )
    model = program.model_proto  # type: ignore[union-attr]
    for node in model.graph.node:
        del node.metadata_props[:]  # where in the source it stands: paths of this machine
    model.metadata_props.add(key="card.json", value=card)
    onnx.save_model(model, path)


def runner(path: Path, engine: str = "") -> Runner:
    """Returns what runs a file of any of the formats: uint8 (N, 3 or 4, H, W) -> float32 (N, 1, H, W), 0..1.

    Args:
        path: ends in .pt, .pt2 or .onnx.
        engine: `openvino` runs an ONNX file with it; else onnxruntime does. Both compute in float32, on the CPU.

    Raises:
        WeightsError: no such file or format, or the file is damaged.
        KitError: the engine is not installed.
    """
    run = _unchecked(path, engine)

    def checked(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (3, 4):
            raise WeightsError(f"expected uint8 (N, 3 or 4, H, W), got {images.dtype} {images.shape}")
        return run(images)

    return checked


def _unchecked(path: Path, engine: str) -> Runner:
    if not path.is_file():
        raise WeightsError(f"no file {path}", nearest(path.name, (p.name for p in path.parent.glob("*.*"))))
    engines = {".pt": ("",), ".pt2": ("",), ".onnx": ("", "onnxruntime", "openvino")}
    if path.suffix not in engines:
        raise WeightsError(f"{path} is of no known format", "expected .pt, .pt2 or .onnx")
    if engine not in engines[path.suffix]:
        raise WeightsError(f"no engine {engine!r} for {path.name}", "leave it out; for .onnx there is openvino, too")
    if path.suffix == ".onnx":
        return _openvino(path) if engine == "openvino" else _onnxruntime(path)
    with muted():
        module: Any = _torchscript(path) if path.suffix == ".pt" else pt2.load(path).module()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            probability: NDArray[np.float32] = module(torch.from_numpy(np.ascontiguousarray(images))).numpy()
        return probability

    return run


def _torchscript(path: Path) -> Any:
    try:
        return torchscript.load(path, "cpu")
    except RuntimeError as cause:
        reason = str(cause).strip().splitlines()[0]
        raise WeightsError(f"{path} does not load as TorchScript: {reason}", "export or fetch it again") from cause


def _onnxruntime(path: Path) -> Runner:
    need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # fatal; what else goes wrong is raised
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as cause:  # a class of its own for each cause, none of them public
        raise WeightsError(f"{path} does not load as ONNX: {str(cause).splitlines()[0]}", "export it again") from cause

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        probability: NDArray[np.float32] = session.run(["probability"], {"image": images})[0]
        return probability

    return run


def _openvino(path: Path) -> Runner:
    core = openvino.package("openvino", path.name).Core()
    try:
        # by default it computes in bfloat16 where the processor can
        compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as cause:
        raise WeightsError(f"{path} does not load as ONNX: {str(cause).splitlines()[0]}", "export it again") from cause

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        probability: NDArray[np.float32] = compiled({"image": images})["probability"].copy()
        return probability

    return run


def checked_difference(path: Path, expected: Path, pad_multiple: int) -> float:
    """Returns the largest difference in probability of two files, on sides that are multiples and on odd ones.

    Args:
        path: of any format.
        expected: likewise.
        pad_multiple: px.

    Raises:
        WeightsError: it is more than `DIFFERENCE_LIMIT`.
    """
    random = np.random.default_rng(0)
    shapes = [(1, 3, pad_multiple, pad_multiple), (2, 4, 2 * pad_multiple + 1, pad_multiple - 1)]
    batches = [random.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    batches[1][:, 3, :5] = 0  # no data
    run, reference = runner(path), runner(expected)
    found = float(np.max([np.abs(run(batch) - reference(batch)).max() for batch in batches]))
    if not found <= DIFFERENCE_LIMIT:  # so written, NaN fails too
        raise WeightsError(
            f"the {path.suffix} file differs from TorchScript by {found:.2g} in probability, expected at most "
            f"{DIFFERENCE_LIMIT}",
            "a network must not branch on the size or the values of its input",
        )
    return found
