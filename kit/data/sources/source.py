"""What data are prepared from: a STAC catalogue, a folder, or a table of files."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pystac.utils import make_absolute_href

from kit.data.sources.folders import read_folder, search
from kit.data.sources.remote import is_remote, local_path, read_bytes, suffix_of
from kit.data.sources.stac import Pair, Scene, read_scenes
from kit.errors import DataError


@dataclass(frozen=True)
class Source:
    """Images with their labels, and the name of the data set to be made.

    Areas, scenes and names are parts of file names: letters, digits, `.`, `_` and `-`.

    Args:
        name: default name of the data set.
        scenes: images with footprints, sorted by area and scene.
        pairs: ready-made images with masks, sorted by area, scene and name.
    """

    name: str
    scenes: tuple[Scene, ...]
    pairs: tuple[Pair, ...]


def read_source(place: str | Path, pattern: str = "", tier: int = 0) -> Source:
    """Returns what `kit prepare` is to cut.

    Args:
        place: a STAC catalogue (a file, the folder that holds `catalog.json`, or an address); a folder of images with
            footprints or masks; or a CSV with the columns `image` and `labels` (several files divided by `;`) or
            `mask`, and where there is something to tell `area`, `scene`, `tier` and `name`.
        pattern: a regular expression with the groups `area` and `scene`, or one of them, that is searched in the path
            of each image of a folder or table, without its suffix.
        tier: of the labels; 0: as the table or the catalogue's id tells (`train_tier_2`), else 1.

    Raises:
        CatalogError: a catalogue is missing or incomplete.
        DataError: a folder or a table is empty or incomplete, or the pattern does not fit.
    """
    href = str(place)
    folder = local_path(href)
    if suffix_of(href) == ".csv":
        return _named(Path(href).stem, *_read_table(href, pattern, tier))
    if not is_remote(href) and folder.is_dir() and not (folder / "catalog.json").is_file():
        return _named(folder.resolve().name, *read_folder(folder, pattern, tier or 1))
    if pattern:
        raise DataError(f"catalogue {place} names its areas and scenes: no pattern applies", "leave the pattern out")
    name, scenes = read_scenes(place)
    return _named(name, [replace(scene, tier=tier or scene.tier) for scene in scenes], [])


def _named(name: str, scenes: Sequence[Scene], pairs: Sequence[Pair]) -> Source:
    """Returns a source whose areas, scenes and names can be parts of file names.

    Raises:
        DataError: two of them cannot be told apart.
    """
    places = [(scene.area, scene.scene) for scene in scenes]
    chips = [(pair.area, pair.scene, pair.name) for pair in pairs]
    folders = sorted({chip[:2] for chip in chips})
    for keys in (places, chips, folders, sorted({key[:1] for key in places + folders})):
        _refuse_equal(keys)
    tidy = [replace(scene, area=_plain(scene.area), scene=_plain(scene.scene)) for scene in scenes]
    chipped = [
        replace(pair, area=_plain(pair.area), scene=_plain(pair.scene), name=_plain(pair.name)) for pair in pairs
    ]
    return Source(
        _plain(name).strip("-.") or "data",
        tuple(sorted(tidy, key=lambda scene: (scene.area, scene.scene))),
        tuple(sorted(chipped, key=lambda pair: (pair.area, pair.scene, pair.name))),
    )


def _plain(text: str) -> str:
    return re.sub(r"^\.|[^A-Za-z0-9._-]", "-", text)  # a dot in front would hide the files


def _refuse_equal(keys: Sequence[tuple[str, ...]]) -> None:
    first: dict[tuple[str, ...], tuple[str, ...]] = {}
    equal = []
    for key in keys:
        plain = tuple(_plain(part) for part in key)
        if plain in first:
            equal.append(" and ".join(dict.fromkeys(("/".join(first[plain]), "/".join(key)))))
        first.setdefault(plain, key)
    if equal:
        raise DataError(
            f"{len(equal)} of {len(keys)} names stand for two, first {', '.join(equal[:3])}",
            "give each another area, scene or name, of letters, digits, `.`, `_` and `-`: others become `-`",
        )


def _read_table(table: str, pattern: str, tier: int) -> tuple[list[Scene], list[Pair]]:
    """Returns the scenes and pairs of a CSV's rows.

    Raises:
        DataError: a column is missing, a row is incomplete, or a file does not exist.
    """
    rows = _rows(table)
    scenes: list[Scene] = []
    pairs: list[Pair] = []
    for row in rows:
        image = _beside(table, row["image"])
        stem = Path(image).stem
        found = search(pattern, str(PurePosixPath(row["image"]).with_suffix("")))
        area = row.get("area") or found.get("area", Path(table).stem)
        labelled = tier or int(row.get("tier") or 1)
        if row.get("labels"):
            scene = row.get("scene") or found.get("scene", stem)
            labels = tuple(_beside(table, part.strip()) for part in row["labels"].split(";") if part.strip())
            scenes.append(Scene(area, scene, labelled, image, labels))
        else:
            scene = row.get("scene") or found.get("scene", Path(table).stem)
            pairs.append(Pair(area, scene, labelled, row.get("name") or stem, image, _beside(table, row["mask"])))
    files = [file for scene in scenes for file in (scene.image, *scene.labels)]
    files += [file for pair in pairs for file in (pair.image, pair.mask)]
    lost = [file for file in files if not is_remote(file) and not Path(file).is_file()]
    _refuse(table, f"of {len(files)} files do not exist", lost, "paths are relative to the table's folder")
    return scenes, pairs


def _rows(table: str) -> list[dict[str, str]]:
    """Returns the rows of a CSV, each with an image and either labels or a mask.

    Raises:
        DataError: there are none, or some are not.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_bytes(table).decode("utf-8-sig"), newline=""))
        columns = [(name or "").strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = [(reader.line_num, {name: (row.get(name) or "").strip() for name in columns}) for row in reader]
    except (UnicodeDecodeError, csv.Error) as cause:
        raise DataError(f"{table} is no CSV: {cause}", "save it as comma-separated text in UTF-8") from cause
    if "image" not in columns or not {"labels", "mask"} & set(columns):
        raise DataError(
            f"{table} has the columns {', '.join(columns) or '(none)'}",
            "expected image and labels, or image and mask; where known also area, scene, tier and name",
        )
    if not rows:
        raise DataError(f"{table} has no rows", "expected one a scene or chip")
    half = [f"line {n}" for n, row in rows if not row["image"] or bool(row.get("labels")) == bool(row.get("mask"))]
    _refuse(table, f"of {len(rows)} rows are incomplete", half, "each needs an image, and either labels or a mask")
    odd = [f"line {n}: {row['tier']}" for n, row in rows if not re.fullmatch("[1-9]?", row.get("tier", ""))]
    _refuse(table, f"of {len(rows)} rows have an unknown tier", odd, "expected 1 for careful labels, 2 for dirty ones")
    return [row for _, row in rows]


def _refuse(table: str, what: str, found: Sequence[str], hint: str) -> None:
    if found:
        raise DataError(f"{table}: {len(found)} {what}, first {', '.join(found[:3])}", hint)


def _beside(table: str, href: str) -> str:
    """Returns where a table's file is: relative to the table, unless it says otherwise."""
    if is_remote(href):
        return href
    return make_absolute_href(href, table) if is_remote(table) else str(local_path(table).parent / local_path(href))
