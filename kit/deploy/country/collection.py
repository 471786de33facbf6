"""The scenes of a collection: a STAC catalogue, a STAC API search, a folder, or a list of addresses."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio

from kit.console import meter
from kit.data.grids import corners
from kit.data.rasters import gdal_options, open_scene
from kit.data.sources.folders import files_below
from kit.data.sources.inputs import TIFF_SUFFIXES
from kit.data.sources.remote import announce, fingerprint, is_remote, local_path, read_bytes, resolve, suffix_of
from kit.data.sources.stac import image_of, read_catalog
from kit.deploy.mapping.scene import DEGREES, check_source, frame_of
from kit.errors import CatalogError, KitError, RasterError

LISTS = (".json", ".txt")  # suffixes of catalogues and of lists of addresses
SEARCH = "/search"  # end of the address of a STAC API search
READERS = 16  # headers that are read at a time: the wait for servers takes most of the time
CACHE_BYTES = 64 << 20
ORDERS = ("newest", "finest")
EXIF_DATE = re.compile(r"(\d{4}):(\d\d):(\d\d)")


@dataclass(frozen=True)
class ListedScene:
    """A scene as a collection lists it."""

    id: str
    href: str  # path or address of the raster
    properties: dict[str, Any] = field(default_factory=dict)  # of its STAC item


@dataclass(frozen=True)
class PlacedScene:
    """A scene that was opened once: where it lies, and what it is."""

    id: str
    href: str  # path or address of the raster
    version: str  # changes when the file changes
    date: str  # of the imagery, ISO 8601; empty where unknown
    gsd_m: float  # ground resolution, metres per pixel
    # corners in degrees, one after the other around the scene; longitudes go on beyond 180 across the antimeridian
    ring: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Refused:
    """A scene that cannot be mapped."""

    id: str
    reason: str


@dataclass(frozen=True)
class Collection:
    """The scenes of a collection."""

    scenes: tuple[PlacedScene, ...]  # the preferred ones first
    refused: tuple[Refused, ...] = ()


def require_pyarrow() -> None:
    """Raises KitError if pyarrow, which writes the layer, is not installed."""
    if find_spec("pyarrow") is None:
        raise KitError("a map of many scenes needs the package pyarrow", "pip install 'footprintkit[country]'")


def is_collection(places: Sequence[str]) -> bool:
    """Returns whether the arguments of `kit map` are a collection, and not one scene."""
    if len(places) != 1:
        return True
    place = places[0]
    if not is_remote(place) and local_path(place).is_dir():
        return True
    return suffix_of(place) in LISTS or _is_search(place)


def _is_search(place: str) -> bool:
    return is_remote(place) and place.partition("?")[0].rstrip("/").endswith(SEARCH)


def list_scenes(places: Sequence[str], bbox: str = "", time: str = "") -> list[ListedScene]:
    """Returns the scenes that a collection lists, sorted by id.

    Args:
        places: one catalogue (a file, a folder that holds `catalog.json` or `collection.json`, an address), one address
            of a STAC API search, one folder of GeoTIFFs, one `.txt` with an address per line, or several.
        bbox: of a search: `west,south,east,north` in degrees.
        time: of a search: a date or `from/to`, as STAC APIs take it.

    Raises:
        CatalogError: there are none, an item has no image, or two have one id.
    """
    place = places[0]
    if (bbox or time) and not _is_search(place):
        raise CatalogError(
            f"{place} is not a STAC API search", f"--bbox and --datetime need an address .../{SEARCH[1:]}"
        )
    if len(places) > 1:
        listed = [ListedScene(href, href) for href in places]
    elif _is_search(place):
        listed = _found(place, bbox, time)
    elif suffix_of(place) == ".txt":
        lines = [line.strip() for line in read_bytes(place).decode("utf-8-sig").splitlines()]
        listed = [ListedScene(line, resolve(line, place)) for line in lines if line and not line.startswith("#")]
    else:
        listed = _of_folder(place)
    if not listed:
        raise CatalogError(f"no scenes in {place}", f"expected STAC items with an image, or {', '.join(TIFF_SUFFIXES)}")
    twice = [identity for identity, count in Counter(scene.id for scene in listed).items() if count > 1]
    if twice:
        first = [scene.href for scene in listed if scene.id == twice[0]]
        raise CatalogError(
            f"{len(twice)} scene ids occur twice, first {twice[0]}: {first[0]} and {first[1]}",
            "give each item its own id, or list each address once",
        )
    return sorted(listed, key=lambda scene: scene.id)


def _of_folder(place: str) -> list[ListedScene]:
    """Returns the scenes of a catalogue, or of a folder without one."""
    catalog = place
    if not is_remote(place) and (folder := local_path(place)).is_dir():
        named = [folder / name for name in ("catalog.json", "collection.json") if (folder / name).is_file()]
        if not named:
            images = [path for path in files_below(folder) if path.suffix.lower() in TIFF_SUFFIXES]
            return [ListedScene(str(path), str(folder / path)) for path in images]
        catalog = str(named[0])
    items = [item for item in read_catalog(catalog)[1] if not item.is_label]
    return [ListedScene(f"{item.area}/{item.id}", image_of(item), item.properties) for item in items]


def _found(address: str, bbox: str, time: str) -> list[ListedScene]:
    """Returns what a STAC API search finds."""
    try:
        from pystac_client import ItemSearch
        from pystac_client.exceptions import APIError
    except ImportError as cause:
        raise KitError(
            "a STAC API search needs the package pystac-client", "pip install 'footprintkit[stac]'"
        ) from cause
    box = None
    if bbox:
        try:
            box = [float(number) for number in bbox.split(",")]
        except ValueError:
            box = []
        if len(box) != 4 or not all(map(math.isfinite, box)):
            raise KitError(f"--bbox {bbox!r}", "expected west,south,east,north in degrees")
    announce([address])
    try:
        search = ItemSearch(address, method="GET", bbox=box, datetime=time or None)
        items = list(search.items_as_dicts())
    except (APIError, OSError, ValueError) as cause:  # requests' errors are OSErrors
        raise CatalogError(
            f"{address}: the search failed: {cause}", "check the address, --bbox and --datetime"
        ) from cause
    return [_searched(item, address) for item in items]


def _searched(item: dict[str, Any], address: str) -> ListedScene:
    assets = item.get("assets") or {}
    tiffs = [asset["href"] for asset in assets.values() if suffix_of(asset.get("href", "")) in TIFF_SUFFIXES]
    href = (assets.get("image") or assets.get("visual") or {}).get("href") or next(iter(tiffs), "")
    name = f"{item.get('collection') or 'search'}/{item.get('id')}"
    if not href:
        raise CatalogError(f"item {name} has no asset `image`, `visual` and no TIFF", "expected one image an item")
    own = next((link["href"] for link in item.get("links", ()) if link.get("rel") == "self"), address)
    return ListedScene(name, resolve(href, own), item.get("properties") or {})


def place_scenes(
    listed: Sequence[ListedScene], prefer: str = "", known: Iterable[PlacedScene] = (), allow_outside: bool = False
) -> Collection:
    """Returns the scenes, each opened once, in the order in which they are preferred.

    Args:
        listed: scenes of a collection.
        prefer: `newest`, `finest`, or a property of the STAC items, of which larger values are preferred; empty: none
            is, and they are sorted by id. Those without a date or the property come last.
        known: scenes of an earlier plan; one that has not changed since is not opened again.
        allow_outside: see `check_source`.

    Raises:
        CatalogError: none can be mapped, or none has the property.
    """
    before = {(scene.href, scene.version): scene for scene in known}
    announce(scene.href for scene in listed)
    with rasterio.Env(**gdal_options(CACHE_BYTES, any(is_remote(scene.href) for scene in listed))):
        options = rasterio.env.getenv()
    placed = _each(partial(_placed, before=before, options=options, allow_outside=allow_outside), listed)
    refused = tuple(scene for scene in placed if isinstance(scene, Refused))
    scenes = [scene for scene in placed if isinstance(scene, PlacedScene)]
    if not scenes:
        raise CatalogError(
            f"none of {len(listed)} scenes can be mapped, first {refused[0].id}: {refused[0].reason}",
            "expected GeoTIFFs, RGB or RGBA of 8 bits, with a coordinate system",
        )
    return Collection(tuple(_ordered(scenes, {scene.id: scene.properties for scene in listed}, prefer)), refused)


def _each(work: Callable[[ListedScene], Any], listed: Sequence[ListedScene]) -> list[Any]:
    results = []
    with ThreadPoolExecutor(READERS) as pool, meter("read headers", len(listed)) as running:
        for result in pool.map(work, listed):
            results.append(result)
            running.advance()
    return results


def _placed(
    listed: ListedScene, before: dict[tuple[str, str], PlacedScene], options: dict[str, Any], allow_outside: bool
) -> PlacedScene | Refused:
    """Returns a scene with its place, or why it has none."""
    try:
        href = listed.href if is_remote(listed.href) else str(local_path(listed.href).resolve())
        check_source(href, allow_outside)
        version = fingerprint(href)
        if old := before.get((href, version)):
            return replace(old, id=listed.id, date=_date(listed.properties) or old.date)
        with rasterio.Env(**options), open_scene(href) as source:
            frame = frame_of(source)
            x, y = zip(*corners(source), strict=True)
            longitudes, latitudes = pyproj.Transformer.from_crs(frame.crs, DEGREES, always_xy=True).transform(x, y)
            tags = {**source.tags(), **source.tags(ns="IMAGERY")}
        if not np.isfinite([*longitudes, *latitudes]).all():
            raise RasterError(f"{href} has no place on the earth", "check its georeference: gdalinfo")
        around = np.unwrap(longitudes, period=360)
        ring = tuple((round(float(x), 8), round(float(y), 8)) for x, y in zip(around, latitudes, strict=True))
        date = _date(listed.properties) or _date_of_tags(tags)
        return PlacedScene(listed.id, href, version, date, round(frame.gsd_m, 6), ring)
    except KitError as cause:
        return Refused(listed.id, cause.message)


def _date(properties: dict[str, Any]) -> str:
    for name in ("datetime", "end_datetime", "start_datetime"):
        text = properties.get(name)
        if isinstance(text, str) and text:
            try:
                datetime.fromisoformat(text)
            except ValueError:
                continue
            return text
    return ""


def _date_of_tags(tags: dict[str, str]) -> str:
    """Returns the date in a GeoTIFF's tags; empty where there is none."""
    text = tags.get("ACQUISITIONDATETIME") or tags.get("TIFFTAG_DATETIME") or ""
    return _date({"datetime": EXIF_DATE.sub(r"\1-\2-\3", text.strip(), count=1)})


