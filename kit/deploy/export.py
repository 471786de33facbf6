"""Trained networks to one TorchScript file that any program can load, measured against the networks it came from."""

import copy
import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kit import __version__
from kit.deploy import formats, torchscript
from kit.deploy.card import CLASSES, INPUT, OUTPUT, Card, Member, sha256_of
from kit.deploy.ensemble import Core, Ensemble, view_codes
from kit.errors import WeightsError
from kit.paths import replacing

METHODS = ("probability", "mask", "members")
PARITY_LIMIT = 1e-3  # folding batch norms moves a probability by about 1e-6; a wrong trace by far more
INDEX_COLUMNS = ("name", "recipe", "members", "views", "score", "gsd_m", "created", "file_sha256")


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Args:
        path: the weights file.
        card: its card; `parity_max_abs` and `parity_equal_masks` are what was measured.
        others: the files of other formats, and by how much each differs from the weights file in probability.
    """

    path: Path
    card: Card
    others: Mapping[Path, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Parity:
    """How the file compares with the eager networks.

    Args:
        max_abs: the largest difference in probability.
        equal_masks: the share of pixels with the same mask, 0..1.
    """

    max_abs: float
    equal_masks: float


def portable(member: nn.Module) -> nn.Module:
    """Returns a copy for any machine: CPU, float32, plain memory format, eval mode, no gradients."""
    return copy.deepcopy(member).eval().cpu().float().to(memory_format=torch.contiguous_format).requires_grad_(False)


def freeze(members: Sequence[nn.Module], views: str, pad_multiple: int) -> Any:
    """Returns the ensemble of `members` as one frozen ScriptModule with the methods of `Ensemble`.

    Args:
        members: networks as `Core` takes them, and as `portable` makes them.
        views: `none`, `flips` or `d4`.
        pad_multiple: px; a multiple of every member's.
    """
    side_px = 2 * pad_multiple  # at 1 x pad_multiple the deepest map is 1 px: a size that hides broadcasting
    example = torch.full((2, 3, side_px, side_px), 127.0)
    cores = [torchscript.trace(Core(member), example) for member in members]
    return torchscript.frozen(Ensemble(cores, views, pad_multiple), METHODS)


def export_ensemble(
    weights_dir: Path,
    name: str,
    members: Sequence[nn.Module],
    records: Sequence[Member],
    views: str,
    recipe: str,
    score: float | None,
    gsd_m: float,
    tiles: Iterable[NDArray[np.uint8]],
    others: Sequence[str] = (),
) -> Exported:
    """Writes `NAME.pt`, `NAME.json` and the last row of `index.csv`, once the file has been read back and compared.

    An earlier export of that name is replaced, with its files of other formats.

    Args:
        weights_dir: the folder of weights.
        name: of the weights.
        members: trained networks, each with `pad_multiple` (px), `mean` and `std` (3 values in units of 0..255).
        records: one a member, in the same order.
        views: `none`, `flips` or `d4`.
        recipe: the recipe, or a name for the mixture.
        score: pooled Jaccard out of fold, 0..1, or None.
        gsd_m: metres per pixel of the training tiles.
        tiles: real images to compare on, uint8 (H, W, 3).
        others: formats to write beside TorchScript, see `kit.deploy.formats.chosen`.

    Raises:
        WeightsError: the file and the eager networks differ by more than `PARITY_LIMIT` in probability, another format
            differs from it or cannot be written, or a network is tied to a device.
    """
    if not members or len(members) != len(records):
        raise WeightsError(f"{len(members)} networks and {len(records)} records: expected one record a network")
    eager = [portable(member) for member in members]
    pad_multiple = math.lcm(*(int(member.pad_multiple) for member in eager))  # type: ignore[arg-type]
    module = freeze(eager, views, pad_multiple)
    if devices := torchscript.named_devices(module):
        raise WeightsError(
            f"{name}: a network makes tensors on {devices[0]!r} by name, which would tie the file to that device",
            "make them from the input: x.new_zeros(...), torch.zeros_like(x)",
        )
    card = Card(
        kit_version=__version__, recipe=recipe, members=tuple(records), score=None if score is None else float(score),
        classes=CLASSES, gsd_m=float(gsd_m), mean=_channels(eager, "mean"), std=_channels(eager, "std"), views=views,
        pad_multiple=pad_multiple, input=INPUT, output=OUTPUT, torch_version=str(torch.__version__),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), parity_max_abs=0.0, parity_equal_masks=1.0,
    )  # fmt: skip
    path = weights_dir / f"{name}.pt"
    targets = {kind: path.with_suffix(suffix) for kind, suffix in formats.SUFFIXES.items() if kind != "torchscript"}
    with ExitStack() as stack:
        weights, beside = (stack.enter_context(replacing(file)) for file in (path, path.with_suffix(".json")))
        torchscript.save(module, weights)
        parity = measure_parity(torchscript.load(weights, "cpu"), eager, views, pad_multiple, tiles)
        if not parity.max_abs <= PARITY_LIMIT:  # so written, NaN fails too
            raise WeightsError(
                f"{name}: the exported file differs from its networks by {parity.max_abs:.2g} in probability, "
                f"expected at most {PARITY_LIMIT}",
                "a network must not branch on the size or the values of its input",
            )
        card = replace(card, parity_max_abs=parity.max_abs, parity_equal_masks=parity.equal_masks)
        torchscript.add_extra(weights, "card.json", card.to_json())
        file_sha256 = sha256_of(weights)
        beside.write_text(card.to_json(file_sha256=file_sha256))
        differences = {}
        for kind in others:
            other = stack.enter_context(replacing(targets[kind]))
            formats.write(kind, other, eager, views, pad_multiple, card.to_json())
            differences[targets[kind]] = formats.checked_difference(other, weights, pad_multiple)
    for file in set(targets.values()) - set(differences):
        file.unlink(missing_ok=True)  # of an earlier export: it would be taken for this one
    _list_in_index(weights_dir / "index.csv", name, card, file_sha256)
    return Exported(path, card, differences)


def measure_parity(
    module: Any, members: Sequence[nn.Module], views: str, pad_multiple: int, tiles: Iterable[NDArray[np.uint8]]
) -> Parity:
    """Returns how far an exported module is from its eager members on `tiles` and on a random image of odd size.

    Args:
        module: as `freeze` returns it, or loaded from disk.
        members: the networks it was made of, in eval mode on the CPU.
        views: `none`, `flips` or `d4`.
        pad_multiple: px.
        tiles: uint8 (H, W, 3).
    """
    noise = np.random.default_rng(0).integers(0, 256, (3 * pad_multiple + 1, pad_multiple - 1, 3), dtype=np.uint8)
    largest, equal, pixels = 0.0, 0, 0
    for image in [*tiles, noise]:
        expected = eager_probability(members, image, views, pad_multiple)
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
            probability = module.probability(batch)[0, 0].numpy()
            mask = module.mask(batch)[0, 0].numpy()
        largest = float(np.maximum(largest, np.abs(probability - expected).max()))  # np.maximum keeps a NaN
        equal += int((mask == (expected > 0.5)).sum())
        pixels += mask.size
    return Parity(largest, equal / pixels)


def eager_probability(
    members: Sequence[nn.Module], image: NDArray[np.uint8], views: str, pad_multiple: int
) -> NDArray[np.float32]:
    """Returns the soft vote computed the plain way, sharing no code with `Ensemble`: numpy pads, flips and averages.

    Args:
        members: networks in eval mode on the CPU.
        image: uint8 (H, W, 3).
        views: `none`, `flips` or `d4`.
        pad_multiple: px.

    Returns:
        float32 (H, W), 0..1.
    """
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % pad_multiple), (0, -width % pad_multiple), (0, 0)), mode="edge")
    votes = []
    for member in members:
        for code in view_codes(views):
            turned = padded.swapaxes(0, 1) if code & 4 else padded
            step = (slice(None, None, -1 if code & 2 else 1), slice(None, None, -1 if code & 1 else 1))
            probability = _probability_of(member, turned[step])[step]
            votes.append(probability.swapaxes(0, 1) if code & 4 else probability)
    vote: NDArray[np.float32] = np.mean(votes, axis=0)[:height, :width]
    return vote


def _probability_of(member: nn.Module, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the probability of building, float32 (H, W), of one uint8 image (H, W, 3)."""
    with torch.inference_mode():
        logits: Tensor = member(torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32)))
        # two channels are classes; the first of one or three is the footprint
        chances = logits.softmax(dim=1)[0, 1] if logits.shape[1] == 2 else logits[0, 0].sigmoid()
        probability: NDArray[np.float32] = chances.numpy()
    return probability


def _channels(members: Sequence[nn.Module], attribute: str) -> tuple[tuple[float, ...], ...]:
    """Returns three values a member of `mean` or `std`, in units of 0..255."""
    return tuple(tuple(round(float(v), 4) for v in getattr(member, attribute).flatten()) for member in members)


def _list_in_index(index: Path, name: str, card: Card, file_sha256: str) -> None:
    """Makes `name` the last row of `index.csv`, its only one."""
    rows: list[Sequence[object]] = []
    if index.is_file():
        with index.open(newline="") as file:
            rows = [[row[c] for c in INDEX_COLUMNS] for row in csv.DictReader(file) if row["name"] != name]
    score = "" if card.score is None else f"{card.score:.4f}"
    gsd = f"{card.gsd_m:.4f}"
    rows.append([name, card.recipe, len(card.members), card.views, score, gsd, card.created, file_sha256])
    with replacing(index) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([INDEX_COLUMNS, *rows])
