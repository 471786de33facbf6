"""The card of a weights file: what it is, where it came from and how it scored. Kept inside the file and beside it."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from kit.errors import WeightsError
from kit.system.files import parse_json

CLASSES = ("background", "building")
INPUT = "uint8 or float, 0..255, (N, 3 or 4, H, W), RGB or RGBA; any N, H, W; normalisation and padding are inside"
OUTPUT = "probability of building: float32 (N, 1, H, W), 0..1; 0 where alpha is 0"

ABOUT_HINT = (
    'expected {"areas": [{"area": "...", "scenes": 1, "tiles": 9, "bbox": [west, south, east, north]}], "encoders": '
    '[{"name": "...", "weights": "...", "licence": "..."}]}, of which either may be missing'
)

# checked where a card is read
Text = Annotated[str, Field(pattern=r"^\P{C}*$")]  # goes to the terminal: no control characters
Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[float, Field(ge=0)]
Channels = tuple[float, float, float]
Texts = Annotated[dict[Text, Text], Field(max_length=50)]
Degrees = Annotated[float, Field(ge=-180, le=180)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Member:
    """One network of the ensemble."""

    recipe: Text  # the recipe that trained it
    fold: int | Text  # the fold held out of its training, or `all` when none was
    seed: int  # the random seed of its training
    sha256: Text  # of the run's safetensors file, in hex
    score: Share | None  # pooled Jaccard on its held-out fold, 0..1; None without one
    run: Text = ""  # the run's folder, where it is another than `<recipe>/fold<k>`: of a soup `lite0/fold0-soup`

    @property
    def run_name(self) -> str:
        """The run's folder, `<recipe>/fold<k>`."""
        return self.run or f"{self.recipe}/fold{self.fold}"


@dataclass(frozen=True)
class Postprocess:
    """The threshold and cleaning of masks that scored best on validation tiles, see `kit.deploy.weights.cleaning`."""

    threshold: Share  # building is where the probability is above it, 0..1
    smallest_m2: Size  # smaller objects are removed
    hole_m2: Size  # smaller holes are filled
    score_before: Share  # pooled Jaccard out of fold at a threshold of 0.5 without cleaning, 0..1
    score_after: Share  # the same with this threshold and cleaning


@dataclass(frozen=True)
class Splitting:
    """How the layers divide the mask into buildings, as scored best on validation tiles, see `kit.data.splitting`."""

    inside: Share  # a marker is where footprint minus boundary minus contact is above it, 0..1
    smallest_m2: Size  # smaller markers are ignored
    f1_before: Share  # F1 of buildings out of fold at IoU 0.5 where each connected component is one building
    f1_after: Share  # the same with splitting


