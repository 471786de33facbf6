"""Printed results that are more than a table: the scenes of `kit prepare`."""

import json
from collections import Counter
from typing import Any

from kit.console import result, say, table
from kit.data.folds.assign import fold_numbers
from kit.data.tiles.ledger import Record
from kit.data.tiles.prepare import Prepared
from kit.measures.object_counts import ObjectCounts

Json = dict[str, Any]

OBJECTS = (
    *("objects", "true", "predicted", "precision", "recall", "F1", "F1 50:95", "PQ", "boundary", "count"),
    *("merges", "splits"),
)

COLUMNS = (
    *("scene", "tiles", "skipped", "failed", "km2", "footprints", "crossing", "beyond", "repaired", "dropped"),
    *("buildings", "fold", "why"),
)
ADDED = ("tiles", "failed", "km2", "footprints", "crossing", "beyond", "repaired", "dropped")  # summed over the scenes


def summary(prepared: Prepared) -> list[Json]:
    """Returns a row per scene.

    Keys: `area scene tiles skipped` (a count by reason) `failed`, `km2` (of imagery; overlaps count for each
    tile), `footprints` (on the scene), `crossing` (those that cross its edge), `beyond` (outside), `repaired`,
    `dropped`, `building_fraction` (of the imagery), `folds`.
    """
    return [_row(record, prepared) for record in prepared.scenes]


def _row(record: Record, prepared: Prepared) -> Json:
    index = prepared.index[(prepared.index["area"] == record.area) & (prepared.index["scene"] == record.scene)]
    px = index["valid_fraction"] * index["width_px"] * index["height_px"]
    counts = record.counts
    return {
        "area": record.area,
        "scene": record.scene,
        "tiles": len(index),
        "skipped": dict(Counter(tile.reason for tile in record.cut.skipped)),
        "failed": len(record.cut.failed),
        "km2": round(float((px * index["gsd_m"] ** 2).sum()) / 1e6, 4),
        "footprints": counts.get("used", 0),
        **{name: counts.get(name, 0) for name in ("crossing", "beyond", "repaired", "dropped")},
        "building_fraction": round(float((px * index["building_fraction"]).sum() / max(px.sum(), 1)), 4),
        "folds": fold_numbers(index),
    }


def show_prepared(prepared: Prepared, as_json: bool) -> None:
    """Prints a table of the scenes, or JSON; notices go to stderr."""
    if prepared.kept:
        say(f"{prepared.kept} of {len(prepared.scenes)} scenes were cut before and are unchanged")
    for notice in prepared.notices:
        say(notice)
    if prepared.notice:
        say(f"folds: {prepared.notice}")
    rows = summary(prepared)
    if as_json:
        result(json.dumps(rows, indent=2))
        return
    table(COLUMNS, [_cells(row) for row in [*rows, *_total(rows)]], spare=COLUMNS)


def _total(rows: list[Json]) -> list[Json]:
    """Returns the row of all scenes together, if there are several."""
    if len(rows) < 2:
        return []
    skipped: Counter[str] = Counter()
    for row in rows:
        skipped.update(row["skipped"])
    km2 = sum(row["km2"] for row in rows)
    built = sum(row["km2"] * row["building_fraction"] for row in rows) / km2 if km2 else None
    added = {name: sum(row[name] for row in rows) for name in ADDED}
    folds = sorted({fold for row in rows for fold in row["folds"]})
    return [{"area": "all", "scene": "", "skipped": skipped, "building_fraction": built, "folds": folds, **added}]


def _cells(row: Json) -> tuple[object, ...]:
    """Returns the cells of a row, by `COLUMNS`."""
    share = row["building_fraction"]
    return (
        f"{row['area']}/{row['scene']}".rstrip("/"), row["tiles"], sum(row["skipped"].values()), row["failed"],
        f"{row['km2']:.3f}", *(row[name] for name in ADDED[3:]), "" if share is None else f"{share:.1%}",
        ",".join(map(str, row["folds"])), "; ".join(f"{n} {why}" for why, n in row["skipped"].items()),
    )  # fmt: skip


def show_objects(rows: dict[str, ObjectCounts]) -> None:
    """Prints a table of object measures, a line by scene; docs/scores.md explains its columns."""
    table(OBJECTS, [_object_cells(name, counts) for name, counts in rows.items()])


def _object_cells(name: str, counts: ObjectCounts) -> tuple[object, ...]:
    return (
        name, counts.true, counts.predicted, counts.precision, counts.recall, counts.f1, counts.f1_mean,
        counts.panoptic_quality, "" if counts.boundary_iou is None else counts.boundary_iou,
        "" if counts.count_error is None else f"{counts.count_error:+.1%}", counts.merges, counts.splits,
    )  # fmt: skip
