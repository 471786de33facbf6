"""Weights files, of any format, run on drawn images and compared with what the networks gave."""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kit.console import track
from kit.deploy.proof import images
from kit.deploy.proof.parity import EQUAL_LIMIT, PARITY_LIMIT, Parity
from kit.deploy.proof.reference import HEAD, Expected, Reference
from kit.errors import WeightsError

METHODS = ("probability", "mask", "members")
COLUMNS = ("file", "image", "building", "difference", "equal", "seconds")

Batch = Callable[[Tensor], Tensor]  # uint8 (N, 3 or 4, H, W) -> float32 (N, 1, H, W), 0..1, both on the CPU


@dataclass(frozen=True)
class Candidate:
    """A file, ready to run.

    Args:
        file: its name.
        ensemble: the probability of all networks and views.
        core: that of the first network in one view; None where the file does not offer it.
    """

    file: str
    ensemble: Batch
    core: Batch | None = None


@dataclass(frozen=True)
class Row:
    """How a file did on one image.

    Args:
        file: its name.
        image: which.
        building: the share of building that was expected, 0..1.
        parity: how it compares; None where it failed, or is itself what the others are compared with.
        seconds: of one run; the first of a size includes what prepares it.
        fault: what is wrong; empty when nothing is.
    """

    file: str
    image: str
    building: float
    parity: Parity | None
    seconds: float
    fault: str = ""

    def cells(self) -> tuple[str, ...]:
        """Returns a cell for each of `COLUMNS`."""
        parity = (f"{self.parity.max_abs:.1e}", f"{self.parity.equal_masks:.4%}") if self.parity else ("-", "-")
        return self.file, self.image, f"{self.building:.1%}", *parity, f"{self.seconds:.2f}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the row as JSON values."""
        measured: dict[str, float | None] = {"max_abs": None, "equal_masks": None}
        if self.parity:
            largest = self.parity.max_abs if math.isfinite(self.parity.max_abs) else None  # JSON has no NaN
            measured = {"max_abs": largest, "equal_masks": self.parity.equal_masks}
        known = {"file": self.file, "image": self.image, "building": round(self.building, 4)}
        return known | measured | {"seconds": round(self.seconds, 3)}


def runner_of(module: Any, file: str, pad_multiple: int, device: str = "cpu") -> Candidate:
    """Returns the runner of a TorchScript ensemble that was loaded on `device`.

    Args:
        module: as `kit.deploy.weights.torchscript.load` returns it.
        file: its name.
        pad_multiple: of its card, px.
        device: as torch names it.

    Raises:
        WeightsError: it lacks a method.
    """
    if missing := [name for name in METHODS if not hasattr(module, name)]:
        raise WeightsError(
            f"{file} has no {', '.join(missing)}, expected an ensemble", "weights are made by kit export"
        )

    def ensemble(x: Tensor) -> Tensor:
        found: Tensor = module.probability(x.to(device)).cpu()
        return found

    def core(x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        pad = (0, -width % pad_multiple, 0, -height % pad_multiple)
        logits: Tensor = module.core_0(F.pad(x[:, :3].float(), pad, mode="replicate").to(device))
        return logits.sigmoid()[:, :, :height, :width].cpu()

    return Candidate(file, ensemble, core if hasattr(module, "core_0") else None)


def compare(runner: Candidate, expected: Sequence[Expected]) -> list[Row]:
    """Returns how a file does on each image that it can run; what it cannot do is a fault of that row."""
    able = [one for one in expected if runner.core or not one.case.core]
    return [_row(runner, one) for one in track(able, f"compare {runner.file}")]


def run_alone(runner: Candidate) -> tuple[list[Expected], list[Row]]:
    """Returns what a file itself gives, for others to be compared with, and its rows."""
    expected, rows = [], []
    for case in track([case for case in images.CASES if not case.core], f"run {runner.file}"):
        image = case.image()
        start = time.perf_counter()
        probability = _run(runner, case, image)
        seconds = time.perf_counter() - start
        expected.append(Expected.of(case, image, probability))
        fault = "" if np.isfinite(probability).all() else f"{runner.file} gives NaN on {case}"
        rows.append(Row(runner.file, str(case), expected[-1].building, None, seconds, fault))
    return expected, rows


def report_of(path: Path) -> Path:
    """Returns where the parity report of a weights file lies."""
    return path.with_suffix(".parity.json")


def report(file: str, file_sha256: str, reference: Reference, tiles: Parity, rows: Iterable[Row]) -> str:
    """Returns what was measured at export as JSON text, to read; what verifies is inside the weights.

    Args:
        file: name of the weights.
        file_sha256: of them, in hex.
        reference: of the networks.
        tiles: how the file compares on tiles of the training set and on noise, over all pixels.
        rows: how it compares on the drawn images.
    """
    machine = {key: getattr(reference, key) for key in HEAD}
    limits = {"max_abs": PARITY_LIMIT, "equal_masks": EQUAL_LIMIT}
    on_tiles = {"max_abs": tiles.max_abs, "equal_masks": tiles.equal_masks, "pixels": tiles.pixels}
    measured = {"limits": limits, "tiles": on_tiles, "images": [row.to_dict() for row in rows]}
    return json.dumps({"file": file, "file_sha256": file_sha256} | machine | measured, indent=2, allow_nan=False) + "\n"


def batch_of(image: NDArray[np.uint8]) -> Tensor:
    """Returns an image (H, W, C) as a batch (1, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


def exact() -> Any:
    """Returns a context in which GPUs multiply in float32, not in TF32: a file is compared here, not a machine."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def last_line(cause: Exception) -> str:
    """Returns what a TorchScript error ends with: the message, below its traceback."""
    return str(cause).strip().splitlines()[-1]


def _row(runner: Candidate, one: Expected) -> Row:
    """Returns how a file does on one image."""
    image, label = one.image(), str(one.case)
    start = time.perf_counter()
    try:
        parity = one.compared(_run(runner, one.case, image))
    except WeightsError as cause:
        return Row(runner.file, label, one.building, None, time.perf_counter() - start, cause.message)
    fault = "" if parity.holds else f"{runner.file} differs from its networks on {label} by {parity}"
    return Row(runner.file, label, one.building, parity, time.perf_counter() - start, fault)


def _run(runner: Candidate, case: images.Case, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the probability, float32 (H, W); WeightsError where the file fails."""
    asked = runner.core if case.core and runner.core else runner.ensemble
    try:
        with torch.inference_mode(), exact():
            found = asked(batch_of(image))
    except RuntimeError as cause:
        raise WeightsError(f"{runner.file} fails on {case}: {last_line(cause)}", "export it again") from cause
    if found.shape != (1, 1, case.height_px, case.width_px):
        raise WeightsError(f"{runner.file} gives {tuple(found.shape)} on {case}", "export it again")
    probability: NDArray[np.float32] = found[0, 0].float().numpy()
    return probability
