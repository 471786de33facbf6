"""Loads weights files, after checks that run none of their code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kit.deploy.trust.allowlist import check_operators
from kit.deploy.trust.zip_records import read_extra
from kit.deploy.weights import torchscript
from kit.deploy.weights.card import Card
from kit.deploy.weights.hub import CONFIG, HINT, is_hub_folder, weights_in
from kit.deploy.weights.starter import STARTER, choose_starter, starter_weights
from kit.deploy.weights.store import INDEX, read_checksum, read_index, settle
from kit.errors import KitError, WeightsError, nearest
from kit.system.files import sha256_of


@dataclass(frozen=True)
class Weights:
    """A loaded weights file."""

    module: Any  # the TorchScript ensemble, on `device`
    card: Card  # its metadata
    path: Path  # where it was read
    sha256: str  # of the file, in hex
    device: str  # as torch names it
    # identifies how the networks compute on this machine, see `kit.deploy.engine.tuning`; never parsed
    plan: str = "shipped"


def load_weights(path: Path, device: str = "cpu") -> Weights:
    """Returns the weights in a file of `kit export`; checks it before any of its code runs.

    Raises:
        WeightsError: it is missing, not kit's, damaged, not the file that `NAME.json` describes, or has operators that
            weights may not have.
        KitError: there is no such device.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise KitError(f"no device {device}: torch finds no GPU here", "leave --device out to use the CPU")
    settle(path.parent, path.stem)
    if not path.is_file():
        known = [other.stem for other in path.parent.glob("[!.]*.pt")]
        raise WeightsError(
            f"no weights {path}", nearest(path.stem, known) if known else "kit weights lists what is here"
        )
    card = read_card(path)
    sha256 = sha256_of(path)
    _check_beside(path, sha256)
    check_operators(path)
    try:
        module = torchscript.load(path, device)
    except RuntimeError as cause:
        reason = str(cause).strip().splitlines()[0]
        raise WeightsError(f"{path} does not load as TorchScript: {reason}", "export or fetch it again") from cause
    if not torchscript.has_finite_weights(module):
        raise WeightsError(f"{path} holds weights that are NaN or infinite", "train again, at a lower learning rate")
    return Weights(module, card, path, sha256, device)


def read_card(path: Path) -> Card:
    """Returns the card inside a weights file, read from the archive alone.

    Raises:
        WeightsError: it is no archive or damaged, or has no card of kit's.
    """
    text = read_extra(path, "card.json")
    if text is None:
        raise WeightsError(f"{path} is not kit's: it has no card.json inside", "weights are made by kit export")
    return Card.from_json(text, str(path))


def _check_beside(path: Path, sha256: str) -> None:
    """Raises WeightsError when `NAME.json` beside the weights describes another file."""
    beside = path.with_suffix(".json")
    if beside.is_file() and (expected := read_checksum(beside)) != sha256:
        raise WeightsError(
            f"{path} has sha256 {sha256[:12]}..., but {beside.name} says {expected[:12]}...: not the same export",
            "export or fetch the weights again, both files together",
        )


def named_weights(named: str, weights_dir: Path) -> Path:
    """Returns the weights file of a path, of a folder for hubs, or of a name in the folder of weights.

    A file need not exist.

    The name `starter` stands for the weights that come with kit, unless the folder has others of that name.

    Raises:
        WeightsError: it is an address, or a folder that is damaged.
    """
    if "://" in named:
        raise WeightsError(f"{named} is an address, expected a file", "download it first")
    path = Path(named)
    if is_hub_folder(path):
        return weights_in(path)
    if path.suffix == ".pt" or path.is_file():
        return path
    file = (path if len(path.parts) > 1 else weights_dir / path).with_name(f"{path.name}.pt")
    if not file.is_file() and any(path.glob("*.pt")):
        raise WeightsError(f"{path} has no {CONFIG} of kit: it is damaged, or was written by another program", HINT)
    return starter_weights() or file if named == STARTER and not file.is_file() else file


def newest_weights(weights_dir: Path) -> Path:
    """Returns the weights exported last: the last row of `index.csv`. Without any, those that come with kit.

    Raises:
        WeightsError: nothing was exported yet, and none came with kit.
    """
    rows = read_index(weights_dir)
    if not rows and (starter := choose_starter()):
        return starter
    if not rows:
        raise WeightsError(
            f"no weights are listed in {weights_dir / INDEX}", "train and export some: kit run quickstart"
        )
    return weights_dir / f"{rows[-1].name}.pt"