@dataclass(frozen=True)
class TrainedArea:
    """Ground that the networks were trained on."""

    area: Text  # its name
    scenes: Count  # how many
    tiles: Count  # how many
    bbox: tuple[Degrees, Degrees, Degrees, Degrees]  # west, south, east, north of the tiles, in EPSG:4326


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder, and what its training began with."""

    name: Text  # of the timm model
    weights: Text  # `timm NAME`, `package NAME`, `file NAME`, `random weights`, or the weights of `--start-from`
    licence: Text = ""  # of these weights; empty where it is not known


@dataclass(frozen=True)
class Provenance:
    """What the networks learned from. Fields are empty where it is not known, and in older files."""

    areas: tuple[TrainedArea, ...] = ()  # of the tiles that any network was trained on
    encoders: tuple[TrainedEncoder, ...] = ()
    options: Annotated[dict[Text, int | float | Text], Field(max_length=50)] = field(
        default_factory=dict
    )  # of all runs


@dataclass(frozen=True)
class About:
    """What people add to a card (`--about FILE`)."""

    texts: Texts = field(default_factory=dict)  # for `Card.about`
    gsd_m: Size = 0.0  # for `Card.gsd_m`; 0 to leave it
    provenance: Provenance = Provenance()  # for `Card.provenance`; its fields win over what was recorded

    def completed(self, recorded: Provenance) -> Provenance:
        """Returns what was recorded, with the fields that are set here."""
        given = {item.name: value for item in fields(Provenance) if (value := getattr(self.provenance, item.name))}
        return replace(recorded, **given)


@dataclass(frozen=True)
class Card:
    """The metadata of a weights file."""

    kit_version: Text  # of the kit that exported it
    recipe: Text  # the recipe; of several, their names joined by `+`
    # the networks, in the order of the file's `members` output
    members: Annotated[tuple[Member, ...], Field(min_length=1)]
    score: Share | None  # pooled Jaccard of the out-of-fold predictions, 0..1; None when no fold was held out
    classes: Annotated[tuple[Text, ...], Field(min_length=1)]  # names of the two logits
    gsd_m: Size  # ground sampling distance of the training tiles, metres per pixel; 0 where it is not known
    # of each member's normalisation, (M, 3): R, G, B in units of 0..255. Already applied inside the file
    mean: tuple[Channels, ...]
    std: tuple[Channels, ...]  # as `mean`
    views: Literal["none", "flips", "d4"]  # `none`, `flips` or `d4`
    pad_multiple: Annotated[int, Field(ge=1)]  # height and width are padded inside to a multiple of this, px
    input: str  # shape, dtype and range of the input, in words
    output: str  # shape, dtype and range of `forward`, in words
    torch_version: Text  # of the torch that wrote the file
    created: Text  # UTC, ISO 8601
    parity_max_abs: Size  # the largest difference in probability between the file and the trained networks
    parity_equal_masks: Share  # the share of pixels whose mask is the same in both, 0..1
    # what `kit submit --clean` applies; None when no fold was held out, and in older files
    postprocess: Postprocess | None = None
    # of the members' votes, adding to 1; empty where all count the same, and in older files
    weights: tuple[Share, ...] = ()
    # of the weights in the file; the networks compute in float32
    storage: Literal["float32", "float16"] = "float32"
    # what people should know: sources of imagery and labels, licences, areas, limits (`kit export --about`)
    about: Texts = field(default_factory=dict)
    # names of what the file's `channels` returns; empty where it has no such method, and in older files
    channels: tuple[Text, ...] = ()
    splitting: Splitting | None = None  # what `kit map` does with the channels; None as of `postprocess`
    provenance: Provenance = Provenance()  # what the networks learned from

    def resolution_m(self, use: str) -> float:
        """Returns `gsd_m` for a use that needs it, for example `kit map`.

        Raises:
            WeightsError: it is not known.
        """
        if not self.gsd_m:
            raise WeightsError(
                f"the card has no gsd_m, which {use} needs: the training tiles had no ground resolution",
                "add metres per pixel: kit weights --describe NAME --about FILE, or kit export RUN... --about FILE, "
                'with {"gsd_m": 0.1}; for tiles to come: kit prepare --gsd 0.1',
            )
        return self.gsd_m

    def to_json(self, **added: str) -> str:
        """Returns the card as JSON text, with the `added` keys at the end."""
        card = asdict(self) | added
        for member in card["members"]:
            if not member["run"]:
                del member["run"]
        return json.dumps(card, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "card.json") -> "Card":
        """Returns the card in JSON text; keys that a later kit added are ignored.

        Args:
            text: the JSON.
            source: where the text was read, for the error.

        Raises:
            WeightsError: it is not JSON, or a key is missing or has a wrong value.
        """
        card = parse_json(text, cls, f"the card in {source}", WeightsError, "export the weights again")
        if card.weights and (len(card.weights) != len(card.members) or abs(sum(card.weights) - 1) > 1e-6):
            raise WeightsError(
                f"the card in {source} has {len(card.weights)} weights that add to {sum(card.weights):g} for "
                f"{len(card.members)} members, expected one each, adding to 1",
                "export the weights again",
            )
        return card


def read_about(file: Path) -> About:
    """Returns the texts in a JSON file, and the number `gsd_m` and the object `provenance`, if it has them.

    Raises:
        WeightsError: it is not a JSON object of texts, or `gsd_m` or `provenance` is not as in a card.
    """
    try:
        content = file.read_bytes()
    except OSError as cause:
        raise WeightsError(f"{file} cannot be read: {cause.strerror}", "give a JSON file of texts") from cause
    hint = 'expected an object of texts: {"imagery": "...", "labels": "..."}'
    record = parse_json(content, dict[str, Any], str(file), WeightsError, hint)
    facts, gsd_m = record.pop("provenance", {}), record.pop("gsd_m", 0.0)
    texts: dict[str, str] = parse_json(json.dumps(record), Texts, str(file), WeightsError, hint)  # type: ignore[arg-type]
    return About(
        texts,
        parse_json(json.dumps(gsd_m), Size, f"gsd_m in {file}", WeightsError, "expected metres per pixel"),  # type: ignore[arg-type]
        parse_json(json.dumps(facts), Provenance, f"provenance in {file}", WeightsError, ABOUT_HINT),
    )
