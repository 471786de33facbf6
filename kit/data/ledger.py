"""What has been cut of each scene, kept beside the tiles: a stopped command goes on, a changed input is cut again."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kit.data.cutting import Cut, Failed
from kit.data.tiles import Skipped, Tile, put

Json = dict[str, Any]


@dataclass
class Record:
    """One scene of a data set.

    Args:
        area: of the scene.
        scene: its id.
        key: of its inputs and of how it is cut.
        cut: what came of its tiles.
        counts: footprints `used`, `repaired`, `dropped`, `beyond` (off the scene) and `crossing` (its edge).
        done: whether all tiles have been tried.
    """

    area: str
    scene: str
    key: str
    cut: Cut = field(default_factory=Cut)
    counts: dict[str, int] = field(default_factory=dict)
    done: bool = False

    @property
    def name(self) -> str:
        """Area and scene."""
        return f"{self.area}/{self.scene}"


def key_of(*parts: object) -> str:
    """Returns a short text that differs where one of the parts does."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


class Ledger:
    """The records of a data set, a JSON file each.

    Args:
        folder: of the data set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _file(self, area: str, scene: str) -> Path:
        return self.folder / "scenes" / area / f"{scene}.json"

    def known(self) -> list[tuple[str, str]]:
        """Returns area and scene of all records, sorted."""
        return sorted((file.parent.name, file.stem) for file in (self.folder / "scenes").glob("*/*.json"))

    def read(self, area: str, scene: str) -> Record | None:
        """Returns a scene's record, or None where there is none that can be read."""
        try:
            content = json.loads(self._file(area, scene).read_text())
            cut = Cut(
                *([kind(**row) for row in content["cut"][part.name]]
                  for part, kind in zip(fields(Cut), (Tile, Skipped, Failed), strict=True))
            )  # fmt: skip
            return Record(**{**content, "cut": cut})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin(self, area: str, scene: str, key: str) -> Record | None:
        """Returns a scene's record if it is done with these inputs; else makes room for its tiles.

        Tiles cut with the same inputs are kept, all others removed. Tiles that failed are tried again.
        """
        record = self.read(area, scene)
        if record is not None and record.key == key and record.done and not record.cut.failed:
            return record
        if record is None or record.key != key:
            self.remove(area, scene)
        for part in ("images", "masks"):
            folder = self.folder / part / area / scene
            folder.mkdir(parents=True, exist_ok=True)
            for unfinished in folder.glob(".*.part"):
                unfinished.unlink()
        self.write(Record(area, scene, key))
        return None

    def write(self, record: Record) -> None:
        """Keeps a record."""
        file = self._file(record.area, record.scene)
        file.parent.mkdir(parents=True, exist_ok=True)
        put(file, (json.dumps(asdict(record), indent=1) + "\n").encode())

    def remove(self, area: str, scene: str) -> None:
        """Removes a scene's record, tiles and contact sheet."""
        for part in ("images", "masks"):
            shutil.rmtree(self.folder / part / area / scene, ignore_errors=True)
        (self.folder / "sheets" / area / f"{scene}.png").unlink(missing_ok=True)
        self._file(area, scene).unlink(missing_ok=True)
