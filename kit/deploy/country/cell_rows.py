"""The buildings of one cell, in memory and as the cell's GeoParquet file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from kit.errors import KitError
from kit.system.files import replacing

COMPRESSION = "zstd"
ROWS = 65_536  # of a row group of the merged layer
INSIDE, SEAM_OWN, SEAM_OTHER = 0, 1, 2  # away from meridians between zones; near one: its zone's own, the other zone's
COVERING = {"bbox": {end: ["bbox", end] for end in ("xmin", "ymin", "xmax", "ymax")}}


@dataclass(frozen=True)
class CellRows:
    """Buildings, one per row."""

    ids: list[str]
    polygons: NDArray[np.object_]  # in degrees, (n,)
    area_m2: NDArray[np.float64]  # on the ground, (n,)
    confidence: NDArray[np.float64]  # mean probability over the building's pixels, 0..1, (n,)
    seam: NDArray[np.int8]  # `INSIDE`, `SEAM_OWN` or `SEAM_OTHER`, (n,)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64]) -> "CellRows":
        """Returns some rows, in the given order."""
        return CellRows(
            [self.ids[row] for row in rows], self.polygons[rows], self.area_m2[rows], self.confidence[rows],
            self.seam[rows],
        )  # fmt: skip


def joined(parts: Sequence[CellRows]) -> CellRows:
    """Returns the rows of several cells, one after the other."""
    if not parts:
        nothing = np.array([])
        return CellRows([], np.array([], dtype=object), nothing, nothing, nothing.astype(np.int8))
    return CellRows(
        [identity for part in parts for identity in part.ids],
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("polygons", "area_m2", "confidence", "seam")
        ),
    )


def as_table(rows: CellRows, with_seam: bool) -> pa.Table:
    """Returns rows as a table with geometry as WKB and the bounds as `bbox`."""
    bounds = shapely.bounds(rows.polygons).astype(np.float64).reshape(-1, 4)
    ends = ("xmin", "ymin", "xmax", "ymax")
    bbox = pa.StructArray.from_arrays([pa.array(column) for column in bounds.T], ends)
    columns = {
        "id": pa.array(rows.ids, pa.string()),
        "area_m2": pa.array(rows.area_m2, pa.float64()),
        "confidence": pa.array(rows.confidence, pa.float64()),
        "bbox": bbox,
        "geometry": pa.array(shapely.to_wkb(rows.polygons).tolist(), pa.binary()),
    }
    return pa.table(columns | ({"seam": pa.array(rows.seam, pa.int8())} if with_seam else {}))


def geo(kinds: Sequence[str], bounds: Sequence[float]) -> bytes:
    """Returns the metadata `geo` of a GeoParquet 1.1 file."""
    column = {
        "encoding": "WKB", "geometry_types": sorted(kinds), "orientation": "counterclockwise", "covering": COVERING,
        **({"bbox": [float(end) for end in bounds]} if len(bounds) else {}),
    }  # fmt: skip
    return json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}).encode()


def write_cell(path: Path, rows: CellRows) -> None:
    """Writes the buildings of a cell.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    kinds = sorted({polygon.geom_type for polygon in rows.polygons})
    table = as_table(rows, with_seam=True)
    bounds = shapely.total_bounds(rows.polygons).tolist() if len(rows) else []
    table = table.replace_schema_metadata({b"geo": geo(kinds, bounds)})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression=COMPRESSION)


def read_cell(path: Path) -> CellRows:
    """Returns the buildings of a cell.

    Raises:
        KitError: the file is missing or damaged.
    """
    try:
        table = pq.read_table(path)
        return CellRows(
            table["id"].to_pylist(),
            shapely.from_wkb(table["geometry"].to_numpy()),
            *(table[name].to_numpy() for name in ("area_m2", "confidence", "seam")),
        )
    except (OSError, pa.ArrowException, KeyError) as cause:
        raise KitError(f"{path} is damaged: {cause}", "remove it and rerun: the cell is mapped again") from cause
