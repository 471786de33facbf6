"""Folders of images beside their labels: footprint files, or masks."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn
from unicodedata import normalize

from kit.data.sources.coco import CONVERT, DrawnMask, annotation_tool, image_named, read_coco
from kit.data.sources.inputs import IMAGE_SUFFIXES, OTHER_IMAGES, OTHER_VECTORS, VECTOR_SUFFIXES, Pair, Scene
from kit.errors import DataError

# a folder is of one kind when one of these is among the words of its name: `masks`, `train_labels`
IMAGE_WORDS = {"image", "images", "img", "imgs", "imagery", "raster", "rasters", "tif", "tifs", "ortho", "orthos"}
LABEL_WORDS = {"mask", "masks", "label", "labels", "gt", "vector", "vectors", "geojson", "footprint", "footprints"}
MASK_STEM = re.compile(r"[_-](mask|label|gt)$", re.IGNORECASE)  # <stem>_mask.png beside <stem>.png
ANNOTATION_SUFFIXES = (".json", ".xml")
SNIFFED_BYTES = 1 << 16  # at either end of a JSON file: its type stands first or, with sorted keys, last
EXPECTED = (
    "expected a STAC catalog.json, GeoTIFFs with footprints of the same stem (images/x.tif, labels/x.geojson), "
    "or images with masks (images/x.png, masks/x.png; or x.png, x_mask.png) or a COCO annotations.json"
)


@dataclass(frozen=True)
class _File:
    """One file of the folder."""

    path: PurePosixPath  # relative to the folder
    kind: str  # `image`, `mask`, `footprints` or `annotations`
    # where it lies, without words such as `images` and `masks`: an image and its labels lie in the same
    folders: tuple[str, ...]
    stem: str  # of the file's name, without `_mask`
    drawing: DrawnMask | None = None  # of one image, of annotations


def read_folder(folder: Path, pattern: str, tier: int, where: str = "") -> tuple[list[Scene], list[Pair]]:
    """Returns the scenes (images with footprints) and pairs (images with masks or annotations) below a folder.

    Args:
        folder: searched with its subfolders.
        pattern: see `kit.data.sources.source.read_source`.
        tier: of all labels.
        where: SQL condition that chooses annotations of COCO files.

    Raises:
        DataError: it holds none, an image lacks labels or labels an image, the pattern does not fit, or an annotation
            file is broken.
    """
    scenes: list[Scene] = []
    pairs: list[Pair] = []
    title = folder.resolve().name or "data"
    for image, labels in _matched(folder, where):
        href, label = str(folder / image.path), str(folder / labels.path)
        names = search(pattern, str(image.path.with_suffix("")))
        if labels.kind == "footprints":
            area, scene = "/".join(image.folders) or title, image.stem
            scenes.append(Scene(names.get("area", area), names.get("scene", scene), tier, href, (label,)))
        else:
            scene, *deeper = image.folders or (title,)
            name = "-".join([*([] if names else deeper), image.stem])
            place = names.get("area", title), names.get("scene", scene)
            pairs.append(Pair(*place, tier, name, href, label, labels.drawing))
    return scenes, pairs


def search(pattern: str, text: str) -> dict[str, str]:
    """Returns the area and the scene that a pattern matches in a path without its suffix; nothing without a pattern.

    Raises:
        DataError: it is not a regular expression, names no group, or does not match.
    """
    if not pattern:
        return {}
    try:
        compiled = re.compile(pattern)
    except re.error as cause:
        raise DataError(
            f"pattern {pattern!r} is not a regular expression: {cause}", "see Python's module re"
        ) from cause
    if not {"area", "scene"} & set(compiled.groupindex):
        raise DataError(f"pattern {pattern!r} has no group `area` or `scene`", "write one: (?P<scene>[^/]+)")
    match = compiled.search(text)
    if not match:
        raise DataError(f"pattern {pattern!r} does not match {text!r}", "it is searched in each path without suffix")
    return {name: part for name, part in match.groupdict().items() if name in ("area", "scene") and part}


def _matched(folder: Path, where: str) -> Iterator[tuple[_File, _File]]:
    """Returns images with their labels, in the order of their paths."""
    groups: dict[tuple[str, ...], list[_File]] = {}
    paths = files_below(folder)
    for file in filter(None, (_classify(folder, path) for path in paths)):
        key = (*file.folders, file.stem)  # macOS takes letters with marks apart: the same names in another form
        groups.setdefault(tuple(normalize("NFC", part) for part in key), []).append(file)
    tools = _annotation_files(folder, paths)
    for path in [path for path, tool in tools.items() if tool == "COCO"]:
        _add_annotations(folder, path, where, groups)
    if not groups:
        raise DataError(f"{folder} holds no images with labels", EXPECTED)
    for files in groups.values():
        if len(files) > 2 or len({file.kind == "image" for file in files}) < len(files):
            names = ", ".join(str(file.path) for file in files)
            raise DataError(f"{folder}: several files for one image or its labels: {names}", "keep one of each")
    alone = [files[0] for files in groups.values() if len(files) == 1]
    bare = [str(file.path) for file in alone if file.kind == "image"]
    lost = [str(file.path) for file in alone if file.kind != "image"]
    faults = [
        f"{len(paths)} {what}, first {', '.join(paths[:3])}"
        for paths, what in ((bare, "images have no labels"), (lost, "labels have no image"))
        if paths
    ]
    if foreign := next(((path, tool) for path, tool in tools.items() if bare and tool != "COCO"), None):
        path, tool = foreign
        raise DataError(f"{folder}: {path} is a file of {tool}, which is not read; {'; '.join(faults)}", CONVERT)
    if faults:
        stems = {file.stem for file in alone}
        other = next((p for p in paths if p.stem in stems and p.suffix.lower() in OTHER_IMAGES + OTHER_VECTORS), None)
        if other:
            command = "gdal_translate" if other.suffix.lower() in OTHER_IMAGES else "ogr2ogr -t_srs EPSG:4326"
            out = other.with_suffix(".tif" if command == "gdal_translate" else ".geojson")
            remedy = f"convert it, unpacked, with GDAL: {command} {out} {other}"
            raise DataError(f"{folder}: {'; '.join(faults)}; the format of {other} is not read", remedy)
        raise DataError(f"{folder}: {'; '.join(faults)}", EXPECTED)
    for files in groups.values():
        image, labels = sorted(files, key=lambda file: file.kind != "image")
        yield image, labels


def _annotation_files(folder: Path, paths: Iterable[PurePosixPath]) -> dict[PurePosixPath, str]:
    """Returns the files of annotation tools, with the tool's name."""
    files = (path for path in paths if path.suffix.lower() in ANNOTATION_SUFFIXES and (folder / path).is_file())
    tools = {path: annotation_tool(folder / path) for path in files}
    return {path: tool for path, tool in tools.items() if tool}


