"""What `kit prepare` tells at its end: a row a scene."""

import json
from collections import Counter

from kit.console import result, say, table
from kit.data.ledger import Json, Record
from kit.data.prepare import Prepared

COLUMNS = (
    *("scene", "tiles", "skipped", "why", "failed", "km2", "footprints", "crossing", "beyond", "repaired", "dropped"),
    *("buildings", "fold"),
)


def summary(made: Prepared) -> list[Json]:
    """Returns a row a scene.

    Keys: `area scene tiles skipped` (a count by reason) `failed km2` (of imagery; what tiles share counts for each),
    `footprints` (on the scene), `crossing` (of these, its edge), `beyond` (it), `repaired dropped`,
    `building_fraction` (of the imagery), `folds`.
    """
    return [_row(record, made) for record in made.scenes]


def _row(record: Record, made: Prepared) -> Json:
    index = made.index[(made.index["area"] == record.area) & (made.index["scene"] == record.scene)]
    m2 = index["valid_fraction"] * index["width_px"] * index["height_px"] * index["gsd_m"] ** 2
    counts = record.counts
    return {
        "area": record.area,
        "scene": record.scene,
        "tiles": len(index),
        "skipped": dict(Counter(tile.reason for tile in record.cut.skipped)),
        "failed": len(record.cut.failed),
        "km2": round(float(m2.sum()) / 1e6, 4),
        "footprints": counts.get("used", 0),
        **{name: counts.get(name, 0) for name in ("crossing", "beyond", "repaired", "dropped")},
        "building_fraction": round(float((m2 * index["building_fraction"]).sum() / max(m2.sum(), 1e-9)), 4),
        "folds": sorted({int(fold) for fold in index["fold"]}),
    }


def show_prepared(made: Prepared, as_json: bool) -> None:
    """Prints a table of the scenes, or JSON, and tells what else there is to know."""
    if made.kept:
        say(f"{made.kept} of {len(made.scenes)} scenes were cut before, and are as they were")
    if made.notice:
        say(f"folds: {made.notice}")
    rows = summary(made)
    if as_json:
        result(json.dumps(rows, indent=2))
        return
    cells = [
        (
            f"{row['area']}/{row['scene']}", row["tiles"], sum(row["skipped"].values()), "; ".join(row["skipped"]),
            row["failed"], f"{row['km2']:.3f}", row["footprints"], row["crossing"], row["beyond"], row["repaired"],
            row["dropped"], f"{row['building_fraction']:.1%}", ",".join(map(str, row["folds"])),
        )
        for row in rows
    ]  # fmt: skip
    table(COLUMNS, cells)
