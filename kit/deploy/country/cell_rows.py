"""The buildings of one cell, in memory and as the cell's GeoParquet file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from kit.deploy.mapping.layers import GeoParquet
from kit.errors import KitError
from kit.system.files import replacing

CRS = "OGC:CRS84"  # longitude and latitude, in this order
ROWS = 65_536  # of a row group of the merged layer
INSIDE, SEAM_OWN, SEAM_OTHER = 0, 1, 2  # away from meridians between zones; near one: its zone's own, the other zone's


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


def write_rows(path: Path, rows: Iterable[CellRows], with_seam: bool) -> tuple[int, float]:
    """Writes rows as GeoParquet, one row group for each part; returns their number and area, m2.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    count, area_m2 = 0, 0.0
    with replacing(path) as temporary:
        file = GeoParquet(*(["seam"] if with_seam else []))
        file.begin(temporary, CRS, {})
        for part in rows:
            more = [part.seam] if with_seam else []
            file.put(part.polygons, np.array(part.ids, object), part.area_m2, part.confidence, *more)
            count, area_m2 = count + len(part), area_m2 + float(part.area_m2.sum())
        file.end()
    return count, area_m2


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
