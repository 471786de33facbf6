"""What data are prepared from: a STAC catalogue, a folder or a table."""

from dataclasses import dataclass, replace
from pathlib import Path

from kit.data.catalog import Pair, Scene, read_scenes
from kit.errors import DataError


@dataclass(frozen=True)
class Source:
    """Images with their labels, and the name of the data set to be made.

    Args:
        name: default name of the data set.
        scenes: images with footprints, sorted by area and scene.
        pairs: ready-made images with masks, sorted by area, scene and name.
    """

    name: str
    scenes: tuple[Scene, ...]
    pairs: tuple[Pair, ...]


def read_source(place: str | Path, pattern: str = "", tier: int = 0) -> Source:
    """Returns what `kit prepare` is to cut.

    Args:
        place: a STAC catalogue: a file, the folder that holds `catalog.json`, or an address.
        pattern: of a folder's paths: a regular expression with the groups `area` and `scene`, or one of them.
        tier: of the labels; 0: as the catalogue's id tells (`train_tier_2`), else 1.

    Raises:
        CatalogError: a catalogue is missing or incomplete.
    """
    if pattern:
        raise DataError("a catalogue names its areas and scenes: no pattern applies", "leave the pattern out")
    name, scenes = read_scenes(place)
    return Source(name, tuple(replace(scene, tier=tier or scene.tier) for scene in scenes), ())
