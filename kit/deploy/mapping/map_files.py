"""The files of a map, and its record NAME.json: what it was made from, and which files kit wrote."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from kit.data.sources.remote import is_remote, local_path
from kit.deploy.mapping.layers import FORMATS
from kit.deploy.mapping.windows import Axis
from kit.errors import KitError, OutputError
from kit.outputs import as_name, check_apart
from kit.system.files import read_json, write_json

VERSION = 2  # of predictions: raised when the same scene and weights give another probability
INSIDE = "inside"  # a raster of maps whose weights tell neighbours apart
RASTERS = {
    "probability": "_probability.tif", INSIDE: "_inside.tif", "mask": "_mask.tif", "overlay": "_overlay.png",
}  # fmt: skip
OTHER_NAME = "choose another --name or --out, or move it away"


@dataclass(frozen=True)
class PredictionKey:
    """What a probability raster was predicted from; it is used again only where all of this is equal."""

    scene: str  # path or address
    version: str  # changes when the scene's file changes
    weights: str  # SHA-256 of the weights file
    plan: str  # how this machine computes
    windows: tuple[Axis, ...] = ()  # rows and columns of windows
    size: tuple[int, ...] = ()  # width and height of the raster, px
    kit: int = VERSION  # `VERSION`


@dataclass(frozen=True)
class MapRecord:
    """What NAME.json says, as far as a rerun reads it."""

    prediction: PredictionKey | None = None  # that the probability raster holds; None while it is being predicted
    # names of the files that kit wrote; None in a record of kit 0.1.0, which wrote all of them
    files: list[str] | None = None


class MapFiles:
    """The files of one map.

    Args:
        stem: folder and name that they begin with.
    """

    def __init__(self, stem: Path) -> None:
        self.stem = stem
        self.record = stem.with_name(f"{stem.name}.json")

    @property
    def strips(self) -> Path:
        """Folder of an unfinished prediction."""
        return self.stem.with_name(f".{self.stem.name}.strips")

    def __getitem__(self, kind: str) -> Path:
        """Returns the file of a kind: a key of `RASTERS`, or a polygon format of `FORMATS`."""
        suffix = RASTERS[kind] if kind in RASTERS else FORMATS[kind].suffix
        return self.stem.with_name(self.stem.name + suffix)

    def __iter__(self) -> Iterator[str]:
        """Yields every kind of file that a map may have."""
        yield from (*RASTERS, *FORMATS)

    def read(self) -> MapRecord:
        """Returns the record; an empty one if there is no file of its name.

        Raises:
            OutputError: the file is damaged, or not a map's record.
        """
        if not self.record.exists() and not self.record.is_symlink():
            return MapRecord(files=[])
        try:
            record = read_json(self.record, MapRecord)
        except KitError as cause:
            raise OutputError(
                f"{self.record} exists, and is not a record of kit map: {cause.message}", OTHER_NAME
            ) from cause
        if record == MapRecord():
            raise OutputError(f"{self.record} exists, and kit map did not write it", OTHER_NAME)
        return record

    def written(self) -> set[str]:
        """Returns the names of the files that kit wrote, as the record says."""
        names = self.read().files
        return {self[kind].name for kind in self} if names is None else set(names)

    def write(self, files: set[str], prediction: PredictionKey | None, **more: object) -> None:
        """Writes the record.

        Args:
            files: names of the files that kit wrote or is about to write.
            prediction: that the probability raster holds.
            more: for people to read.
        """
        content = {**more, "files": sorted(files)}
        write_json(self.record, content | ({"prediction": asdict(prediction)} if prediction else {}))

    def check(self, href: str) -> None:
        """Checks that a map of this scene replaces only files that kit wrote.

        Raises:
            OutputError: a file exists already, or is the scene itself.
        """
        targets = [self.record, *(self[kind] for kind in self)]
        if not is_remote(href):
            for target in targets:
                check_apart(target, [local_path(href)], "--name or --out")
        written = self.written() | {self.record.name}
        for target in targets:
            if (target.exists() or target.is_symlink()) and target.name not in written:
                raise OutputError(f"{target} exists, and kit map did not write it", OTHER_NAME)


def name_of(href: str) -> str:
    """Returns the name of a scene: its file's name without the suffix, as a name for files."""
    return as_name(PurePosixPath(scene_file(href)).stem, "scene")


def scene_file(href: str) -> str:
    """Returns the name of a scene's file, without folders."""
    return (PurePosixPath(unquote(urlsplit(href).path)) if is_remote(href) else local_path(href)).name
