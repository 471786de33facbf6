"""Weights files of any format, run on drawn images and compared with the answers of the trained networks."""

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
from kit.deploy.freeze.ensemble import METHODS
from kit.deploy.proof import images
from kit.deploy.proof.parity import EQUAL_LIMIT, PARITY_LIMIT, Parity
from kit.deploy.proof.reference import HEAD, HINT, Answer, Reference
from kit.errors import WeightsError

COLUMNS = ("file", "image", "building", "difference", "equal", "seconds")

Batch = Callable[[Tensor], Tensor]  # uint8 (N, 3 or 4, H, W) -> float32 (N, 1, H, W), 0..1, both on the CPU


@dataclass(frozen=True)
class Candidate:
    """A file to compare with the trained networks."""

    file: str  # its name
    ensemble: Batch  # the probability of all networks and views
    core: Batch | None = None  # that of the first network in one view; None where the file does not offer it
    limit: float = PARITY_LIMIT  # of its difference from the networks, see `parity_limit`


@dataclass(frozen=True)
class ImageResult:
    """A file's result on one image."""

    file: str  # its name
    image: str  # which
    building: float  # the expected share of building, 0..1
    # the difference from the networks; None where the file failed, or is what the others are compared with
    parity: Parity | None
    seconds: float  # of one run; the first of a size includes preparations
    fault: str = ""  # what is wrong; empty when nothing is

    def cells(self) -> tuple[str, ...]:
        """Returns a cell for each of `COLUMNS`."""
        parity = (f"{self.parity.max_abs:.1e}", f"{self.parity.equal_masks:.4%}") if self.parity else ("-", "-")
        return self.file, self.image, f"{self.building:.1%}", *parity, f"{self.seconds:.2f}"

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        finite = self.parity and math.isfinite(self.parity.max_abs)  # JSON has no NaN
        return {
            "file": self.file, "image": self.image, "building": round(self.building, 4),
            "max_abs": self.parity.max_abs if self.parity and finite else None,
            "equal_masks": self.parity.equal_masks if self.parity else None, "seconds": round(self.seconds, 3),
        }  # fmt: skip


def candidate_of(
    module: Any, file: str, pad_multiple: int, device: str = "cpu", limit: float = PARITY_LIMIT
) -> Candidate:
    """Returns a loaded TorchScript ensemble as a candidate.

    Args:
        module: as `kit.deploy.weights.torchscript.load` returns it, on `device`.
        file: its name.
        pad_multiple: of its card, px.
        device: as torch names it.
        limit: of its difference from the networks, see `parity_limit`.

    Raises:
        WeightsError: it lacks a method.
    """
    if missing := [name for name in METHODS if not hasattr(module, name)]:
        raise WeightsError(
            f"{file} has no {', '.join(missing)}, expected an ensemble", "weights are made by kit export"
        )

    def ensemble(x: Tensor) -> Tensor:
        probability: Tensor = module.probability(x.to(device)).cpu()
        return probability

    def core(x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        pad = (0, -width % pad_multiple, 0, -height % pad_multiple)
        logits: Tensor = module.core_0(F.pad(x[:, :3].float(), pad, mode="replicate").to(device))
        return logits[:, :1, :height, :width].sigmoid().cpu()

    return Candidate(file, ensemble, core if hasattr(module, "core_0") else None, limit)


def compare(candidate: Candidate, answers: Sequence[Answer]) -> list[ImageResult]:
    """Returns a file's result on each image that it can run; what goes wrong is the fault of that comparison."""
    possible = [answer for answer in answers if candidate.core or not answer.case.core]
    return [_compared(candidate, answer) for answer in track(possible, f"compare {candidate.file}")]


def run_alone(candidate: Candidate) -> tuple[list[Answer], list[ImageResult]]:
    """Returns a file's own answers, to compare others with, and its results."""
    answers, rows = [], []
    for case in track([case for case in images.CASES if not case.core], f"run {candidate.file}"):
        image = case.image()
        start = time.perf_counter()
        probability = _run(candidate, case, image)
        seconds = time.perf_counter() - start
        answers.append(Answer.of(case, image, probability))
        fault = "" if np.isfinite(probability).all() else f"{candidate.file} gives NaN on {case}"
        rows.append(ImageResult(candidate.file, str(case), answers[-1].building, None, seconds, fault))
    return answers, rows


def report_of(path: Path) -> Path:
    """Returns where the parity report of a weights file lies."""
    return path.with_suffix(".parity.json")


def report(
    file: str, file_sha256: str, reference: Reference, tiles: Parity, rows: Iterable[ImageResult], limit: float
) -> str:
    """Returns the measurements of an export as JSON text, for people; `kit verify` reads the reference in the weights.

    Args:
        file: name of the weights.
        file_sha256: of them, in hex.
        reference: of the networks.
        tiles: the difference on tiles of the training set and on noise, over all pixels.
        rows: the differences on the drawn images.
        limit: of the difference in probability.
    """
    machine = {key: getattr(reference, key) for key in HEAD}
    limits = {"max_abs": limit, "equal_masks": EQUAL_LIMIT}
    on_tiles = {"max_abs": tiles.max_abs, "equal_masks": tiles.equal_masks, "pixels": tiles.pixels}
    measured = {"limits": limits, "tiles": on_tiles, "images": [row.to_dict() for row in rows]}
    return json.dumps({"file": file, "file_sha256": file_sha256} | machine | measured, indent=2, allow_nan=False) + "\n"


def batch_of(image: NDArray[np.uint8]) -> Tensor:
    """Returns an image (H, W, C) as a batch (1, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


def exact() -> Any:
    """Returns a context in which GPUs multiply in float32, not in TF32: files are compared, not machines."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def last_line(cause: Exception) -> str:
    """Returns the message of a TorchScript error, which stands below its traceback."""
    return str(cause).strip().splitlines()[-1]


def _compared(candidate: Candidate, answer: Answer) -> ImageResult:
    """Returns a file's result on one image."""
    image, label = answer.image(), str(answer.case)
    start = time.perf_counter()
    try:
        parity = answer.compared(_run(candidate, answer.case, image))
        difference = parity.fault(candidate.limit)
        fault = f"{candidate.file} differs from its networks on {label} by {difference}" if difference else ""
    except WeightsError as cause:
        parity, fault = None, cause.message
    return ImageResult(candidate.file, label, answer.building, parity, time.perf_counter() - start, fault)


def _run(candidate: Candidate, case: images.Case, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the probability, float32 (H, W); WeightsError where the file fails."""
    predict = candidate.core if case.core and candidate.core else candidate.ensemble
    try:
        with torch.inference_mode(), exact():
            batch = predict(batch_of(image))
    except RuntimeError as cause:
        raise WeightsError(f"{candidate.file} fails on {case}: {last_line(cause)}", HINT) from cause
    if batch.shape != (1, 1, case.height_px, case.width_px):
        raise WeightsError(f"{candidate.file} gives {tuple(batch.shape)} on {case}", HINT)
    probability: NDArray[np.float32] = batch[0, 0].float().numpy()
    return probability