def _ordered(scenes: list[PlacedScene], properties: dict[str, dict[str, Any]], prefer: str) -> list[PlacedScene]:
    """Returns scenes with the preferred ones first; equal ones by id."""
    scenes = sorted(scenes, key=lambda scene: scene.id)
    if not prefer:
        return scenes
    if prefer == "finest":
        return sorted(scenes, key=lambda scene: scene.gsd_m)
    values: dict[str, Any] = {}
    for scene in scenes:
        value = _moment(scene.date) if prefer == "newest" else properties[scene.id].get(prefer)
        if value is not None:
            values[scene.id] = value
    if not values:
        what = "date" if prefer == "newest" else f"property {prefer!r}"
        raise CatalogError(f"--prefer {prefer}: no scene has a {what}", f"expected {', '.join(ORDERS)} or a property")
    try:
        ranked = sorted((s for s in scenes if s.id in values), key=lambda s: values[s.id], reverse=True)
    except TypeError as cause:
        raise CatalogError(
            f"--prefer {prefer}: its values cannot be compared, first {json.dumps(next(iter(values.values())))}",
            "expected numbers alone, or texts alone",
        ) from cause
    return ranked + [scene for scene in scenes if scene.id not in values]


def _moment(date: str) -> float | None:
    """Returns seconds since 1970 of an ISO date; without a zone it is UTC."""
    if not date:
        return None
    moment = datetime.fromisoformat(date)
    return moment.timestamp() if moment.tzinfo else datetime.fromisoformat(f"{moment.isoformat()}+00:00").timestamp()


def default_name(places: Sequence[str]) -> str:
    """Returns a name for the map of a collection: that of its folder or file."""
    if len(places) > 1 or _is_search(places[0]):
        return "scenes"
    if is_remote(places[0]):
        return places[0].rstrip("/").rsplit("/", 2)[-2 if suffix_of(places[0]) == ".json" else -1]
    path = Path(local_path(places[0])).resolve()
    return path.parent.name if path.stem in ("catalog", "collection") else path.stem
