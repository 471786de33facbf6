"""Weights files of any format as functions, to compare them with each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from kit.console import muted
from kit.deploy.freeze.formats import SUFFIXES, need
from kit.deploy.trust import pt2
from kit.deploy.weights import torchscript
from kit.errors import WeightsError, nearest

__all__ = ["is_of_tiles", "runner", "tile_difference"]

Runner: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

DIFFERENCE_LIMIT = 1e-4  # other kernels and other batches move a probability by about 1e-6


def runner(path: Path) -> Runner:
    """Returns a weights file as a function: uint8 (N, 3 or 4, H, W) -> float32 (N, 1, H, W), 0..1, on the CPU.

    Args:
        path: ends in .pt, .pt2 or .onnx.

    Raises:
        WeightsError: no such file or format, or the file is damaged.
        KitError: the format's package is not installed.
    """
    run = _unchecked(path)

    def checked(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (3, 4):
            raise WeightsError(f"expected uint8 (N, 3 or 4, H, W), got {images.dtype} {images.shape}")
        return run(images)

    return checked


def _unchecked(path: Path) -> Runner:
    if not path.is_file():
        raise WeightsError(f"no file {path}", nearest(path.name, (p.name for p in path.parent.glob("*.*"))))
    if path.suffix not in (".pt", ".pt2", ".onnx"):
        raise WeightsError(f"{path} has an unknown format", "expected .pt, .pt2 or .onnx")
    if path.suffix == ".onnx":
        return _onnxruntime(path)
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
    session = _session(path)

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        probability: NDArray[np.float32] = session.run(["probability"], {"image": images})[0]
        return probability

    return run


def _session(path: Path) -> Any:
    """Returns a session of ONNX Runtime on the CPU."""
    need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # fatal; other errors are raised
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as cause:  # its classes are not public
        raise WeightsError(f"{path} does not load as ONNX: {str(cause).splitlines()[0]}", "export it again") from cause


def is_of_tiles(path: Path) -> bool:
    """Returns whether a file has the format `onnx-gis`, by its name."""
    return path.name.endswith(SUFFIXES["onnx-gis"])


def tile_side(path: Path) -> int:
    """Returns the side of the tiles that an `onnx-gis` file takes, px.

    Raises:
        WeightsError: the file is damaged, or is none for tiles.
        KitError: onnxruntime is not installed.
    """
    return _tile_side(path, _session(path))


def _tile_side(path: Path, session: Any) -> int:
    shape = session.get_inputs()[0].shape
    if len(shape) != 4 or shape[:2] != [1, 3] or shape[2] != shape[3] or not isinstance(shape[2], int):
        raise WeightsError(f"{path} takes {shape}, expected tiles (1, 3, S, S)", "export it again")
    return shape[2]


def tile_difference(path: Path, expected: Runner) -> float:
    """Returns the largest difference in probability between an `onnx-gis` file and other weights, on a random tile.

    Args:
        path: ends in .gis.onnx.
        expected: the other weights.

    Raises:
        WeightsError: the file is damaged, or is none for tiles.
        KitError: onnxruntime is not installed.
    """
    session = _session(path)
    side_px = _tile_side(path, session)
    tile = np.random.default_rng(0).integers(0, 256, (1, 3, side_px, side_px), dtype=np.uint8)
    channels = session.run(None, {"image": tile.astype(np.float32) / 255})[0]
    if channels.shape != (1, 2, side_px, side_px):
        raise WeightsError(f"{path} returns {channels.shape}, expected two channels", "export it again")
    building = expected(tile)
    return float(np.abs(channels - np.concatenate([1 - building, building], axis=1)).max())


def checked_difference(path: Path, expected: Path, pad_multiple: int) -> float:
    """Returns the largest difference in probability of two files, on sides that are multiples and on odd ones.

    Args:
        path: of any format.
        expected: likewise.
        pad_multiple: px.

    Raises:
        WeightsError: it is more than `DIFFERENCE_LIMIT`.
    """
    if is_of_tiles(path):
        return _checked(tile_difference(path, runner(expected)), path)
    random = np.random.default_rng(0)
    shapes = [(1, 3, pad_multiple, pad_multiple), (2, 4, 2 * pad_multiple + 1, pad_multiple - 1)]
    batches = [random.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    batches[1][:, 3, :5] = 0  # no data
    run, reference = runner(path), runner(expected)
    return _checked(float(np.max([np.abs(run(batch) - reference(batch)).max() for batch in batches])), path)


def _checked(largest: float, path: Path) -> float:
    """Returns a difference in probability that is small enough; otherwise raises WeightsError."""
    if not largest <= DIFFERENCE_LIMIT:  # in this form, NaN fails too
        raise WeightsError(
            f"the {path.suffix} file differs from TorchScript by {largest:.2g} in probability, expected at most "
            f"{DIFFERENCE_LIMIT}",
            "a network must not branch on size or values of its input",
        )
    return largest
