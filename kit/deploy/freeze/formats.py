"""Writes the ensemble as torch.export's `.pt2`, and as ONNX for onnxruntime and OpenVINO, or for GIS programs."""

import copy
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kit.console import muted
from kit.deploy.freeze.ensemble import Core, OneGraph
from kit.deploy.freeze.gis import TileChannels, TileEnsemble, gis_metadata, tile_px_of
from kit.deploy.weights.card import Card
from kit.errors import KitError, WeightsError, nearest

SUFFIXES = {"torchscript": ".pt", "pt2": ".pt2", "onnx": ".onnx", "onnx-gis": ".gis.onnx"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PACKAGES = {"onnx": ONNX_PACKAGES, "onnx-gis": ONNX_PACKAGES}
AXES = {0: "n", 1: "channels", 2: "height", 3: "width"}
OUTPUTS = ("probability", "mask", "members")
ONNX_LIMIT_BYTES = 2_000_000_000  # a protobuf file has at most 2 GiB, graph included


class Outputs(nn.Module):
    """The ensemble as ONNX needs it: all outputs of one call.

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
        probability = self.ensemble.vote(members)
        return probability, (probability > 0.5).to(torch.uint8), members


def chosen(text: str) -> tuple[str, ...]:
    """Returns the formats beside TorchScript in a comma-separated list.

    Raises:
        KitError: an unknown format, or one whose packages are not installed.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        kind = kind_of(name)
        if kind not in SUFFIXES or (kind != name and kind != "onnx-gis"):
            raise KitError(f"no format {name!r}, expected torchscript, pt2, onnx or onnx-gis", nearest(name, SUFFIXES))
        tile_px_of(name)
        need(*PACKAGES.get(kind, ()))
    return tuple(name for name in dict.fromkeys(names) if name != "torchscript")


def kind_of(name: str) -> str:
    """Returns the format in a name such as `onnx-gis:1024`: a key of `SUFFIXES`."""
    return name.partition(":")[0]


def need(*packages: str) -> None:
    """Raises KitError when one of the packages is not installed."""
    if missing := [package for package in packages if find_spec(package) is None]:
        raise KitError(f"not installed here: {', '.join(missing)}", f"pip install {' '.join(missing)}")


def write(
    name: str,
    path: Path,
    members: Sequence[nn.Module],
    views: str,
    pad_multiple: int,
    card: str,
    weights: Sequence[float] = (),
) -> None:
    """Writes an ensemble as `pt2` or `onnx`: any batch, height and width, RGB or RGBA, all in one graph; or `onnx-gis`.

    Args:
        name: of the format, as `chosen` returns it.
        path: with the format's suffix.
        members: networks as `kit.deploy.freeze.ensemble.portable` makes them.
        views: `none`, `flips` or `d4`.
        pad_multiple: px; a multiple of every member's.
        card: JSON, kept inside as `card.json`.
        weights: of the members' votes, see `Ensemble`.

    Raises:
        WeightsError: a network cannot be followed with symbols for sizes, or the file would be too large.
    """
    copies = copy.deepcopy(list(members))  # an exporter replaces the attributes that a network sets as it runs
    graph = TileEnsemble if kind_of(name) == "onnx-gis" else OneGraph
    ensemble = graph([Core(member) for member in copies], views, pad_multiple, weights).eval()
    try:
        with muted():
            if isinstance(ensemble, TileEnsemble):
                _write_tiles(path, ensemble, card, tile_px_of(name))
            elif name == "onnx":
                _write_onnx(path, ensemble, card)
            else:
                _write_pt2(_program(ensemble, pad_multiple), path, card)
    except KitError:
        raise
    except Exception as cause:  # exporters raise errors of any class
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise WeightsError(
            f"these networks cannot be exported as {path.suffix} with torch {torch.__version__}: {reason}",
            "a network must not branch on size or values of its input; torch 2.15 is known to work",
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
    _check_size(ensemble)
    program = torch.onnx.export(
        _program(Outputs(ensemble), ensemble.pad_multiple),
        dynamo=True,
        input_names=["image"],
        output_names=OUTPUTS,
        dynamic_shapes=(AXES,),
        verbose=False,
    )
    _save_onnx(program, path, {"card.json": card})


def _write_tiles(path: Path, ensemble: TileEnsemble, card: str, tile_px: int) -> None:
    """Writes one file for GIS programs: input `image` and output `channels` of one tile, see `TileChannels`."""
    metadata = gis_metadata(Card.from_json(card), tile_px)
    _check_size(ensemble)
    with torch.no_grad():
        program = torch.onnx.export(
            TileChannels(ensemble).eval(),
            (torch.zeros(1, 3, tile_px, tile_px),),
            dynamo=True,
            input_names=["image"],
            output_names=["channels"],
            verbose=False,
        )
    _save_onnx(program, path, metadata | {"card.json": card})


def _check_size(ensemble: OneGraph) -> None:
    size = sum(tensor.nbytes for tensor in ensemble.state_dict().values())
    if size > ONNX_LIMIT_BYTES:
        raise WeightsError(
            f"{size / 1e9:.1f} GB of weights, an ONNX file holds at most {ONNX_LIMIT_BYTES / 1e9:.0f} GB",
            "export fewer members, or pt2",
        )


def _save_onnx(program: Any, path: Path, metadata: Mapping[str, str]) -> None:
    import onnx

    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # its place in the source: paths of this machine
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save_model(model, path)


def _write_pt2(program: torch.export.ExportedProgram, path: Path, card: str) -> None:
    """Writes an exported program.

    It leaves out the example inputs, which torch would pickle; the place of each step in the source, with paths of
    this machine; and the assertions that tensors have the example's device and type.

    Args:
        program: changed in place.
        path: ends in .pt2.
        card: JSON, for the extra file `card.json`.
    """
    program._example_inputs = None
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
            continue
        node.meta.pop("stack_trace", None)
        if isinstance(node.meta.get("val"), torch.Tensor):
            node.meta["val"] = _short(node.meta["val"])
    torch.export.save(program, path, extra_files={"card.json": card})


def _short(value: torch.Tensor) -> torch.Tensor:
    """Returns the shape of a step's result, with `Max(1, side)` in strides shortened to `side`: no side is below 1.

    Loading parses each stride, which would take four times as long.
    """
    fake_mode = getattr(value, "fake_mode", None)
    if fake_mode is None or all(isinstance(stride, int) for stride in value.stride()):
        return value
    with fake_mode:
        strides = [_without_max(stride) for stride in value.stride()]
        return torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)


def _without_max(stride: Any) -> Any:
    if isinstance(stride, int):
        return stride
    short = stride.node.expr.replace(
        lambda part: type(part).__name__ == "Max" and len(part.args) == 2 and part.args[0] == 1,
        lambda part: part.args[1],
    )
    return stride.node.shape_env.create_symintnode(short, hint=stride.node.hint)
