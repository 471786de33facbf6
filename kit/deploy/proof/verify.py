"""Verifies weights: undamaged, as in the card, and equal to the trained networks, in every format beside the file."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from kit.deploy.freeze.formats import SUFFIXES
from kit.deploy.freeze.runners import runner, tile_difference
from kit.deploy.proof import images
from kit.deploy.proof.comparing import (
    Batch,
    Candidate,
    ImageResult,
    batch_of,
    candidate_of,
    compare,
    exact,
    last_line,
    report_of,
    run_alone,
)
from kit.deploy.proof.parity import mean_vote, parity_limit
from kit.deploy.proof.reference import Answer, Reference, read_reference
from kit.deploy.trust.allowlist import operators
from kit.deploy.weights.card import Card
from kit.deploy.weights.load import Weights, load_weights
from kit.deploy.weights.store import read_beside, read_checksum
from kit.errors import KitError, WeightsError

LISTED = 10  # faults shown in one error


def _opened(path: Path) -> Batch:
    """Returns a file of another format as a function of tensors."""
    run = runner(path)
    return lambda x: torch.from_numpy(run(x.numpy()))


FORMATS: dict[str, Callable[[Path], Batch]] = {".pt2": _opened, ".onnx": _opened}  # beside NAME.pt


@dataclass(frozen=True)
class Finding:
    """One property of a weights file that was checked."""

    name: str  # of the property
    result: str  # the value
    fault: str = ""  # what is wrong; empty when nothing is


@dataclass(frozen=True)
class Verified:
    """The results of verifying a weights file."""

    path: Path  # of it
    sha256: str  # of it, in hex
    compared: bool  # whether it holds the networks' answers, and was compared with them
    checks: tuple[Finding, ...]  # its properties
    rows: tuple[ImageResult, ...]  # one a file and image

    def faults(self) -> list[str]:
        """Returns all faults."""
        faults = [*(check.fault for check in self.checks), *(row.fault for row in self.rows)]
        return [fault for fault in faults if fault]

    def to_json(self) -> str:
        """Returns all of it as JSON text."""
        record = {
            "weights": str(self.path), "file_sha256": self.sha256, "verified": not self.faults(),
            "compared": self.compared, "checks": {check.name: check.fault or check.result for check in self.checks},
            "faults": self.faults(), "rows": [row.to_dict() for row in self.rows],
        }  # fmt: skip
        return json.dumps(record, indent=1)

    def require(self) -> None:
        """Raises WeightsError with all faults, if there are any."""
        if faults := self.faults():
            more = [f"and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
            raise WeightsError(
                f"{self.path} has {len(faults)} fault{'s' * (len(faults) > 1)}:\n  "
                + "\n  ".join(faults[:LISTED] + more),
                "do not use it: export or fetch it again, with all files of that name together",
            )


def verify(path: Path, device: str = "cpu") -> Verified:
    """Returns the results of verifying a weights file and the other formats beside it.

    Args:
        path: `NAME.pt`, as `kit export` wrote it.
        device: where it runs; the other formats run on the CPU.

    Raises:
        WeightsError: it is missing, not kit's, damaged, or not what `NAME.json` beside it describes.
    """
    weights = load_weights(path, device)
    reference = read_reference(path)
    limit = parity_limit(weights.card.storage)
    candidate = candidate_of(weights.module, weights.path.name, weights.card.pad_multiple, device, limit)
    checks = [_check_card(weights), _check_sum(weights), _check_operators(weights)]
    checks += [_check_reference(reference, candidate), _check_members(weights, reference)]
    if reference:
        answers = list(reference.answers)
        rows = compare(candidate, answers)
    else:
        answers, rows = run_alone(candidate)
    for suffix, opened in FORMATS.items():
        if not (beside := path.with_suffix(suffix)).is_file():
            continue
        try:
            rows += compare(Candidate(beside.name, opened(beside)), answers)
        except KitError as cause:  # damaged, or nothing installed that runs it
            checks.append(Finding(beside.name, "", f"{cause.message} ({cause.hint})"))
    if (tiles := path.with_suffix(SUFFIXES["onnx-gis"])).is_file():
        checks.append(_check_tiles(tiles, path, limit))
    return Verified(path, weights.sha256, reference is not None, tuple(checks), tuple(rows))


def _check_tiles(tiles: Path, weights: Path, limit: float) -> Finding:
    """Compares the file for GIS programs with the weights, on a random tile of its size."""
    try:
        difference = tile_difference(tiles, runner(weights))
    except KitError as cause:  # damaged, or nothing installed that runs it
        return Finding(tiles.name, "", f"{cause.message} ({cause.hint})")
    result = f"a tile differs from {weights.name} by at most {difference:.1e} in probability"
    return Finding(tiles.name, result, "" if difference <= limit else f"{tiles.name}: {result}")


def _check_card(weights: Weights) -> Finding:
    """Compares the card inside with the one beside."""
    card, beside = weights.card, weights.path.with_suffix(".json")
    score = "no score" if card.score is None else f"Jaccard {card.score:.4f} out of fold"
    result = f"{card.recipe}, views {card.views}, {card.gsd_m:.2f} m per pixel, {score}, exported {card.created}"
    if not beside.is_file():
        return Finding("card", f"{result}; no {beside.name} beside")
    try:
        other, _ = read_beside(beside)
    except WeightsError as cause:
        return Finding("card", result, cause.message)
    differing = [field.name for field in fields(Card) if getattr(card, field.name) != getattr(other, field.name)]
    if differing:
        return Finding("card", result, f"{beside.name} differs from the card inside in {', '.join(differing)}")
    return Finding("card", f"{result}; the same inside and in {beside.name}")


def _check_sum(weights: Weights) -> Finding:
    """Compares the checksum with the report's; the card's was compared when the weights were loaded."""
    card, report = weights.path.with_suffix(".json"), report_of(weights.path)
    sources = [path.name for path in (card, report) if path.is_file()]
    result = f"sha256 {weights.sha256[:12]}..., " + (f"as in {' and '.join(sources)}" if sources else "none beside it")
    if not report.is_file():
        return Finding("checksum", result)
    try:
        expected = read_checksum(report)
    except WeightsError as cause:
        return Finding("checksum", result, cause.message)
    if expected != weights.sha256:
        return Finding("checksum", result, f"{report.name} is the report of another file, sha256 {expected[:12]!r}...")
    return Finding("checksum", result)


def _check_operators(weights: Weights) -> Finding:
    """Counts the operators: `load_weights` refuses a file that does more than compute."""
    return Finding("operators", f"{len(operators(weights.path))}, all on tensors alone; listed before it was loaded")


def _check_reference(reference: Reference | None, candidate: Candidate) -> Finding:
    """Names what the files are compared with."""
    if reference is None:
        result = f"none, exported by an older version: other formats are compared with {candidate.file} itself"
        return Finding("reference", result)
    result = f"from the networks, {reference.cpu}, torch {reference.torch_version}"
    left_out = [str(answer.case) for answer in reference.answers if answer.case.core and not candidate.core]
    return Finding("reference", result + "".join(f"; {case}: left out, the file has no core_0" for case in left_out))


def _check_members(weights: Weights, reference: Reference | None) -> Finding:
    """Compares the networks one by one, their number, and the file's methods, on the first image."""
    case, file = reference.answers[0].case if reference else images.CASES[0], weights.path.name
    image = case.image()
    x = batch_of(image).to(weights.device)
    try:
        with torch.inference_mode(), exact():
            votes, vote, forward, mask = (
                run(x)[0].float().cpu().numpy()
                for run in (weights.module.members, weights.module.probability, weights.module, weights.module.mask)
            )
    except (AttributeError, RuntimeError) as cause:
        return Finding("members", "", f"{file} fails on {case}: {last_line(cause)}")
    result, listed = f"{len(votes)} networks", len(weights.card.members)
    if len(votes) != listed or (reference and len(reference.votes) != listed):
        return Finding("members", result, f"{file} has {len(votes)} networks, its card lists {listed}")
    own = Answer.of(case, image, vote[0])
    others = {"forward": forward[0], "mask": mask[0], "the mean of members": mean_vote(votes, weights.card.weights)}
    if odd := [name for name, output in others.items() if own.compared(output).equal_masks < 1]:
        return Finding("members", result, f"{file}: {odd[0]} differs from probability on {case}")
    if reference is None:
        return Finding("members", result)
    differences = np.abs(votes - reference.votes).max(axis=(1, 2))
    if differences.max() <= parity_limit(weights.card.storage):
        return Finding("members", f"{result}, each at most {differences.max():.1e} from the one that was trained")
    worst = int(differences.argmax())
    fault = f"network {worst} of {file} differs by {differences[worst]:.2g} in probability from the one trained"
    return Finding("members", result, fault)
