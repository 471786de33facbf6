"""The plan of a map of many scenes: scenes, cells and options, as a file that every part reads."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import shapely

from kit.deploy.country.cell_map import CellTask
from kit.deploy.country.cells import MOST_GROWN, Cell, Lattice, SceneTree
from kit.deploy.country.collection import PlacedScene, Refused
from kit.deploy.country.ownership import CellOptions
from kit.deploy.country.records import FAILED, CellFiles, CellRecord, inputs_of
from kit.deploy.engine.backends import Engine
from kit.errors import KitError, OutputError
from kit.outputs import check_unclaimed
from kit.system.files import read_json, write_bytes

PLAN = "plan.json"
CELLS = "cells"  # folder of the cells' files
MAKE = "make it first: kit map COLLECTION --plan, with the same options"


@dataclass(frozen=True)
class CountryPlan:
    """What is to be mapped, and how."""

    kit: str  # version that made the plan
    name: str  # of the map's files
    weights: str  # SHA-256 of the weights file
    engine: Engine  # what computes the networks
    lattice: Lattice
    options: CellOptions
    scenes: tuple[PlacedScene, ...]  # the preferred ones first
    refused: tuple[Refused, ...] = ()

    @property
    def key(self) -> str:
        """All that cells depend on, scenes aside, as JSON."""
        content = {
            "weights": self.weights, "engine": self.engine, "lattice": asdict(self.lattice),
            "options": asdict(self.options),
        }  # fmt: skip
        return json.dumps(content, sort_keys=True)


class CountryFiles:
    """The folder of a map of many scenes.

    Args:
        folder: of its files.
        name: that the merged files begin with.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.plan, self.cells, self.parts = folder / PLAN, folder / CELLS, folder / "parts"
        self.buildings, self.tiles = folder / f"{name}.parquet", folder / f"{name}.pmtiles"
        self.coverage, self.item, self.collection = (
            folder / f"{name}_coverage.geojson", folder / f"{name}.json", folder / "collection.json",
        )  # fmt: skip

    def check(self) -> None:
        """Checks that the folder is empty, or holds a plan.

        Raises:
            OutputError: it holds other files.
        """
        if not self.plan.is_file():
            check_unclaimed(self.folder, "kit map", "--name or --out")

    def write(self, plan: CountryPlan) -> None:
        """Writes the plan, one scene per line."""
        content = asdict(plan)
        scenes = ",\n".join(json.dumps(scene) for scene in content.pop("scenes"))
        head = json.dumps(content, indent=1).removesuffix("\n}")
        write_bytes(self.plan, f'{head},\n "scenes": [\n{scenes}\n ]\n}}\n'.encode())

    def read(self) -> CountryPlan | None:
        """Returns the plan; None where there is none.

        Raises:
            OutputError: the file is damaged.
        """
        if not self.plan.is_file():
            return None
        return read_json(self.plan, CountryPlan, error=OutputError, hint="remove it, and make the plan again: --plan")


def check_same(plan: CountryPlan | None, other: CountryPlan, folder: Path) -> CountryPlan:
    """Returns the plan of a folder if its options and weights are those of the command.

    Args:
        plan: of the folder; None where there is none.
        other: of the command; its scenes do not count.
        folder: of the map.

    Raises:
        KitError: there is no plan, or it was made with other weights, options or another kit.
    """
    if plan is None:
        raise KitError(f"no plan in {folder}", MAKE)
    ours, theirs = (_flat(asdict(one)) for one in (other, plan))
    differing = [key for key in ours if key not in ("scenes", "refused", "name") and ours[key] != theirs.get(key)]
    if differing:
        key = differing[0]
        raise KitError(
            f"the plan in {folder} was made with other options: {key} is {theirs.get(key)} there, here {ours[key]}"
            f"{f', and {len(differing) - 1} more' if len(differing) > 1 else ''}",
            "give the options of the plan, or " + MAKE,
        )
    return plan


def _flat(content: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat


class CellStates:
    """The cells of a plan, and which of them are to be mapped.

    Args:
        plan: of the map.
        files: of the map.
    """

    def __init__(self, plan: CountryPlan, files: CountryFiles) -> None:
        self.plan, self.files = plan, files
        self.tree = SceneTree(plan.scenes)
        self.cells = self.tree.cells(plan.lattice)

    def record(self, cell: Cell) -> CellRecord | None:
        """Returns a cell's record; None where the cell is to be mapped, for the first time or again."""
        record = CellFiles(self.files.cells, cell).read()
        if record is None or record.status == FAILED:
            return record
        scenes = self.tree.near(self.plan.lattice, cell, record.grown)
        same = record.inputs == inputs_of({"options": self.plan.key}, cell, record.grown, scenes)
        return record if same else None

    def part(self, index: int, count: int) -> list[Cell]:
        """Returns the cells of one of `count` parts; the first is 1."""
        return self.cells[index - 1 :: count]

    def tasks(self, cells: Sequence[Cell], weights: Path, device: str) -> Iterator[CellTask]:
        """Yields a task for each cell that is not mapped yet, or failed."""
        for cell in cells:
            record = self.record(cell)
            if record is None or record.status == FAILED:
                scenes = tuple(self.tree.near(self.plan.lattice, cell, MOST_GROWN))
                yield CellTask(
                    cell, self.plan.lattice, scenes, self.plan.options, self.plan.key, str(weights),
                    self.plan.weights, str(self.files.cells), device, self.plan.engine,
                )  # fmt: skip

    def windows(self, cells: Sequence[Cell]) -> int:
        """Returns about how many windows cells need; one that two scenes see counts twice if both are used."""
        lattice, total = self.plan.lattice, 0.0
        reach = lattice.step_px * lattice.gsd_m
        for cell in cells:
            box = shapely.box(*lattice.box(lattice.read(cell)))
            _, tree = self.tree.outlines[cell.zone]
            seen = [tree.geometries[at] for at in tree.query(box, predicate="intersects")]
            if self.plan.options.alone:
                seen = [shapely.union_all(seen)]
            total += sum(shapely.area(shapely.intersection(box, shapely.buffer(part, reach / 2))) for part in seen)
        return math.ceil(total / reach**2)
