"""Joins what was found in each scene into tables and GeoJSON for the whole data set, one scene in memory at a time."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from kit.audit.buildings import Outlines
from kit.audit.tile_scores import Agreement, score_tiles
from kit.data.audits import (
    BLOCKS,
    BUILDINGS,
    TILES,
    BlockShift,
    BuildingFinding,
    TileFinding,
    moved_outlines,
    read_buildings,
)
from kit.deploy.mapping.longitudes import cut_at_180, needs_cut
from kit.deploy.mapping.polygons import DECIMALS
from kit.deploy.mapping.scene import DEGREES
from kit.system.files import read_json, replacing

__all__ = ["Counted", "SceneRecord", "in_other_crs", "worst_first", "write_tables"]

GEOJSONS: dict[str, Callable[[BuildingFinding], bool]] = {
    "missing.geojson": lambda row: row.verdict == "add",
    "invented.geojson": lambda row: row.verdict == "drop",
    "shifted.geojson": lambda row: row.verdict == "shift",
}


@dataclass(frozen=True)
class SceneRecord:
    """What an audit found in a scene; its buildings lie in the GeoPackage of the same name."""

    key: str  # of the labels, the weights and the options
    tiles: list[Agreement]
    blocks: list[BlockShift] = field(default_factory=list)  # none of ready-made masks


@dataclass
class Counted:
    """How many blocks, buildings and tiles got which verdict."""

    blocks: Counter[str] = field(default_factory=Counter)  # `trusted`, and reasons why not
    buildings: Counter[str] = field(default_factory=Counter)
    tiles: Counter[str] = field(default_factory=Counter)


class _GeoJson:
    """GeoJSON as in RFC 7946: longitude and latitude, one feature per line."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.between = file, "\n"
        file.write('{"type": "FeatureCollection", "features": [')

    def put(self, rows: Iterable[BuildingFinding], degrees: Outlines) -> None:
        for row, outline in zip(rows, degrees, strict=True):
            values = asdict(row)
            geometry = shapely.to_geojson(outline)
            self.file.write(
                f'{self.between}{{"type": "Feature", "properties": {json.dumps(values)}, "geometry": {geometry}}}'
            )
            self.between = ",\n"

    def end(self) -> None:
        self.file.write("\n]}\n")


def write_tables(folder: Path, records: Iterable[Path], calibration: list[float]) -> tuple[Counted, list[TileFinding]]:
    """Writes the tables and GeoJSONs of an audit, and returns the counts and the findings of all tiles.

    Ready-made masks add rows to `tiles.csv` alone.

    Args:
        folder: of the audit.
        records: files of the scenes' records.
        calibration: see `score_tiles`.

    Raises:
        OutputError: the disk is full.
    """
    counted, tiles = Counted(), []
    with ExitStack() as stack:
        writers = {
            name: _table(stack, folder / name, kind)
            for name, kind in ((BLOCKS, BlockShift), (BUILDINGS, BuildingFinding), (TILES, TileFinding))
        }
        layers = {name: _GeoJson(_open(stack, folder / name)) for name in GEOJSONS}
        for file in records:
            record = read_json(file, SceneRecord)
            for block in record.blocks:
                writers[BLOCKS].writerow(astuple(block))
                counted.blocks["trusted" if block.trusted else block.reason.partition(":")[0]] += 1
            for tile in score_tiles(record.tiles, calibration):
                writers[TILES].writerow(astuple(tile))
                counted.tiles[tile.verdict] += 1
                tiles.append(tile)
            if (buildings := file.with_suffix(".gpkg")).is_file():
                rows, outlines, crs = read_buildings(buildings)
                writers[BUILDINGS].writerows(map(astuple, rows))
                counted.buildings.update(row.verdict for row in rows)
                for name, belongs in GEOJSONS.items():
                    chosen = np.array([belongs(row) for row in rows], bool)
                    some = [row for row in rows if belongs(row)]
                    layers[name].put(some, in_degrees_of(moved_outlines(some, outlines[chosen], crs), crs))
        for layer in layers.values():
            layer.end()
    return counted, tiles


def in_other_crs(outlines: Outlines, crs: str, other: str) -> Outlines:
    """Returns outlines of one CRS in another."""
    change = pyproj.Transformer.from_crs(crs, other, always_xy=True)
    placed: Outlines = shapely.transform(outlines, change.transform, interleaved=False)
    return placed


def in_degrees_of(outlines: Outlines, crs: str) -> Outlines:
    """Returns outlines in longitude and latitude, cut at 180 degrees and oriented as RFC 7946 asks."""
    degrees = in_other_crs(outlines, crs, DEGREES)
    for place in np.flatnonzero(needs_cut(degrees)):
        degrees[place] = cut_at_180(degrees[place])
    rounded = shapely.transform(degrees, lambda points: np.round(points, DECIMALS))
    tidy: NDArray[np.object_] = shapely.orient_polygons(rounded, exterior_cw=False)
    return tidy


def _open(stack: ExitStack, file: Path) -> IO[str]:
    return stack.enter_context(stack.enter_context(replacing(file)).open("w", newline=""))


def _table(stack: ExitStack, file: Path, kind: type[Any]) -> Any:
    writer = csv.writer(_open(stack, file), lineterminator="\n")
    writer.writerow(each.name for each in fields(kind))
    return writer


def worst_first(tiles: list[TileFinding], most: int) -> Iterator[TileFinding]:
    """Yields the tiles with the lowest scores that do not train as they are, at most so many."""
    bad = [tile for tile in tiles if tile.verdict != "train"]
    yield from sorted(bad, key=lambda tile: (tile.score, tile.jaccard, tile.tile))[:most]
