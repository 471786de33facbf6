"""A weights file proven: whole, as its card says, and equal to the trained networks in every format beside it."""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kit.console import track
from kit.deploy import drawn
from kit.deploy.card import Card
from kit.deploy.parity import EQUAL_LIMIT, PARITY_LIMIT, Parity
from kit.deploy.predict import Weights, load_weights
from kit.deploy.reference import HEAD, Expected, Reference, read_reference
from kit.errors import WeightsError

LISTED = 10  # faults shown in one error
METHODS = ("probability", "mask", "members")
COLUMNS = ("file", "image", "building", "difference", "equal", "seconds")

Batch = Callable[[Tensor], Tensor]  # uint8 (N, 3 or 4, H, W) -> float32 (N, 1, H, W), 0..1, both on the CPU
FORMATS: dict[str, Callable[[Path], Batch]] = {}  # the suffix of a file beside NAME.pt, and what opens it


@dataclass(frozen=True)
class Runner:
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
class Check:
    """One thing that was looked at.

    Args:
        name: of it.
        said: what was found.
        fault: what is wrong; empty when nothing is.
    """

    name: str
    said: str
    fault: str = ""


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
        return {"file": self.file, "image": self.image, "building": self.building, **measured, "seconds": self.seconds}


@dataclass(frozen=True)
class Verified:
    """What was found about a weights file.

    Args:
        path: of it.
        sha256: of it, in hex.
        checks: what was looked at.
        rows: one a file and image.
    """

    path: Path
    sha256: str
    checks: tuple[Check, ...]
    rows: tuple[Row, ...]

    def faults(self) -> list[str]:
        """Returns what is wrong."""
        told = [*(check.fault for check in self.checks), *(row.fault for row in self.rows)]
        return [fault for fault in told if fault]

    def to_json(self) -> str:
        """Returns all of it as JSON text."""
        head = {"weights": str(self.path), "file_sha256": self.sha256, "verified": not self.faults()}
        found = {"checks": {check.name: check.said for check in self.checks}, "faults": self.faults()}
        return json.dumps(head | found | {"rows": [row.to_dict() for row in self.rows]}, indent=1)

    def require(self) -> None:
        """Does nothing where nothing is wrong.

        Raises:
            WeightsError: lists what is.
        """
        if faults := self.faults():
            more = [f"and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
            raise WeightsError(
                f"{self.path} has {len(faults)} faults:\n  " + "\n  ".join(faults[:LISTED] + more),
                "do not use it: export or fetch it again, with all files of that name together",
            )


def find_weights(named: str, weights_dir: Path) -> Path:
    """Returns the weights file of a path, or of a name in the folder of weights; it need not exist."""
    path = Path(named)
    if path.suffix == ".pt":
        return path
    return (path if len(path.parts) > 1 else weights_dir / path).with_name(f"{path.name}.pt")


def verify(path: Path, device: str = "cpu") -> Verified:
    """Returns what was found about a weights file and the other formats beside it.

    Args:
        path: `NAME.pt`, as `kit export` wrote it.
        device: where it runs; the other formats run on the CPU.

    Raises:
        WeightsError: it is missing, not kit's, damaged, not what `NAME.json` beside it describes, or what it holds of
            the networks is damaged.
    """
    weights = load_weights(path, device)
    reference = read_reference(path)
    runner = runner_of(weights.module, weights.path.name, weights.card.pad_multiple, device)
    checks = [_check_card(weights), _check_sum(weights), _check_reference(reference, runner)]
    checks += [_check_members(weights, reference)]
    expected = list(reference.expected) if reference else []
    rows = compare(runner, expected)
    if not expected:
        expected, rows = _run_alone(runner)
    for suffix, opened in FORMATS.items():
        if not (beside := path.with_suffix(suffix)).is_file():
            continue
        try:
            rows += compare(Runner(beside.name, opened(beside)), expected)
        except WeightsError as cause:
            checks.append(Check(beside.name, "", cause.message))
    return Verified(path, weights.sha256, tuple(checks), tuple(rows))


def report_of(path: Path) -> Path:
    """Returns where the parity report of a weights file lies."""
    return path.with_suffix(".parity.json")


def runner_of(module: Any, file: str, pad_multiple: int, device: str = "cpu") -> Runner:
    """Returns the runner of a TorchScript ensemble that was loaded on `device`.

    Args:
        module: as `kit.deploy.torchscript.load` returns it.
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

    return Runner(file, ensemble, core if hasattr(module, "core_0") else None)


def compare(runner: Runner, expected: Sequence[Expected]) -> list[Row]:
    """Returns how a file does on each image that it can run; what it cannot do is a fault of that row."""
    able = [one for one in expected if runner.core or not one.case.core]
    return [_row(runner, one) for one in track(able, f"compare {runner.file}")]


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


def _row(runner: Runner, one: Expected) -> Row:
    """Returns how a file does on one image."""
    image, label = one.image(), str(one.case)
    start = time.perf_counter()
    try:
        parity = one.compared(_run(runner, one.case, image))
    except WeightsError as cause:
        return Row(runner.file, label, one.building, None, time.perf_counter() - start, cause.message)
    fault = "" if parity.holds else f"{runner.file} differs from its networks on {label} by {parity}"
    return Row(runner.file, label, one.building, parity, time.perf_counter() - start, fault)


def _run_alone(runner: Runner) -> tuple[list[Expected], list[Row]]:
    """Returns what a file itself gives, for others to be compared with, and its rows."""
    expected, rows = [], []
    for case in track([case for case in drawn.CASES if not case.core], f"run {runner.file}"):
        image = case.image()
        start = time.perf_counter()
        probability = _run(runner, case, image)
        seconds = time.perf_counter() - start
        expected.append(Expected.of(case, image, probability))
        fault = "" if np.isfinite(probability).all() else f"{runner.file} gives NaN on {case}"
        rows.append(Row(runner.file, str(case), expected[-1].building, None, seconds, fault))
    return expected, rows


def _run(runner: Runner, case: drawn.Case, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the probability, float32 (H, W); WeightsError where the file fails.

    GPUs compute in float32, without TF32: here a file is compared, not a machine.
    """
    run = runner.core if case.core and runner.core else runner.ensemble
    try:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            found = run(_batch(image))
    except RuntimeError as cause:
        raise WeightsError(f"{runner.file} fails on {case}: {_last_line(cause)}", "export it again") from cause
    if found.shape != (1, 1, case.height_px, case.width_px):
        raise WeightsError(f"{runner.file} gives {tuple(found.shape)} on {case}", "export it again")
    probability: NDArray[np.float32] = found[0, 0].float().numpy()
    return probability


def _batch(image: NDArray[np.uint8]) -> Tensor:
    """Returns an image (H, W, C) as a batch (1, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


def _last_line(cause: Exception) -> str:
    return str(cause).strip().splitlines()[-1]


def _check_card(weights: Weights) -> Check:
    """Compares the card inside with the one beside."""
    card, beside = weights.card, weights.path.with_suffix(".json")
    score = "no score" if card.score is None else f"Jaccard {card.score:.4f} out of fold"
    said = f"{card.recipe}, views {card.views}, {card.gsd_m:.2f} m per pixel, {score}, of {card.created}"
    if not beside.is_file():
        return Check("card", f"{said}; no {beside.name} beside")
    try:
        other = Card.from_json(beside.read_text(), beside.name)
    except WeightsError as cause:
        return Check("card", said, cause.message)
    differing = [field.name for field in fields(Card) if getattr(card, field.name) != getattr(other, field.name)]
    if differing:
        return Check("card", said, f"{beside.name} differs from the card inside in {', '.join(differing)}")
    return Check("card", f"{said}; the same inside and in {beside.name}")


def _check_sum(weights: Weights) -> Check:
    """Compares the checksum with the report's; the card's was compared when the weights were loaded."""
    card, told = weights.path.with_suffix(".json"), report_of(weights.path)
    sources = [path.name for path in (card, told) if path.is_file()]
    said = f"sha256 {weights.sha256[:12]}..., " + (f"as in {' and '.join(sources)}" if sources else "none beside it")
    if not told.is_file():
        return Check("checksum", said)
    try:
        expected = str(json.loads(told.read_text())["file_sha256"])
    except (ValueError, KeyError, TypeError):
        return Check("checksum", said, f"{told.name} is not a report with file_sha256")
    if expected != weights.sha256:
        return Check("checksum", said, f"{told.name} is the report of another file, sha256 {expected[:12]}...")
    return Check("checksum", said)


def _check_reference(reference: Reference | None, runner: Runner) -> Check:
    """Tells what the files are compared with."""
    if reference is None:
        said = f"none in {runner.file}, of an older kit: other formats are compared with {runner.file} itself"
        return Check("reference", said)
    said = f"from the networks, {reference.cpu}, torch {reference.torch_version}"
    left_out = [str(one.case) for one in reference.expected if one.case.core and not runner.core]
    return Check("reference", said + "".join(f"; left out, as the file has no core_0: {case}" for case in left_out))


def _check_members(weights: Weights, reference: Reference | None) -> Check:
    """Compares what each network says, their number, and what the file's methods say, on the first image."""
    case = reference.expected[0].case if reference else drawn.CASES[0]
    x = _batch(case.image()).to(weights.device)
    try:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            votes, vote, forward, mask = (
                run(x)[0].float().cpu().numpy()
                for run in (weights.module.members, weights.module.probability, weights.module, weights.module.mask)
            )
    except (AttributeError, RuntimeError) as cause:
        return Check("members", "", f"{weights.path.name} fails on {case}: {_last_line(cause)}")
    said, listed = f"{len(votes)} networks", len(weights.card.members)
    if len(votes) != listed or (reference and len(reference.votes) != listed):
        return Check("members", said, f"{weights.path.name} has {len(votes)} networks, its card lists {listed}")
    own = Expected.of(case, case.image(), vote[0])
    others = {"forward": forward[0], "mask": mask[0], "the mean of members": votes.mean(axis=0)}
    if odd := [name for name, found in others.items() if own.compared(found).equal_masks < 1]:
        return Check("members", said, f"{weights.path.name}: {odd[0]} is not what probability gives on {case}")
    if reference is None:
        return Check("members", said)
    largest = float(np.abs(votes - reference.votes).max())
    said += f", each at most {largest:.1e} from its own"
    if largest <= PARITY_LIMIT:
        return Check("members", said)
    far = int(np.abs(votes - reference.votes).max(axis=(1, 2)).argmax())
    fault = f"network {far} of {weights.path.name} differs by {largest:.2g} in probability from the one trained"
    return Check("members", said, fault)
