"""The card: what a weights file is, where it came from and how it scored. Kept inside the file and beside it."""

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from kit.errors import WeightsError

CLASSES = ("background", "building")
INPUT = "uint8 or float, 0..255, (N, 3 or 4, H, W), RGB or RGBA; any N, H, W; normalisation and padding are inside"
OUTPUT = "probability of building: float32 (N, 1, H, W), 0..1; 0 where alpha is 0"

NUMBER = (int, float)
KEY_TYPES: dict[str, type | tuple[type, ...]] = {
    "kit_version": str, "recipe": str, "members": list, "score": (*NUMBER, type(None)), "classes": list,
    "gsd_m": NUMBER, "mean": list, "std": list, "views": str, "pad_multiple": int, "input": str, "output": str,
    "torch_version": str, "created": str, "parity_max_abs": NUMBER, "parity_equal_masks": NUMBER,
}  # fmt: skip
ADAPTIVE_TYPES: dict[str, type | tuple[type, ...]] = {
    "order": list, "settled": list, "score_full": NUMBER, "score": NUMBER, "cost": NUMBER,
}  # fmt: skip
MEMBER_TYPES: dict[str, type | tuple[type, ...]] = {
    "recipe": str, "fold": (int, str), "seed": int, "sha256": str, "score": (*NUMBER, type(None)),
}  # fmt: skip
POSTPROCESS_TYPES: dict[str, type | tuple[type, ...]] = {
    "threshold": NUMBER, "smallest_m2": NUMBER, "hole_m2": NUMBER, "score_before": NUMBER, "score_after": NUMBER,
}  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One network of the ensemble.

    Args:
        recipe: the recipe that trained it.
        fold: the fold held out of its training, or `all` when none was.
        seed: the seed of its training.
        sha256: of the run's safetensors file, in hex.
        score: pooled Jaccard on its held-out fold, 0..1; None without one.
    """

    recipe: str
    fold: int | str
    seed: int
    sha256: str
    score: float | None


@dataclass(frozen=True)
class Postprocess:
    """How masks are best cut, as `kit.deploy.weights.cleaning` does, chosen on out-of-fold predictions.

    Args:
        threshold: building is where the probability is above it, 0..1.
        smallest_m2: smaller objects are removed.
        hole_m2: smaller holes are filled.
        score_before: pooled Jaccard out of fold with 0.5 alone, 0..1.
        score_after: likewise, with all three.
    """

    threshold: float
    smallest_m2: float
    hole_m2: float
    score_before: float
    score_after: float


@dataclass(frozen=True)
class Bounds:
    """When an adaptive vote ends, see `kit.deploy.adaptive`, learnt on tiles with labels.

    Args:
        order: the networks, cheapest first.
        settled: after each stage but the last, how many undecided pixels a window must hold for each pixel that a
            network sees of it, or else is settled; 0 settles none.
        score_full: pooled Jaccard of the full vote on those tiles, 0..1.
        score: of the adaptive one.
        cost: its seconds as a share of the full vote's, as counted from areas and the time of a pass.
    """

    order: tuple[int, ...]
    settled: tuple[float, ...]
    score_full: float
    score: float
    cost: float


@dataclass(frozen=True)
class Card:
    """What a weights file tells about itself.

    Args:
        kit_version: of the kit that exported it.
        recipe: the recipe, or a name for the mixture.
        members: the networks, in the order of the file's `members` output.
        score: pooled Jaccard of the out-of-fold predictions, 0..1; None when no fold was held out.
        classes: names of the two logits.
        gsd_m: the ground sampling distance of the training tiles, metres per pixel.
        mean: of each member's normalisation, (M, 3): R, G, B in units of 0..255. Already applied inside the file.
        std: as `mean`.
        views: `none`, `flips` or `d4`.
        pad_multiple: height and width are padded inside to a multiple of this, px.
        input: shape, dtype and range of the input, in words.
        output: shape, dtype and range of `forward`, in words.
        torch_version: of the torch that wrote the file.
        created: UTC, ISO 8601.
        parity_max_abs: the largest difference in probability between the file and the eager networks.
        parity_equal_masks: the share of pixels whose mask is the same in both, 0..1.
        postprocess: the cleaning that `kit submit --clean` takes; None when no fold was held out, and for older files.
        adaptive: what `kit submit --adaptive` takes; None where the export did not learn it.
    """

    kit_version: str
    recipe: str
    members: tuple[Member, ...]
    score: float | None
    classes: tuple[str, ...]
    gsd_m: float
    mean: tuple[tuple[float, ...], ...]
    std: tuple[tuple[float, ...], ...]
    views: str
    pad_multiple: int
    input: str
    output: str
    torch_version: str
    created: str
    parity_max_abs: float
    parity_equal_masks: float
    postprocess: Postprocess | None = None
    adaptive: Bounds | None = None

    def to_json(self, **added: str) -> str:
        """Returns the card as JSON text, with the `added` keys at the end."""
        return json.dumps(asdict(self) | added, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "card.json") -> "Card":
        """Returns the card in JSON text; keys that a later kit added are passed over.

        Args:
            text: the JSON.
            source: where the text was found, for the error.

        Raises:
            WeightsError: it is not JSON, or a key is missing or of the wrong type.
        """
        try:
            found = json.loads(text)
        except ValueError as cause:
            raise WeightsError(f"the card in {source} is not JSON: {cause}", "export the weights again") from cause
        known = _checked(found, KEY_TYPES, source)
        known["members"] = tuple(Member(**_checked(m, MEMBER_TYPES, f"{source}, members")) for m in known["members"])
        known["classes"] = tuple(known["classes"])
        known["mean"], known["std"] = (_rows(known[key], f"{source}, {key}") for key in ("mean", "std"))
        if (chosen := found.get("postprocess")) is not None:  # not in KEY_TYPES: older cards have no such key
            chosen = Postprocess(**_checked(chosen, POSTPROCESS_TYPES, f"{source}, postprocess"))
        known["postprocess"] = chosen
        if (bounds := found.get("adaptive")) is not None:
            bounds = Bounds(**_checked(bounds, ADAPTIVE_TYPES, f"{source}, adaptive"))
            bounds = replace(bounds, order=tuple(bounds.order), settled=tuple(bounds.settled))
        known["adaptive"] = bounds
        return cls(**{field.name: known[field.name] for field in fields(cls)})


def _checked(found: Any, types: dict[str, type | tuple[type, ...]], source: str) -> dict[str, Any]:
    """Returns the known keys of a JSON object whose values have the right types."""
    if not isinstance(found, dict):
        raise WeightsError(
            f"the card in {source} holds {type(found).__name__}, expected an object", "export the weights again"
        )
    if missing := [key for key in types if key not in found]:
        raise WeightsError(f"the card in {source} has no {', '.join(missing)}", "export the weights again")
    for key, expected in types.items():
        if not isinstance(found[key], expected) or isinstance(found[key], bool):
            raise WeightsError(f"the card in {source} has {key} = {found[key]!r}", "export the weights again")
    return {key: found[key] for key in types}


def _rows(found: list[Any], source: str) -> tuple[tuple[float, ...], ...]:
    """Returns a JSON list of number lists as tuples."""
    for row in found:
        if not isinstance(row, list) or not all(isinstance(value, NUMBER) for value in row):
            raise WeightsError(
                f"the card in {source} has {row!r}, expected three numbers a member", "export the weights again"
            )
    return tuple(tuple(float(value) for value in row) for row in found)
