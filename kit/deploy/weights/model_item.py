"""The STAC item of weights, with the Machine Learning Model extension, for catalogues of models.

Source: https://github.com/stac-extensions/mlm, version 1.4.0.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kit.deploy.weights.card import Card, TrainedArea
from kit.errors import WeightsError
from kit.system.files import sha256_of

__all__ = ["ITEM", "TILES_ITEM", "Listing", "as_identifier", "model_item"]

ITEM, TILES_ITEM = ".stac.json", ".gis.stac.json"  # suffixes of the files
STAC = "1.1.0"
EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.4.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
)
NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]")  # of mlm:name
SHA256 = "1220"  # of a multihash: the function and the 32 bytes of its result, in hex
BANDS = ("red", "green", "blue")
BYTES = "application/octet-stream; application="
# suffix: media type, framework, how it was written, what it is
FORMATS = {
    ".pt": (f"{BYTES}pytorch", "PyTorch", "torch.jit.save", "TorchScript, for PyTorch in Python and C++"),
    ".pt2": (f"{BYTES}pytorch", "PyTorch", "torch.export.save", "torch.export; returns the probability alone"),
    ".onnx": (f"{BYTES}onnx", "ONNX", "torch.onnx.export", "ONNX"),
    ".gis.onnx": (f"{BYTES}onnx", "ONNX", "torch.onnx.export", "ONNX for Deepness (QGIS) and GeoDeep (WebODM)"),
}


@dataclass(frozen=True)
class Listing:
    """What a catalogue lists beside the card."""

    licence: str  # identifier, for example `CC-BY-4.0`, or `other`
    parameters: int  # numbers in the networks of the file
    tile_px: int = 0  # side of the tiles that `NAME.gis.onnx` takes; 0 for the files that take any size


def as_identifier(text: str) -> str:
    """Returns a licence that is an identifier; `other` for any other text."""
    return text if re.fullmatch(r"[A-Za-z0-9.+_-]+", text) else "other"


def model_item(weights: Path, card: Card, listing: Listing, file: Path) -> dict[str, Any]:
    """Returns the item of `NAME.pt`, `NAME.pt2` and `NAME.onnx`, or of `NAME.gis.onnx` alone.

    Args:
        weights: `NAME.pt`; files of other formats lie beside it.
        card: of the weights.
        listing: the rest.
        file: where the item will be written; links to files are relative to it.

    Raises:
        WeightsError: the card lacks a field that the item needs.
    """
    _check(weights, card)
    name, tiles = weights.stem, listing.tile_px
    areas, encoders = card.provenance.areas, card.provenance.encoders
    sources = [
        f"{each.weights} ({each.licence or 'licence unknown'})" for each in encoders if _pretrained(each.weights)
    ]
    properties = {
        "datetime": card.created,
        "created": card.created,
        "title": f"{name}: buildings in drone imagery",
        "description": _description(card),
        "license": listing.licence,
        **({"gsd": card.gsd_m} if card.gsd_m else {}),
        "bands": _bands(),
        "mlm:name": _model_name(name),
        "mlm:architecture": f"U-Net with {', '.join(dict.fromkeys(each.name for each in encoders))}",
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:framework": "ONNX" if tiles else "PyTorch",
        "mlm:total_parameters": listing.parameters,
        "mlm:memory_size": 4 * listing.parameters,  # they compute in float32
        "mlm:pretrained": bool(sources),
        "mlm:pretrained_source": "; ".join(sources) or None,
        "mlm:input": [_tile_input(tiles) if tiles else _input(card)],
        "mlm:output": [_tile_output(card, tiles)] if tiles else _outputs(card),
        "mlm:hyperparameters": _hyperparameters(card),
        "kit:areas": [asdict(area) for area in areas],
        "kit:encoders": [asdict(encoder) for encoder in encoders],
        "kit:metrics": _metrics(card),
    }
    if not tiles and (version := re.match(r"\d+\.\d+\.\d+", card.torch_version)):
        properties["mlm:framework_version"] = version[0]
    return {
        "type": "Feature",
        "stac_version": STAC,
        "stac_extensions": list(EXTENSIONS),
        "id": f"{name}-gis" if tiles else name,
        "geometry": _geometry(areas),
        "bbox": _bounds(areas),
        "properties": properties,
        "links": [],
        "assets": _assets(weights, tiles > 0, file.parent),
    }


def _check(weights: Path, card: Card) -> None:
    """Raises WeightsError with the first field that is missing, and the command that adds it."""
    if not card.provenance.areas:
        missing, example = (
            "provenance.areas",
            '{"area": "...", "scenes": 1, "tiles": 9, "bbox": [west, south, east, north]}',
        )
    elif not card.provenance.encoders:
        missing, example = "provenance.encoders", '{"name": "...", "weights": "...", "licence": "..."}'
    else:
        return
    runs = " ".join(member.run_name for member in card.members)
    raise WeightsError(
        f"the card of {weights.name} has no {missing}, which a STAC item needs",
        f"where runs and data set are at hand: kit export {runs} --name {weights.stem}; else kit weights --describe "
        f'{weights.stem} --about FILE with {{"provenance": {{"{missing.split(".")[1]}": [{example}]}}}}',
    )


def _pretrained(weights: str) -> bool:
    return weights not in ("", "random weights")


def _model_name(name: str) -> str:
    plain = re.sub(r"[^a-zA-Z0-9_.-]", "-", name).strip("_.-")
    return plain if NAME.fullmatch(plain) else f"kit-{plain or 'weights'}"


def _description(card: Card) -> str:
    """Returns what the networks do, and the texts of the card."""
    texts = "".join(f"\n\n{key.capitalize()}: {text}" for key, text in card.about.items())
    gsd = f" of about {card.gsd_m:.3g} m per pixel" if card.gsd_m else ""
    return f"Finds buildings in drone imagery{gsd}. Networks: {len(card.members)}.{texts}"


def _input(card: Card) -> dict[str, Any]:
    inside = [
        [{"type": "z-score", "mean": mean, "stddev": std} for mean, std in zip(means, stds, strict=True)]
        for means, stds in zip(card.mean, card.std, strict=True)
    ]
    return {
        "name": "image",
        "description": "Pixels as they are stored. A fourth channel, alpha, is optional: where it is 0, so is the "
        "probability. Do not normalise: each network does (kit:normalisation_inside).",
        "bands": list(BANDS),
        "input": _array([-1, len(BANDS), -1, -1], "channel", "uint8"),
        "value_scaling": None,
        "resize_type": None,
        "kit:normalisation_inside": inside,
    }


def _outputs(card: Card) -> list[dict[str, Any]]:
    """Returns the outputs of a file that takes any size; the first is that of `forward`."""
    outputs = [
        _output("probability", [-1, 1, -1, -1], "float32", "Probability of building, 0 to 1."),
        _output("mask", [-1, 1, -1, -1], "uint8", "1 where the probability is above 0.5.", _classes(card)),
        _output("members", [-1, len(card.members), -1, -1], "float32", "The probability of each network."),
    ]
    if card.channels:
        named = ", ".join(card.channels)
        outputs.append(_output("channels", [-1, len(card.channels), -1, -1], "float32", f"Probabilities: {named}."))
    return outputs


def _tile_input(side_px: int) -> dict[str, Any]:
    return {
        "name": "image",
        "bands": list(BANDS),
        "input": _array([1, len(BANDS), side_px, side_px], "channel", "float32"),
        "value_scaling": [{"type": "min-max", "minimum": 0, "maximum": 255}],
        "resize_type": None,
    }


def _tile_output(card: Card, side_px: int) -> dict[str, Any]:
    words = "Probabilities of the classes; the larger one decides."
    return _output("channels", [1, len(card.classes), side_px, side_px], "float32", words, _classes(card), "class")


def _output(
    name: str, shape: Sequence[int], dtype: str, words: str, classes: Sequence[Any] = (), axis: str = "channel"
) -> dict[str, Any]:
    return {
        "name": name,
        "description": words,
        "tasks": ["semantic-segmentation"],
        "result": _array(shape, axis, dtype),
        "classification:classes": list(classes),
    }


def _bands() -> list[dict[str, str]]:
    """Returns the bands: MLM wants them in the properties, and the schema of STAC 1.1 then in an asset, too."""
    return [{"name": name} for name in BANDS]


def _array(shape: Sequence[int], axis: str, dtype: str) -> dict[str, Any]:
    return {"shape": list(shape), "dim_order": ["batch", axis, "height", "width"], "data_type": dtype}


def _classes(card: Card) -> list[dict[str, Any]]:
    return [{"value": value, "name": name, "description": name} for value, name in enumerate(card.classes)]


def _hyperparameters(card: Card) -> dict[str, Any]:
    options = {re.sub(r"[^0-9a-zA-Z_.-]", "_", name): value for name, value in card.provenance.options.items()}
    seeds, folds = [each.seed for each in card.members], [each.fold for each in card.members]
    return {**options, "recipe": card.recipe, "seeds": seeds, "folds": folds, "views": card.views}


def _metrics(card: Card) -> dict[str, Any]:
    """Returns the measured values; None where no tile was held out."""
    cleaning = asdict(card.postprocess) if card.postprocess else None
    return {
        "jaccard": card.score,
        "jaccard_of_members": [member.score for member in card.members],
        "cleaning": cleaning,
        "parity_max_abs": card.parity_max_abs,
        "parity_equal_masks": card.parity_equal_masks,
    }


def _geometry(areas: Sequence[TrainedArea]) -> dict[str, Any]:
    """Returns the boxes of areas as GeoJSON."""
    boxes = []
    for area in areas:
        west, south, east, north = area.bbox
        boxes.append([[[west, south], [east, south], [east, north], [west, north], [west, south]]])
    return {"type": "Polygon", "coordinates": boxes[0]} if len(boxes) == 1 else {
        "type": "MultiPolygon", "coordinates": boxes
    }  # fmt: skip


def _bounds(areas: Sequence[TrainedArea]) -> list[float]:
    west, south, east, north = zip(*(area.bbox for area in areas), strict=True)
    return [min(west), min(south), max(east), max(north)]


def _assets(weights: Path, tiles: bool, folder: Path) -> Mapping[str, Any]:
    """Returns the files by key, with links relative to the item's folder."""
    assets = {}
    for suffix, (media, framework, written, words) in FORMATS.items():
        path = weights.with_suffix(suffix)
        if tiles == (suffix == ".gis.onnx") and path.is_file():
            assets[suffix[1:]] = _file(path, folder, media, words, ["mlm:model"]) | {
                "mlm:artifact_type": written, "mlm:framework": framework, "bands": _bands()
            }  # fmt: skip
    if (card := weights.with_suffix(".json")).is_file():
        assets["card"] = _file(card, folder, "application/json", "The card of the weights", ["metadata"])
    return assets


def _file(path: Path, folder: Path, media: str, words: str, roles: Sequence[str]) -> dict[str, Any]:
    link = Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    return {
        "href": link if link.startswith("../") else f"./{link}",
        "type": media,
        "title": words,
        "roles": list(roles),
        "file:size": path.stat().st_size,
        "file:checksum": SHA256 + sha256_of(path),
    }
