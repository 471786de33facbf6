"""Publishes weights: a folder for model hubs, a STAC item, a completed card (options of `kit weights`)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from kit.console import say
from kit.data.index import read_index
from kit.deploy.freeze.formats import SUFFIXES
from kit.deploy.freeze.runners import tile_side
from kit.deploy.proof.comparing import report_of
from kit.deploy.weights import torchscript
from kit.deploy.weights.card import About
from kit.deploy.weights.hub import check_licence, write_hub_folder
from kit.deploy.weights.load import load_weights, named_weights
from kit.deploy.weights.model_item import ITEM, TILES_ITEM, Listing, as_identifier, model_item
from kit.deploy.weights.store import staged
from kit.errors import DataError, OutputError, WeightsError
from kit.paths import Paths
from kit.pipeline.provenance import trained_areas
from kit.system.files import check_writable, read_json, sha256_of, write_json

__all__ = ["describe", "publish", "publish_item"]


def publish(name: str, paths: Paths, out: Path | None, licence: str) -> Path:
    """Writes weights as a folder for model hubs, and returns it.

    The networks are copied as safetensors where their runs are at hand and unchanged.

    Args:
        name: of the weights, or their file.
        paths: of the working root.
        out: the folder; None for `hub/NAME` below the root.
        licence: an identifier, see `write_hub_folder`.

    Raises:
        WeightsError: the weights are missing or damaged.
        OutputError: the folder cannot be written, or was not written by kit.
    """
    check_licence(licence)
    weights = load_weights(named_weights(name, paths.weights))
    networks = []
    for member in weights.card.members:
        file = paths.root / "runs" / member.run_name / "best.safetensors"
        if file.is_file() and sha256_of(file) == member.sha256:
            networks.append(file)
        else:
            say(f"no safetensors of {member.run_name}: its run is not here, or was trained again")
    folder = out or paths.hub(weights.path.stem)
    write_hub_folder(folder, weights.path, weights.card, networks, licence)
    return folder


def publish_item(name: str, paths: Paths, out: Path | None, licence: str) -> Path:
    """Writes the STAC item of weights, and returns it; files for GIS programs get an item of their own beside it.

    Args:
        name: of the weights, or their file.
        paths: of the working root.
        out: the item; None for `weights/NAME.stac.json` below the root.
        licence: an identifier; empty for that of the card, or `other` where the card has none.

    Raises:
        WeightsError: the weights are missing or damaged, or their card lacks a field that the item needs.
        OutputError: the item cannot be written.
    """
    weights = load_weights(named_weights(name, paths.weights))
    card, path = weights.card, weights.path
    file = out or paths.weights / f"{path.stem}{ITEM}"
    if file.suffix != ".json" or file == path.with_suffix(".json"):
        raise OutputError(f"--out {file} is no name for a STAC item", f"give a file such as {path.stem}{ITEM}")
    listing = Listing(
        check_licence(licence) if licence else as_identifier(card.about.get("licence", "")),
        torchscript.parameters(weights.module),
    )
    check_writable(file.parent)
    item = model_item(path, card, listing, file)
    if (tiles := path.with_suffix(SUFFIXES["onnx-gis"])).is_file():
        beside = file.with_name(file.name.removesuffix(ITEM).removesuffix(".json") + TILES_ITEM)
        write_json(beside, model_item(path, card, replace(listing, tile_px=tile_side(tiles)), beside))
        say(f"{beside}: the item of {tiles.name}")
    write_json(file, item)
    return file


def describe(name: str, paths: Paths, about: About, data: str = "") -> Path:
    """Adds texts and facts to the card of weights, in `NAME.pt` and beside it; returns `NAME.json`.

    The networks and their place in the index stay. Files of other formats keep the card that they have.

    Args:
        name: of the weights.
        paths: of the working root.
        about: what is added; it wins over what the card has.
        data: the data set that the networks were trained on, which gives the areas; empty to leave them.

    Raises:
        WeightsError: the weights are missing or damaged, or are not below the root.
        DataError: there is no such data set, or its tiles have no place on the ground.
        OutputError: the weights cannot be written.
    """
    weights = load_weights(named_weights(name, paths.weights))
    card, path = weights.card, weights.path
    if path.parent.resolve() != paths.weights.resolve():
        raise WeightsError(f"{path} is not in {paths.weights}", f"copy {path.stem}.pt and {path.stem}.json there first")
    if data:
        _, index = read_index(paths, data)
        folds = {str(member.fold) for member in card.members}
        trained = index[index["fold"].astype(str) != folds.pop()] if len(folds) == 1 else index
        if not (areas := trained_areas(trained)):
            raise DataError(f"the tiles of {data} have no place on the ground", "give the areas in the file of --about")
        card = replace(card, provenance=replace(card.provenance, areas=areas))
    provenance = about.completed(card.provenance)
    gsd_m = about.gsd_m or card.gsd_m
    card = replace(card, about={**card.about, **about.texts}, provenance=provenance, gsd_m=gsd_m)
    with staged(path.parent, path.stem, in_place=True) as folder:
        new = folder / path.name
        torchscript.with_extra(path, new, "card.json", card.to_json())
        sha256 = sha256_of(new)
        new.with_suffix(".json").write_text(card.to_json(file_sha256=sha256))
        if (report := report_of(path)).is_file():
            record = read_json(report, dict[str, Any], error=WeightsError) | {"file_sha256": sha256}
            (folder / report.name).write_text(json.dumps(record, indent=2) + "\n")
        for suffix in SUFFIXES.values():
            if suffix != path.suffix and (other := path.with_suffix(suffix)).is_file():
                shutil.copyfile(other, folder / other.name)
    return path.with_suffix(".json")
