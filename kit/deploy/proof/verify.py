"""A weights file proven: whole, as its card says, and equal to the trained networks in every format beside it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from kit.deploy.freeze.runners import runner
from kit.deploy.proof import images
from kit.deploy.proof.comparing import (
    Batch,
    Candidate,
    Row,
    batch_of,
    compare,
    exact,
    last_line,
    report_of,
    run_alone,
    runner_of,
)
from kit.deploy.proof.parity import PARITY_LIMIT
from kit.deploy.proof.reference import Expected, Reference, read_reference
from kit.deploy.trust.allowlist import operators
from kit.deploy.weights.card import Card
from kit.deploy.weights.load import Weights, load_weights
from kit.errors import KitError, WeightsError

LISTED = 10  # faults shown in one error


def _opened(path: Path) -> Batch:
    """Returns what runs a file of another format."""
    run = runner(path)
    return lambda x: torch.from_numpy(run(x.numpy()))


FORMATS: dict[str, Callable[[Path], Batch]] = {".pt2": _opened, ".onnx": _opened}  # beside NAME.pt


@dataclass(frozen=True)
class Finding:
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
class Verified:
    """What was found about a weights file.

    Args:
        path: of it.
        sha256: of it, in hex.
        compared: whether it holds what the networks gave, and was compared with that.
        checks: what was looked at.
        rows: one a file and image.
    """

    path: Path
    sha256: str
    compared: bool
    checks: tuple[Finding, ...]
    rows: tuple[Row, ...]

    def faults(self) -> list[str]:
        """Returns what is wrong."""
        told = [*(check.fault for check in self.checks), *(row.fault for row in self.rows)]
        return [fault for fault in told if fault]

    def to_json(self) -> str:
        """Returns all of it as JSON text."""
        found = {
            "weights": str(self.path), "file_sha256": self.sha256, "verified": not self.faults(),
            "compared": self.compared, "checks": {check.name: check.fault or check.said for check in self.checks},
            "faults": self.faults(), "rows": [row.to_dict() for row in self.rows],
        }  # fmt: skip
        return json.dumps(found, indent=1)

    def require(self) -> None:
        """Does nothing where nothing is wrong.

        Raises:
            WeightsError: lists what is.
        """
        if faults := self.faults():
            more = [f"and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
            raise WeightsError(
                f"{self.path} has {len(faults)} fault{'s' * (len(faults) > 1)}:\n  "
                + "\n  ".join(faults[:LISTED] + more),
                "do not use it: export or fetch it again, with all files of that name together",
            )


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
    checks = [_check_card(weights), _check_sum(weights), _check_operators(weights)]
    checks += [_check_reference(reference, runner), _check_members(weights, reference)]
    expected = list(reference.expected) if reference else []
    rows = compare(runner, expected)
    if not expected:
        expected, rows = run_alone(runner)
    for suffix, opened in FORMATS.items():
        if not (beside := path.with_suffix(suffix)).is_file():
            continue
        try:
            rows += compare(Candidate(beside.name, opened(beside)), expected)
        except KitError as cause:  # damaged, or nothing installed that runs it
            checks.append(Finding(beside.name, "", f"{cause.message} ({cause.hint})"))
    return Verified(path, weights.sha256, reference is not None, tuple(checks), tuple(rows))


def _check_card(weights: Weights) -> Finding:
    """Compares the card inside with the one beside."""
    card, beside = weights.card, weights.path.with_suffix(".json")
    score = "no score" if card.score is None else f"Jaccard {card.score:.4f} out of fold"
    said = f"{card.recipe}, views {card.views}, {card.gsd_m:.2f} m per pixel, {score}, exported {card.created}"
    if not beside.is_file():
        return Finding("card", f"{said}; no {beside.name} beside")
    try:
        other = Card.from_json(beside.read_text(), beside.name)
    except WeightsError as cause:
        return Finding("card", said, cause.message)
    differing = [field.name for field in fields(Card) if getattr(card, field.name) != getattr(other, field.name)]
    if differing:
        return Finding("card", said, f"{beside.name} differs from the card inside in {', '.join(differing)}")
    return Finding("card", f"{said}; the same inside and in {beside.name}")


def _check_sum(weights: Weights) -> Finding:
    """Compares the checksum with the report's; the card's was compared when the weights were loaded."""
    card, told = weights.path.with_suffix(".json"), report_of(weights.path)
    sources = [path.name for path in (card, told) if path.is_file()]
    said = f"sha256 {weights.sha256[:12]}..., " + (f"as in {' and '.join(sources)}" if sources else "none beside it")
    if not told.is_file():
        return Finding("checksum", said)
    try:
        expected = str(json.loads(told.read_text())["file_sha256"])
    except (ValueError, KeyError, TypeError):
        return Finding("checksum", said, f"{told.name} is not a report with file_sha256")
    if expected != weights.sha256:
        return Finding("checksum", said, f"{told.name} is the report of another file, sha256 {expected[:12]}...")
    return Finding("checksum", said)


def _check_operators(weights: Weights) -> Finding:
    """Tells what the file may do: `load_weights` refuses a file that may do more."""
    return Finding("operators", f"{len(operators(weights.path))}, all on tensors alone; listed before it was loaded")


def _check_reference(reference: Reference | None, runner: Candidate) -> Finding:
    """Tells what the files are compared with."""
    if reference is None:
        said = f"none in {runner.file}, of an older kit: other formats are compared with {runner.file} itself"
        return Finding("reference", said)
    said = f"from the networks, {reference.cpu}, torch {reference.torch_version}"
    left_out = [str(one.case) for one in reference.expected if one.case.core and not runner.core]
    return Finding("reference", said + "".join(f"; {case}: left out, the file has no core_0" for case in left_out))


def _check_members(weights: Weights, reference: Reference | None) -> Finding:
    """Compares what each network says, their number, and what the file's methods say, on the first image."""
    case = reference.expected[0].case if reference else images.CASES[0]
    x = batch_of(case.image()).to(weights.device)
    try:
        with torch.inference_mode(), exact():
            votes, vote, forward, mask = (
                run(x)[0].float().cpu().numpy()
                for run in (weights.module.members, weights.module.probability, weights.module, weights.module.mask)
            )
    except (AttributeError, RuntimeError) as cause:
        return Finding("members", "", f"{weights.path.name} fails on {case}: {last_line(cause)}")
    said, listed = f"{len(votes)} networks", len(weights.card.members)
    if len(votes) != listed or (reference and len(reference.votes) != listed):
        return Finding("members", said, f"{weights.path.name} has {len(votes)} networks, its card lists {listed}")
    own = Expected.of(case, case.image(), vote[0])
    others = {"forward": forward[0], "mask": mask[0], "the mean of members": votes.mean(axis=0)}
    if odd := [name for name, found in others.items() if own.compared(found).equal_masks < 1]:
        return Finding("members", said, f"{weights.path.name}: {odd[0]} is not what probability gives on {case}")
    if reference is None:
        return Finding("members", said)
    largest = float(np.abs(votes - reference.votes).max())
    said += f", each at most {largest:.1e} from the one that was trained"
    if largest <= PARITY_LIMIT:
        return Finding("members", said)
    far = int(np.abs(votes - reference.votes).max(axis=(1, 2)).argmax())
    fault = f"network {far} of {weights.path.name} differs by {largest:.2g} in probability from the one trained"
    return Finding("members", said, fault)
