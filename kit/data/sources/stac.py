"""STAC catalogues, 0.8 to 1.1, read as scenes (with labels) or chips (without)."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pystac
from pystac.utils import make_absolute_href

from kit.data.sources.remote import is_remote, local_path, read_bytes, suffix_of
from kit.errors import CatalogError, KitError

LABELS_SUFFIX = "-labels"
TIFF_SUFFIXES = (".tif", ".tiff")
VECTOR_SUFFIXES = (".geojson", ".json", ".gpkg", ".shp", ".fgb")
VECTOR_TYPES = ("geo+json", "geopackage", "flatgeobuf")  # what the media types of such files hold
BESIDE = {"thumbnail", "overview", "metadata", "visual"}  # roles of assets that are no footprints
DOWN = ("child", "item", "source")


@dataclass(frozen=True)
class Scene:
    """One drone mosaic and its label files.

    Args:
        area: the collection's id, for example `kam`.
        scene: the image item's id.
        tier: 1 for careful labels, 2 for dirty ones.
        image: path or URL of the GeoTIFF.
        labels: paths or URLs of the footprint files.
    """

    area: str
    scene: str
    tier: int
    image: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """A ready-made image with its mask, both rasters of the same size.

    Args:
        area: as of a scene.
        scene: what it was cut from, as far as is known.
        tier: 1 for careful labels, 2 for dirty ones.
        name: unique within the scene, for example the file's stem.
        image: path or URL.
        mask: path or URL.
    """

    area: str
    scene: str
    tier: int
    name: str
    image: str
    mask: str


class _Reader(pystac.StacIO):
    """Reads a catalogue's files where they lie, and follows links downwards only.

    A copy of a published catalogue may still link to its old home as root, parent and collection: not to be fetched.
    """

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        return read_bytes(os.fspath(source)).decode("utf-8-sig")

    def json_loads(self, txt: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found = json.loads(txt)
        if not isinstance(found, dict):
            raise ValueError(f"a JSON {type(found).__name__}, expected an object")
        found["links"] = [link for link in found.get("links") or [] if link.get("rel") in DOWN]
        return found

    def write_text(self, dest: Any, txt: str, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("catalogues are only read")


def open_catalog(path: str | Path) -> pystac.Catalog:
    """Returns the catalogue or collection of a file or an address, or of the folder that holds `catalog.json`.

    Raises:
        CatalogError: there is none, or it is no STAC.
    """
    href = str(path)
    if is_remote(href):
        href = href if suffix_of(href) == ".json" else f"{href.rstrip('/')}/catalog.json"
    else:
        file = local_path(href)
        file = file / "catalog.json" if file.is_dir() else file
        if not file.is_file():
            raise CatalogError(
                f"no STAC catalogue at {path}",
                "give a catalog.json, or the folder that holds it; `kit sample` draws one",
            )
        href = str(file.resolve())
    try:
        found = _Reader().read_stac_object(href)
        if not isinstance(found, pystac.Catalog):
            raise TypeError(f"a {type(found).__name__}")
    except (pystac.STACError, pystac.STACTypeError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise CatalogError(f"{href} is no STAC catalogue: {cause}", "expected a JSON file of type Catalog") from cause
    except KitError as cause:
        raise CatalogError(f"no STAC catalogue at {path}: {cause.message}", cause.hint) from cause
    found.set_root(found)
    return found


def read_items(catalog: pystac.Catalog) -> list[pystac.Item]:
    """Returns the items of a catalogue, at any depth, each once however often it is listed.

    Raises:
        CatalogError: one of them cannot be read.
    """
    try:
        return list(_walk(catalog, set()))
    except (OSError, pystac.STACError, ValueError, KeyError, TypeError, AttributeError) as cause:
        deep = cause.__cause__ if isinstance(cause.__cause__, KitError) else None
        reason, hint = (deep.message, deep.hint) if deep else (cause, "is it complete?")
        raise CatalogError(f"catalogue {catalog.id}: an item cannot be read: {reason}", hint) from cause


def _walk(catalog: pystac.Catalog, seen: set[str]) -> Iterator[pystac.Item]:
    for item in catalog.get_items():
        if (place := _plain(item.get_self_href())) not in seen:
            seen.add(place)
            yield item
    for child in catalog.get_children():
        if (place := _plain(child.get_self_href())) not in seen:
            seen.add(place)
            yield from _walk(child, seen)


def _plain(href: str | None) -> str:
    """Returns an href such that two of one place are equal: `file://` and `./` fall away."""
    return href if href and is_remote(href) else os.path.normpath(local_path(href or ""))


def _absolute(href: str, item: pystac.Item) -> str:
    return _plain(make_absolute_href(href, item.get_self_href()))


def image_of(item: pystac.Item) -> str:
    """Returns the absolute href of an item's image: the asset `image`, else its first TIFF.

    Raises:
        CatalogError: it has none.
    """
    tiffs = [asset for asset in item.assets.values() if suffix_of(asset.href) in TIFF_SUFFIXES]
    for asset in (item.assets.get("image"), *tiffs):
        if asset is not None:
            return _absolute(asset.href, item)
    raise CatalogError(f"item {item.id} has no asset `image` and no TIFF", "expected one image an item")


def _vectors(item: pystac.Item) -> list[str]:
    """Returns the absolute hrefs of an item's footprint files."""
    found = []
    for asset in item.assets.values():
        kind = (asset.media_type or "").lower()
        typed = any(name in kind for name in VECTOR_TYPES)
        fits = typed or suffix_of(asset.href) in VECTOR_SUFFIXES
        if fits and not BESIDE & set(asset.roles or ()):
            found.append(_absolute(asset.href, item))
    return found


