"""CSV tables of images with labels."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from kit.data.sources.folders import search
from kit.data.sources.inputs import Pair, Scene
from kit.data.sources.remote import is_remote, local_path, read_bytes, resolve
from kit.errors import DataError


def read_table(table: str, pattern: str, tier: int | None) -> tuple[list[Scene], list[Pair]]:
    """Returns the scenes (rows with labels) and pairs (rows with a mask) of a table.

    Args:
        table: path or address of the CSV; the paths in it are relative to its folder.
        pattern: see `kit.data.sources.source.read_source`.
        tier: of all rows; None: as the column `tier` says, else 1.

    Raises:
        DataError: a column is missing, a row is incomplete, or a file does not exist.
    """
    scenes: list[Scene] = []
    pairs: list[Pair] = []
    for row in _rows(table):
        image = _beside(table, row["image"])
        stem = Path(image).stem
        names = search(pattern, str(PurePosixPath(row["image"]).with_suffix("")))
        area = row.get("area") or names.get("area", Path(table).stem)
        row_tier = tier or int(row.get("tier") or 1)
        if row.get("labels"):
            scene = row.get("scene") or names.get("scene", stem)
            labels = tuple(_beside(table, part.strip()) for part in row["labels"].split(";") if part.strip())
            scenes.append(Scene(area, scene, row_tier, image, labels))
        else:
            scene = row.get("scene") or names.get("scene", Path(table).stem)
            pairs.append(Pair(area, scene, row_tier, row.get("name") or stem, image, _beside(table, row["mask"])))
    files = [file for scene in scenes for file in (scene.image, *scene.labels)]
    files += [file for pair in pairs for file in (pair.image, pair.mask)]
    lost = [file for file in files if not is_remote(file) and not Path(file).is_file()]
    _refuse(table, f"of {len(files)} files do not exist", lost, "paths are relative to the table's folder")
    return scenes, pairs


def _rows(table: str) -> list[dict[str, str]]:
    """Returns the rows of a CSV, each with an image and either labels or a mask."""
    try:
        text = read_bytes(table).decode("utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)  # as spreadsheets of the user's language write
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        columns = [(name or "").strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = [(reader.line_num, {name: (row.get(name) or "").strip() for name in columns}) for row in reader]
        rows = [(line, row) for line, row in rows if any(row.values())]
    except (UnicodeDecodeError, csv.Error) as cause:
        raise DataError(f"{table} is not a CSV: {cause}", "save it as comma-separated text in UTF-8") from cause
    if "image" not in columns or not {"labels", "mask"} & set(columns):
        raise DataError(
            f"{table} has the columns {', '.join(columns) or '(none)'}",
            "expected image and labels, or image and mask; where known also area, scene, tier and name",
        )
    if len(set(columns)) < len(columns):
        raise DataError(f"{table} has two columns of one name: {', '.join(columns)}", "remove one of them")
    if not rows:
        raise DataError(f"{table} has no rows", "expected one per scene or chip")
    half = [f"line {n}" for n, row in rows if not row["image"] or bool(row.get("labels")) == bool(row.get("mask"))]
    _refuse(table, f"of {len(rows)} rows are incomplete", half, "each needs an image, and either labels or a mask")
    odd = [f"line {n}: {row['tier']}" for n, row in rows if not re.fullmatch("[1-9]?", row.get("tier", ""))]
    _refuse(table, f"of {len(rows)} rows have an unknown tier", odd, "expected 1 for careful labels, 2 for dirty ones")
    json = [f"line {n}" for n, row in rows if row.get("mask", "").lower().endswith(".json")]
    _refuse(table, "masks are .json files", json, "of annotations give the folder: kit prepare FOLDER reads COCO files")
    return [row for _, row in rows]


def _refuse(table: str, what: str, faults: Sequence[str], hint: str) -> None:
    if faults:
        raise DataError(f"{table}: {len(faults)} {what}, first {', '.join(faults[:3])}", hint)


def _beside(table: str, href: str) -> str:
    """Returns the path or address of a file that a table names."""
    place = resolve(href, table)
    return place if is_remote(place) else str(local_path(place))
