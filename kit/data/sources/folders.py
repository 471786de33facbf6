"""Folders of images beside their labels: footprint files, or masks."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kit.data.sources.stac import VECTOR_SUFFIXES, Pair, Scene
from kit.errors import DataError

RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
# a folder is of one kind when one of these is among the words of its name: `masks`, `train_labels`
IMAGE_WORDS = {"image", "images", "img", "imgs", "imagery", "raster", "rasters", "tif", "tifs", "ortho", "orthos"}
LABEL_WORDS = {"mask", "masks", "label", "labels", "gt", "vector", "vectors", "geojson", "footprint", "footprints"}
MASK_STEM = re.compile(r"[_-](mask|label|gt)$", re.IGNORECASE)  # <stem>_mask.png beside <stem>.png
SNIFFED_BYTES = 65536  # a GeoJSON names its type within these
EXPECTED = (
    "expected a STAC catalog.json, GeoTIFFs with footprints of the same stem (images/x.tif, labels/x.geojson), "
    "or images with masks (images/x.png, masks/x.png; or x.png, x_mask.png)"
)


@dataclass(frozen=True)
class _File:
    """One file of the folder.

    Args:
        path: relative to the folder.
        kind: `image`, `mask` or `footprints`.
        folders: where it lies, without the words that tell the kind: an image and its labels lie in the same.
        stem: of the file's name, without `_mask`.
    """

    path: PurePosixPath
    kind: str
    folders: tuple[str, ...]
    stem: str


def read_folder(folder: Path, pattern: str, tier: int) -> tuple[list[Scene], list[Pair]]:
    """Returns the scenes (images with footprints) and pairs (images with masks) below a folder.

    Raises:
        DataError: it holds none, an image lacks labels or labels an image, or the pattern does not fit.
    """
    scenes: list[Scene] = []
    pairs: list[Pair] = []
    title = folder.resolve().name or "data"
    for image, labels in _matched(folder):
        href, label = str(folder / image.path), str(folder / labels.path)
        found = search(pattern, str(image.path.with_suffix("")))
        if labels.kind == "footprints":
            area, scene = "/".join(image.folders) or title, image.stem
            scenes.append(Scene(found.get("area", area), found.get("scene", scene), tier, href, (label,)))
        else:
            scene, *deeper = image.folders or (title,)
            name = "-".join([*([] if found else deeper), image.stem])
            pairs.append(Pair(found.get("area", title), found.get("scene", scene), tier, name, href, label))
    return scenes, pairs


def search(pattern: str, text: str) -> dict[str, str]:
    """Returns the area and the scene that a pattern finds in a path without its suffix; nothing without a pattern.

    Raises:
        DataError: it is no regular expression, names no group, or finds nothing.
    """
    if not pattern:
        return {}
    try:
        compiled = re.compile(pattern)
    except re.error as cause:
        raise DataError(f"pattern {pattern!r} is no regular expression: {cause}", "see Python's module re") from cause
    if not {"area", "scene"} & set(compiled.groupindex):
        raise DataError(f"pattern {pattern!r} has no group `area` or `scene`", "write one: (?P<scene>[^/]+)")
    found = compiled.search(text)
    if not found:
        raise DataError(f"pattern {pattern!r} does not match {text!r}", "it is searched in each path without suffix")
    return {name: part for name, part in found.groupdict().items() if name in ("area", "scene") and part}


def _matched(folder: Path) -> Iterator[tuple[_File, _File]]:
    """Returns images with their labels, in the order of their paths."""
    groups: dict[tuple[str, ...], list[_File]] = {}
    for path in _paths(folder):
        if file := _told(folder, path):
            groups.setdefault((*file.folders, file.stem), []).append(file)
    if not groups:
        raise DataError(f"{folder} holds no images with labels", EXPECTED)
    for files in groups.values():
        if len(files) > 2 or len({file.kind == "image" for file in files}) < len(files):
            names = ", ".join(str(file.path) for file in files)
            raise DataError(f"{folder}: of one image or its labels there are several: {names}", "keep one of each")
    alone = [files[0] for files in groups.values() if len(files) == 1]
    bare = [str(file.path) for file in alone if file.kind == "image"]
    lost = [str(file.path) for file in alone if file.kind != "image"]
    told = [
        f"{len(paths)} {what}, first {', '.join(paths[:3])}"
        for paths, what in ((bare, "images have no labels"), (lost, "labels have no image"))
        if paths
    ]
    if told:
        raise DataError(f"{folder}: {'; '.join(told)}", EXPECTED)
    for files in groups.values():
        image, labels = sorted(files, key=lambda file: file.kind != "image")
        yield image, labels


def _paths(folder: Path) -> list[PurePosixPath]:
    """Returns the files below a folder, hidden ones aside, sorted; folders that are linked to are entered once."""
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        if real not in seen:
            inside = PurePosixPath(Path(place).relative_to(folder).as_posix())
            found += [inside / file for file in files if not file.startswith(".")]
        seen.add(real)
    return sorted(found)


def _told(folder: Path, path: PurePosixPath) -> _File | None:
    """Returns what a file is by its suffix, its folders' names and its stem; None: neither image nor labels."""
    suffix = path.suffix.lower()
    if suffix not in RASTER_SUFFIXES + VECTOR_SUFFIXES:
        return None
    folders, kinds = [], []
    for name in path.parts[:-1]:
        words = re.split(r"([_-])", name)
        told = [word.lower() for word in words]
        kinds += [kind for kind, known in (("image", IMAGE_WORDS), ("mask", LABEL_WORDS)) if known & set(told)]
        rest = "".join(word for word in words if word.lower() not in IMAGE_WORDS | LABEL_WORDS).strip("_-")
        folders += [rest] if rest else []
    stem = MASK_STEM.sub("", path.stem)
    if suffix in VECTOR_SUFFIXES:
        if suffix == ".json" and not _is_geojson(folder / path):
            return None
        return _File(path, "footprints", tuple(folders), stem)
    kind = kinds[-1] if kinds else ("image" if stem == path.stem else "mask")
    return _File(path, kind, tuple(folders), path.stem if kind == "image" else stem)


def _is_geojson(file: Path) -> bool:
    """Returns whether a JSON file is a GeoJSON: others lie beside images too."""
    with file.open("rb") as source:
        return b'"FeatureCollection"' in source.read(SNIFFED_BYTES)
