"""Freezes trained networks into one TorchScript file, and compares it with the networks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kit import __version__
from kit.data.masks import LAYERS
from kit.deploy.freeze import formats
from kit.deploy.freeze.ensemble import CHANNELS, freeze, portable
from kit.deploy.freeze.runners import checked_difference
from kit.deploy.proof import images
from kit.deploy.proof.comparing import candidate_of, compare, report, report_of
from kit.deploy.proof.parity import measure_parity, parity_limit
from kit.deploy.proof.reference import REFERENCE, make_reference
from kit.deploy.trust.allowlist import check_operators
from kit.deploy.weights import torchscript
from kit.deploy.weights.card import (
    CLASSES,
    INPUT,
    OUTPUT,
    Card,
    Channels,
    Member,
    Postprocess,
    Provenance,
    Splitting,
)
from kit.deploy.weights.store import check_free, staged
from kit.errors import WeightsError
from kit.system.files import sha256_of

DIVERGED = "train again: a lower learning rate, or float32"
HINT = "a network must not branch on size or values of its input"


@dataclass(frozen=True)
class ExportRequest:
    """Options and metadata of an export."""

    name: str  # of the weights
    recipe: str  # the recipe; of several, their names joined by `+`
    views: str  # `none`, `flips` or `d4`
    score: float | None  # pooled Jaccard out of fold, 0..1, or None
    gsd_m: float  # metres per pixel of the training tiles
    tiles: Sequence[NDArray[np.uint8]] = ()  # real images to compare on, uint8 (H, W, 3)
    cases: Sequence[images.Case] = ()  # drawn images to compare on; by default `kit.deploy.proof.images.CASES`
    formats: Sequence[str] = ()  # to write beside TorchScript, see `kit.deploy.freeze.formats.chosen`
    postprocess: Postprocess | None = None  # for the card; the file itself does not apply it
    splitting: Splitting | None = None  # likewise, of weights with channels
    weights: Sequence[float] = ()  # of the networks' votes, above 0, of any sum; empty where all count the same
    storage: Literal["float32", "float16"] = "float32"  # of the weights in the file
    about: Mapping[str, str] = field(default_factory=dict)  # for the card
    provenance: Provenance = field(default_factory=Provenance)  # for the card


@dataclass(frozen=True)
class Exported:
    """Exported weights."""

    path: Path  # the weights file
    card: Card  # its card; `parity_max_abs` and `parity_equal_masks` are what was measured
    # the files of other formats, and by how much each differs from the weights file in probability
    others: Mapping[Path, float] = field(default_factory=dict)


def export_ensemble(
    weights_dir: Path, networks: Sequence[nn.Module], members: Sequence[Member], request: ExportRequest
) -> Exported:
    """Writes `NAME.pt`, its card and parity report and the last row of `index.csv`, once the file was compared.

    An earlier export of that name is replaced, with its files of other formats.

    Args:
        weights_dir: the folder of weights.
        networks: trained, each with `pad_multiple` (px), `mean` and `std` (3 values in units of 0..255).
        members: one a network, in the same order.
        request: the rest.

    Raises:
        WeightsError: the file and the trained networks differ by more than arithmetic explains, see `Parity`; another
            format differs from it or cannot be written; a network is tied to a device, or has operators that weights
            may not have.
        OutputError: the weights cannot be written, or would replace what kit did not write.
    """
    name, views = request.name, request.views
    check_free(weights_dir, name)
    if not networks or len(networks) != len(members):
        raise WeightsError(f"{len(networks)} networks and {len(members)} members: expected one member a network")
    votes = vote_weights(request.weights, len(members))
    eager = [portable(network) for network in networks]
    pad_multiple = math.lcm(*(int(network.pad_multiple) for network in eager))  # type: ignore[arg-type]
    module = freeze(eager, views, pad_multiple, votes)
    if devices := torchscript.named_devices(module):
        raise WeightsError(
            f"{name}: a network makes tensors on {devices[0]!r} by name, which would tie the file to that device",
            "make them from the input: x.new_zeros(...), torch.zeros_like(x)",
        )
    limit = parity_limit(request.storage)
    if request.storage == "float16":
        torchscript.store_half(module)
    with staged(weights_dir, name) as folder:
        weights = folder / f"{name}.pt"
        torchscript.save(module, weights)
        del module  # it holds the weights once a method
        check_operators(weights)  # `load_weights` would refuse the file later
        saved = torchscript.load(weights, "cpu")
        if not torchscript.has_finite_weights(saved):
            raise WeightsError(f"{name}: a network holds weights that are NaN or infinite", DIVERGED)
        on_tiles = measure_parity(saved, eager, views, pad_multiple, request.tiles, votes)
        if difference := on_tiles.fault(limit):
            raise WeightsError(f"{name}: the exported file differs from its networks by {difference}", HINT)
        reference = make_reference(eager, views, pad_multiple, request.cases or images.CASES, votes)
        rows = compare(candidate_of(saved, weights.name, pad_multiple, limit=limit), reference.answers)
        if faults := [row.fault for row in rows if row.fault]:
            raise WeightsError(faults[0], HINT)
        parity = sum((row.parity for row in rows if row.parity), on_tiles)
        card = draft_card(eager, members, request, pad_multiple)
        if hasattr(saved, CHANNELS):
            card = replace(card, channels=LAYERS, splitting=request.splitting)
        card = replace(card, parity_max_abs=parity.max_abs, parity_equal_masks=parity.equal_masks, weights=votes)
        torchscript.add_extra(weights, "card.json", card.to_json())
        torchscript.add_extra(weights, REFERENCE, reference.to_json())
        file_sha256 = sha256_of(weights)
        weights.with_suffix(".json").write_text(card.to_json(file_sha256=file_sha256))
        report_of(weights).write_text(report(weights.name, file_sha256, reference, on_tiles, rows, limit))
        differences = {}
        for kind in request.formats:
            other = weights.with_suffix(formats.SUFFIXES[formats.kind_of(kind)])
            formats.write(kind, other, eager, views, pad_multiple, card.to_json(), votes)
            differences[weights_dir / other.name] = checked_difference(other, weights, pad_multiple)
    return Exported(weights_dir / f"{name}.pt", card, differences)


def vote_weights(weights: Sequence[float], members: int) -> tuple[float, ...]:
    """Returns the weights of the members' votes, adding to 1; an empty tuple where all count the same.

    Raises:
        WeightsError: there is not one weight a member, or one is not above 0.
    """
    if not weights:
        return ()
    if len(weights) != members:
        raise WeightsError(f"{len(weights)} weights for {members} runs", "give one weight a run, in the same order")
    if wrong := [weight for weight in weights if not 0 < weight < math.inf]:
        raise WeightsError(f"a run's weight of {wrong[0]:g}, expected a number above 0", "leave out a run of no weight")
    total = math.fsum(weights)
    return () if len(set(weights)) == 1 else tuple(weight / total for weight in weights)


def draft_card(
    eager: Sequence[nn.Module], members: Sequence[Member], request: ExportRequest, pad_multiple: int
) -> Card:
    """Returns the card of an export whose parity is not measured yet."""
    return Card(
        kit_version=__version__,
        recipe=request.recipe,
        members=tuple(members),
        score=None if request.score is None else float(request.score),
        classes=CLASSES,
        gsd_m=float(request.gsd_m),
        mean=_channels(eager, "mean"),
        std=_channels(eager, "std"),
        views=request.views,  # type: ignore[arg-type] # checked by `freeze`
        pad_multiple=pad_multiple,
        input=INPUT,
        output=OUTPUT,
        torch_version=str(torch.__version__),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        parity_max_abs=0.0,
        parity_equal_masks=1.0,
        postprocess=request.postprocess,
        storage=request.storage,
        about=dict(request.about),
        provenance=request.provenance,
    )


def _channels(networks: Sequence[nn.Module], attribute: str) -> tuple[Channels, ...]:
    """Returns `mean` or `std` of each network: three values in units of 0..255."""
    return tuple(tuple(round(float(v), 4) for v in getattr(each, attribute).flatten()) for each in networks)  # type: ignore[misc]