def _is_label(item: pystac.Item) -> bool:
    """Returns whether an item describes the labels of another: by link, by name, or by the label extension."""
    described = item.id.endswith(LABELS_SUFFIX) or any(key.startswith("label:") for key in item.properties)
    return described or bool(item.get_links("source")) or ("labels" in item.assets and "image" not in item.assets)


def _area(item: pystac.Item) -> str:
    parent = item.get_parent()
    return str(item.collection_id or (parent.id if parent else "area"))


Key = tuple[str, str]  # area, scene


def _images(items: Iterable[pystac.Item]) -> dict[Key, pystac.Item]:
    """Returns the image items by area and id.

    Raises:
        CatalogError: two files tell of one scene.
    """
    found: dict[Key, pystac.Item] = {}
    for item in items:
        key = _area(item), item.id
        if key in found:
            raise CatalogError(
                f"two items are scene {'/'.join(key)}: {found[key].get_self_href()} and {item.get_self_href()}",
                "give one of them another id",
            )
        found[key] = item
    return found


def _owners(label: pystac.Item, images: dict[Key, pystac.Item], places: dict[str, Key]) -> list[Key]:
    """Returns the scenes that a label item belongs to: by its `source` links, else by its name.

    Raises:
        CatalogError: there is no such scene.
    """
    hrefs = [_absolute(str(link.get_href(transform_href=False)), label) for link in label.get_links("source")]
    owners = []
    for href in hrefs or [label.id.removesuffix(LABELS_SUFFIX)]:
        name = Path(href).stem if hrefs else href
        elsewhere = [key for key in images if key[1] == name]
        same = (_area(label), name)
        if href in places:
            owners.append(places[href])
        elif same in images:
            owners.append(same)
        elif len(elsewhere) == 1:
            owners.append(elsewhere[0])
        else:
            raise CatalogError(
                f"labels {_area(label)}/{label.id} belong to scene {name}, which the catalogue does not hold",
                f"expected a link `source` to an image item, or the name <scene>{LABELS_SUFFIX}",
            )
    return owners


def tier_of(name: str) -> int:
    """Returns the tier that a catalogue's id tells, as `train_tier_2` does; else 1."""
    found = re.search(r"tier_?(\d)", name)
    return int(found[1]) if found else 1


def read_scenes(path: str | Path) -> tuple[str, list[Scene]]:
    """Returns the catalogue's id and its scenes, sorted by area and scene.

    Raises:
        CatalogError: no catalogue, no scenes, a scene without labels, or labels without a scene.
    """
    catalog = open_catalog(path)
    items = read_items(catalog)
    images = _images(item for item in items if not _is_label(item))
    if not images:
        raise CatalogError(f"catalogue {path} holds no scenes", "expected image items below its collections")
    hrefs = {key: image_of(item) for key, item in images.items()}
    labels = {key: set(_vectors(item)) if "labels" in item.assets else set() for key, item in images.items()}
    places = {_plain(item.get_self_href()): key for key, item in images.items()}
    for item in items:
        if _is_label(item):
            for key in _owners(item, images, places):
                labels[key].update(_vectors(item))
    bare = sorted(key for key, files in labels.items() if not files)
    if bare:
        names = ", ".join("/".join(key) for key in bare[:3])
        raise CatalogError(
            f"{len(bare)} of {len(images)} scenes have no labels, first {names}",
            f"each scene needs an item <scene>{LABELS_SUFFIX} with a GeoJSON asset `labels`",
        )
    tier = tier_of(catalog.id)
    scenes = [Scene(*key, tier, href, tuple(sorted(labels[key]))) for key, href in sorted(hrefs.items())]
    for scene in scenes:
        for href in (scene.image, *scene.labels):
            if not is_remote(href) and not Path(href).exists():
                raise CatalogError(f"scene {scene.area}/{scene.scene}: no file {href}", "is the catalogue complete?")
    return catalog.id, scenes
