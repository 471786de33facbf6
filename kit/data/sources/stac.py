"""STAC catalogues, 0.8 to 1.1, read as items: scenes with labels, or test chips without.

The files are read directly, with the few fields that count, and links are followed downwards only: a copy of a
published catalogue may still name its old home as root, parent and collection, which is not to be fetched.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kit.data.sources.inputs import TIFF_SUFFIXES, VECTOR_SUFFIXES, Scene
from kit.data.sources.remote import file_name, is_remote, local_path, read_bytes, resolve, suffix_of
from kit.errors import CatalogError, KitError

LABELS_SUFFIX = "-labels"
VECTOR_TYPES = ("geo+json", "geopackage", "flatgeobuf")  # parts of the media types of such files
NO_FOOTPRINTS = {"thumbnail", "overview", "metadata", "visual"}  # roles of assets
DEEPEST = 50  # catalogues within catalogues
BOM = b"\xef\xbb\xbf"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)  # an id must be a string


class _Link(_Part):
    rel: str
    href: str


class _Asset(_Part):
    href: str
    type: str | None = None
    roles: list[str] | None = None


class _File(_Part):
    """The fields of a catalogue, a collection or an item that count here."""

    id: str
    type: str | None = None  # catalogues before 1.0 have none
    stac_version: str | None = None
    links: list[_Link] | None = None
    collection: str | None = None
    assets: dict[str, _Asset] | None = None
    properties: dict[str, Any] | None = None

    def hrefs(self, rel: str) -> list[str]:
        """Returns the hrefs of the links of one kind."""
        return [link.href for link in self.links or () if link.rel == rel]


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a catalogue, its hrefs absolute."""

    id: str  # of the item
    area: str  # its collection's id, else that of the catalogue that lists it
    href: str  # where it lies
    image: str  # the asset `image`, else the first TIFF; empty where there is none
    vectors: tuple[str, ...]  # the assets that may be footprints
    has_labels: bool  # whether an asset is called `labels`
    is_label: bool  # whether it describes the labels of another item: by link, by name, or by the label extension
    sources: tuple[str, ...]  # the items whose labels it describes, as far as links say so
    properties: dict[str, Any]  # as they are


def read_catalog(path: str | Path) -> tuple[str, list[Item]]:
    """Returns a catalogue's id and its items at any depth, each once however often it is listed.

    Args:
        path: a file or an address of a catalogue or a collection, or the folder that holds `catalog.json`.

    Raises:
        CatalogError: there is none, it is no STAC, or an item or a collection cannot be read.
    """
    href = _href_of(path)
    try:
        root = _read(href, is_item=False)
    except KitError as cause:
        if isinstance(cause, CatalogError):
            fault = cause.message.removeprefix(f"{href}: ")
            raise CatalogError(
                f"{href} is not a STAC catalogue: {fault}", "expected a JSON file of type Catalog"
            ) from cause
        raise CatalogError(f"no STAC catalogue at {path}: {cause.message}", cause.hint) from cause
    items: list[Item] = []
    seen = {href}
    open_: list[tuple[str, _File, int]] = [(href, root, 0)]
    try:
        while open_:
            place, catalog, depth = open_.pop()
            for item_href in _below(place, catalog.hrefs("item"), seen):
                items.append(_item(item_href, _read(item_href, is_item=True), catalog.id))
            if depth == DEEPEST:
                raise CatalogError(f"{place} lies {DEEPEST} catalogues deep", "give the catalogue that holds the items")
            for child in _below(place, catalog.hrefs("child"), seen):
                open_.append((child, _read(child, is_item=False), depth + 1))
    except KitError as cause:
        hint = cause.hint or "is it complete?"
        raise CatalogError(f"catalogue {root.id}: an item cannot be read: {cause.message}", hint) from cause
    return root.id, items


def _href_of(path: str | Path) -> str:
    """Returns the address or absolute path of a catalogue's file."""
    href = str(path)
    if is_remote(href):
        return href if suffix_of(href) == ".json" else f"{href.rstrip('/')}/catalog.json"
    file = local_path(href)
    file = file / "catalog.json" if file.is_dir() else file
    if not file.exists():
        raise CatalogError(
            f"no STAC catalogue at {path}", "give a catalog.json, or the folder that holds it; `kit sample` draws one"
        )
    return str(file.resolve())


def _read(href: str, is_item: bool) -> _File:
    """Returns the content of a catalogue's file."""
    content = read_bytes(href).removeprefix(BOM)
    try:
        file = _File.model_validate_json(content)
    except ValidationError as cause:
        error = cause.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in error["loc"])
        raise CatalogError(f"{href}: {f'field {field}: ' if field else ''}{error['msg']}") from cause
    kinds = ("Feature",) if is_item else ("Catalog", "Collection")
    if file.type not in kinds and (file.type is not None or is_item or not file.stac_version):
        raise CatalogError(f"{href}: of type {file.type}, expected {' or '.join(kinds)}")
    return file