def _add_annotations(folder: Path, path: PurePosixPath, where: str, groups: dict[tuple[str, ...], list[_File]]) -> None:
    """Adds the drawings of a COCO file to the groups of their images."""
    homes: dict[str, dict[PurePosixPath, list[_File]]] = {}
    for group in groups.values():
        for file in group:
            if file.kind == "image":
                homes.setdefault(normalize("NFC", file.path.name), {})[file.path] = group
    lost = []
    for name, drawing in read_coco(folder / path, where).items():
        near = homes.get(normalize("NFC", PurePosixPath(name.replace("\\", "/")).name), {})
        if image := image_named(name, near, path):
            near[image].append(_File(path, "annotations", (), "", drawing))
        else:
            lost.append(name)
    if lost:
        raise DataError(
            f"{folder / path}: {len(lost)} of its images are missing, first {lost[0]!a:.80}",
            "fetch them, or remove them from the file",
        )


def files_below(folder: Path) -> list[PurePosixPath]:
    """Returns the files below a folder, relative to it, hidden ones aside, sorted; linked folders are entered once.

    Raises:
        DataError: a folder cannot be read.
    """

    def refuse(cause: OSError) -> NoReturn:
        raise DataError(f"folder {cause.filename} cannot be read: {cause.strerror}", "may you read it?") from cause

    paths, entered = [], set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in entered else sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        if real not in entered:
            inside = PurePosixPath(Path(place).relative_to(folder).as_posix())
            paths += [inside / file for file in files if not file.startswith(".")]
        entered.add(real)
    return sorted(paths)


def _classify(folder: Path, path: PurePosixPath) -> _File | None:
    """Returns what a file is by its suffix, its folders' names and its stem; None: neither image nor labels."""
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES + VECTOR_SUFFIXES:
        return None
    try:
        str(path).encode()
    except UnicodeEncodeError as cause:
        raise DataError(f"the name {os.fsencode(path)!r} is not UTF-8", "rename it: convmv, or by hand") from cause
    if not (folder / path).is_file():
        raise DataError(
            f"{folder / path} is not a regular file", "expected no broken links, pipes or devices among images"
        )
    folders, kinds = [], []
    for name in path.parts[:-1]:
        words = re.split(r"([_-])", name)
        lower = {word.lower() for word in words}
        kinds += [kind for kind, known in (("image", IMAGE_WORDS), ("mask", LABEL_WORDS)) if known & lower]
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
    """Returns whether a JSON file is a GeoJSON: other JSON files lie beside images too."""
    with file.open("rb") as source:
        if b'"FeatureCollection"' in source.read(SNIFFED_BYTES):
            return True
        source.seek(max(0, file.stat().st_size - SNIFFED_BYTES))
        return b'"FeatureCollection"' in source.read(SNIFFED_BYTES)
