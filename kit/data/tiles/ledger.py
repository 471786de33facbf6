"""The ledger: what was cut of each scene, so that `kit prepare` resumes and notices changed inputs."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kit.console import say
from kit.data.instances import IDS, MASKS
from kit.data.tiles.cutting import Cut
from kit.errors import DataError
from kit.outputs import check_unclaimed
from kit.system.files import read_json, remove_leftovers, write_bytes

LIMIT_BYTES = 2**30  # of a record: a million tiles


@dataclass
class Record:
    """One scene of a data set."""

    area: str  # of the scene
    scene: str  # its id
    key: str  # of its inputs and of how it is cut
    cut: Cut = field(default_factory=Cut)  # what came of its tiles
    # footprints `used`, `repaired`, `dropped`, `beyond` (off the scene) and `crossing` (its edge)
    counts: dict[str, int] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)  # what the user should know of its labels
    done: bool = False  # whether all tiles have been tried
    image: str = ""  # path (absolute) or address of the scene; empty for ready-made masks, and in older records
    labels: list[str] = field(default_factory=list)  # of its footprint files, likewise
    where: str = ""  # SQL condition that chooses features of the labels; empty: all

    @property
    def name(self) -> str:
        """Area and scene."""
        return f"{self.area}/{self.scene}"


def key_of(*parts: object) -> str:
    """Returns a short text that differs where one of the parts does."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


class Ledger:
    """The records of a data set, a JSON file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _file(self, area: str, scene: str) -> Path:
        return self.folder / "scenes" / area / f"{scene}.json"

    def known(self) -> list[tuple[str, str]]:
        """Returns area and scene of all records, sorted."""
        return sorted((file.parent.name, file.stem) for file in (self.folder / "scenes").glob("*/*.json"))

    def check_owned(self) -> None:
        """Checks that the folder is a data set of kit's, or missing or empty.

        Raises:
            OutputError: it holds files, and no record that can be read.
        """
        if not any(self.read(*names) for names in self.known()):
            check_unclaimed(self.folder, "kit prepare", "--name or --root")

    def read(self, area: str, scene: str) -> Record | None:
        """Returns a scene's record, or None where it is missing or damaged."""
        try:
            return self._read(area, scene)
        except DataError:
            return None

    def _read(self, area: str, scene: str) -> Record:
        return read_json(self._file(area, scene), Record, LIMIT_BYTES, DataError)

    def done(self, area: str, scene: str, key: str) -> bool:
        """Returns whether all of a scene's tiles are cut, with these inputs, and none has failed.

        A damaged record is reported: its scene is cut again.
        """
        if not self._file(area, scene).exists():
            return False
        try:
            record = self._read(area, scene)
        except DataError as error:
            say(f"{error.message}: {area}/{scene} is cut again")
            return False
        return record.key == key and record.done and not record.cut.failed

    def begin(self, area: str, scene: str, key: str) -> None:
        """Makes room for a scene's tiles: those cut with the same inputs stay, all others are removed.

        Raises:
            OutputError: files lie where the tiles belong, and no record says that kit wrote them.
        """
        record = self.read(area, scene)
        if not self._file(area, scene).exists():
            for folder in self._folders(area, scene):
                check_unclaimed(folder, "kit prepare", "--name")
        if record is None or record.key != key:
            self.remove(area, scene)
        self._sheet(area, scene).unlink(missing_ok=True)  # it may show a part of the tiles
        for folder in (*self._folders(area, scene), self.folder):
            remove_leftovers(folder)
        for file in (self._file(area, scene), self._sheet(area, scene)):  # other parts write beside them
            remove_leftovers(file.parent, file.stem)
        self.write(Record(area, scene, key))

    def write(self, record: Record) -> None:
        """Keeps a record."""
        write_bytes(self._file(record.area, record.scene), (json.dumps(asdict(record), indent=1) + "\n").encode())

    def remove(self, area: str, scene: str) -> None:
        """Removes a scene's record, tiles and contact sheet.

        The record is emptied first and removed last, so that a killed command leaves no unknown files.
        """
        self.write(Record(area, scene, ""))
        for folder in self._folders(area, scene):
            shutil.rmtree(folder, ignore_errors=True)
        self._sheet(area, scene).unlink(missing_ok=True)
        self._file(area, scene).unlink()

    def _folders(self, area: str, scene: str) -> list[Path]:
        """Returns where a scene's images, masks and ids lie."""
        return [self.folder / part / area / scene for part in ("images", MASKS, IDS)]

    def _sheet(self, area: str, scene: str) -> Path:
        return self.folder / "sheets" / area / f"{scene}.png"