def _below(base: str, hrefs: Iterable[str], seen: set[str]) -> list[str]:
    """Returns links as absolute hrefs, those left out that are known already."""
    places = [place for place in dict.fromkeys(_absolute(href, base) for href in hrefs) if place not in seen]
    seen.update(places)
    return places


def _absolute(href: str, base: str) -> str:
    """Returns an absolute href such that two hrefs of one place are equal."""
    place = resolve(href, base)
    return place if is_remote(place) else os.path.normpath(file_name(place))


def _item(href: str, file: _File, parent: str) -> Item:
    assets = file.assets or {}
    tiffs = [asset for asset in assets.values() if suffix_of(asset.href) in TIFF_SUFFIXES]
    image = assets.get("image") or next(iter(tiffs), None)
    sources = tuple(_absolute(link, href) for link in file.hrefs("source"))
    described = file.id.endswith(LABELS_SUFFIX) or any(key.startswith("label:") for key in file.properties or ())
    return Item(
        file.id,
        file.collection or parent,
        href,
        _absolute(image.href, href) if image else "",
        tuple(_absolute(asset.href, href) for asset in assets.values() if _may_be_footprints(asset)),
        "labels" in assets,
        described or bool(sources) or ("labels" in assets and "image" not in assets),
        sources,
        file.properties or {},
    )


def _may_be_footprints(asset: _Asset) -> bool:
    typed = any(name in (asset.type or "").lower() for name in VECTOR_TYPES)
    return (typed or suffix_of(asset.href) in VECTOR_SUFFIXES) and not NO_FOOTPRINTS & set(asset.roles or ())


def image_of(item: Item) -> str:
    """Returns the absolute href of an item's image.

    Raises:
        CatalogError: it has none.
    """
    if not item.image:
        raise CatalogError(f"item {item.id} has no asset `image` and no TIFF", "expected one image an item")
    return item.image


Key = tuple[str, str]  # area, scene


def _images(items: Iterable[Item]) -> dict[Key, Item]:
    """Returns the image items by area and id."""
    images: dict[Key, Item] = {}
    for item in items:
        key = item.area, item.id
        if key in images:
            raise CatalogError(
                f"two items are scene {'/'.join(key)}: {images[key].href} and {item.href}",
                "give one of them another id",
            )
        images[key] = item
    return images


def _owners(label: Item, images: dict[Key, Item], places: dict[str, Key], by_id: dict[str, list[Key]]) -> list[Key]:
    """Returns the scenes that a label item belongs to: by its `source` links, else by its name."""
    owners = []
    for href in label.sources or [label.id.removesuffix(LABELS_SUFFIX)]:
        name = Path(href).stem if label.sources else href
        elsewhere = by_id.get(name, [])
        same = (label.area, name)
        if href in places:
            owners.append(places[href])
        elif same in images:
            owners.append(same)
        elif len(elsewhere) == 1:
            owners.append(elsewhere[0])
        else:
            raise CatalogError(
                f"labels {label.area}/{label.id} belong to scene {name}, which the catalogue does not hold",
                f"expected a link `source` to an image item, or the name <scene>{LABELS_SUFFIX}",
            )
    return owners


def tier_of(name: str) -> int:
    """Returns the tier in a catalogue's id such as `train_tier_2`; else 1."""
    match = re.search(r"tier_?(\d)", name)
    return int(match[1]) if match else 1


def read_scenes(path: str | Path) -> tuple[str, list[Scene]]:
    """Returns the catalogue's id and its scenes, sorted by area and scene.

    Raises:
        CatalogError: no catalogue, no scenes, a scene without labels, or labels without a scene.
    """
    name, items = read_catalog(path)
    images = _images(item for item in items if not item.is_label)
    if not images:
        raise CatalogError(f"catalogue {path} holds no scenes", "expected image items below its collections")
    hrefs = {key: image_of(item) for key, item in images.items()}
    labels = {key: set(item.vectors) if item.has_labels else set() for key, item in images.items()}
    places = {item.href: key for key, item in images.items()}
    by_id: dict[str, list[Key]] = {}
    for key in images:
        by_id.setdefault(key[1], []).append(key)
    for item in items:
        if item.is_label:
            for key in _owners(item, images, places, by_id):
                labels[key].update(item.vectors)
    bare = sorted(key for key, files in labels.items() if not files)
    if bare:
        names = ", ".join("/".join(key) for key in bare[:3])
        raise CatalogError(
            f"{len(bare)} of {len(images)} scenes have no labels, first {names}",
            f"each scene needs an item <scene>{LABELS_SUFFIX} with a GeoJSON asset `labels`",
        )
    tier = tier_of(name)
    scenes = [Scene(*key, tier, href, tuple(sorted(labels[key]))) for key, href in sorted(hrefs.items())]
    for scene in scenes:
        for href in (scene.image, *scene.labels):
            if not is_remote(href) and not Path(href).is_file():
                raise CatalogError(f"scene {scene.area}/{scene.scene}: no file {href}", "is the catalogue complete?")
    return name, scenes
