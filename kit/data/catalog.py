"""STAC catalogues of the challenge's layout, read as scenes (with labels) or chips (without)."""

import re
from dataclasses import dataclass
from pathlib import Path

import pystac

from kit.errors import CatalogError

LABELS_SUFFIX = "-labels"
TIFF_SUFFIXES = (".tif", ".tiff")


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


def open_catalog(path: Path) -> pystac.Catalog:
    """Returns the catalogue of a file, or of the folder that holds `catalog.json`.

    Raises:
        CatalogError: there is none, or it is no STAC.
    """
    file = path / "catalog.json" if path.is_dir() else path
    if not file.is_file():
        raise CatalogError(
            f"no STAC catalogue at {path}", "give a catalog.json, or the folder that holds it; `kit sample` draws one"
        )
    try:
        return pystac.Catalog.from_file(str(file.resolve()))
    except (pystac.STACError, pystac.STACTypeError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise CatalogError(f"{file} is no STAC catalogue: {cause}", "expected a JSON file of type Catalog") from cause


def read_items(catalog: pystac.Catalog) -> list[pystac.Item]:
    """Returns the items of a catalogue, at any depth.

    Raises:
        CatalogError: one of them cannot be read.
    """
    try:
        return list(catalog.get_items(recursive=True))
    except (OSError, pystac.STACError, ValueError, KeyError, TypeError) as cause:
        raise CatalogError(f"catalogue {catalog.id}: an item cannot be read: {cause}", "is it complete?") from cause


def image_of(item: pystac.Item) -> str:
    """Returns the absolute href of an item's image: the asset `image`, else its first TIFF.

    Raises:
        CatalogError: it has none.
    """
    tiffs = [asset for asset in item.assets.values() if Path(asset.href).suffix.lower() in TIFF_SUFFIXES]
    for asset in (item.assets.get("image"), *tiffs):
        if asset is not None and (href := asset.get_absolute_href()):
            return href
    raise CatalogError(f"item {item.id} has no asset `image` and no TIFF", "expected one image an item")


def _source_of(item: pystac.Item) -> str:
    """Returns the id of the image item that a label item belongs to: by its `source` link, else by its name."""
    for link in item.get_links("source"):
        return Path(str(link.get_href())).stem
    return item.id.removesuffix(LABELS_SUFFIX)


def _is_label(item: pystac.Item) -> bool:
    return "labels" in item.assets or item.id.endswith(LABELS_SUFFIX)


def _area(item: pystac.Item) -> str:
    parent = item.get_parent()
    return str(item.collection_id or (parent.id if parent else "area"))


def read_scenes(path: Path) -> tuple[str, list[Scene]]:
    """Returns the catalogue's id and its scenes, sorted by area and scene.

    Raises:
        CatalogError: no catalogue, no scenes, or a scene without labels.
    """
    catalog = open_catalog(path)
    images: dict[tuple[str, str], str] = {}
    labels: dict[tuple[str, str], list[str]] = {}
    for item in read_items(catalog):
        area = _area(item)
        if _is_label(item):
            hrefs = [asset.get_absolute_href() for asset in item.assets.values()]
            labels.setdefault((area, _source_of(item)), []).extend(href for href in hrefs if href)
        else:
            images[area, item.id] = image_of(item)
    if not images:
        raise CatalogError(f"catalogue {path} holds no scenes", "expected image items below its collections")
    bare = sorted(key for key in images if not labels.get(key))
    if bare:
        names = ", ".join("/".join(key) for key in bare[:3])
        raise CatalogError(
            f"{len(bare)} of {len(images)} scenes have no labels, first {names}",
            f"each scene needs an item <scene>{LABELS_SUFFIX} with a GeoJSON asset `labels`",
        )
    found = re.search(r"tier_?(\d)", catalog.id)
    tier = int(found[1]) if found else 1
    scenes = [Scene(*key, tier, href, tuple(sorted(labels[key]))) for key, href in sorted(images.items())]
    for scene in scenes:
        for href in (scene.image, *scene.labels):
            if "://" not in href and not Path(href).exists():
                raise CatalogError(f"scene {scene.area}/{scene.scene}: no file {href}", "is the catalogue complete?")
    return catalog.id, scenes
