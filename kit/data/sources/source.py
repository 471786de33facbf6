"""What a data set is cut from: a STAC catalogue, a folder, or a table of files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

from kit.data.sources.folders import read_folder
from kit.data.sources.inputs import Inputs, Pair, Scene
from kit.data.sources.outside import check_inside
from kit.data.sources.remote import announce, is_remote, local_path, suffix_of
from kit.data.sources.stac import read_scenes
from kit.data.sources.tables import read_table
from kit.errors import DataError
from kit.outputs import as_name


def read_source(
    place: str | Path, pattern: str = "", tier: int | None = None, where: str = "", allow_outside: bool = False
) -> Inputs:
    """Returns the inputs that `kit prepare` cuts.

    Args:
        place: a STAC catalogue (a file, the folder that holds `catalog.json`, or an address); a folder of images with
            footprints or masks; or a CSV with the columns `image` and `labels` (several files divided by `;`) or
            `mask`, and optionally `area`, `scene`, `tier` and `name`.
        pattern: a regular expression with the groups `area` and `scene`, or one of them, that is searched in the path
            of each image of a folder or table, without its suffix.
        tier: of the labels; None: as the table or the catalogue's id says (`train_tier_2`), else 1.
        where: SQL condition that chooses features of footprint files or annotations of COCO files; empty: all.
        allow_outside: accept scenes and labels that name files outside their folder, such as VRTs.

    Raises:
        CatalogError: a catalogue is missing or incomplete.
        DataError: a folder or a table is empty or incomplete, the pattern does not fit, or a file names others outside
            its folder.
    """
    href = str(place)
    folder = local_path(href)
    pairs: list[Pair] = []
    if suffix_of(href) == ".csv":
        name = Path(href).stem
        scenes, pairs = read_table(href, pattern, tier)
    elif not is_remote(href) and folder.is_dir() and not (folder / "catalog.json").is_file():
        name = folder.resolve().name
        scenes, pairs = read_folder(folder, pattern, tier or 1, where)
    elif pattern:
        raise DataError(f"catalogue {place} names its areas and scenes: no pattern applies", "leave the pattern out")
    else:
        name, scenes = read_scenes(place)
    scenes = [replace(scene, tier=tier or scene.tier, where=where) for scene in scenes]
    for href in () if allow_outside else dict.fromkeys(h for scene in scenes for h in (scene.image, *scene.labels)):
        check_inside(href)
    announce(href for scene in scenes for href in (scene.image, *scene.labels))
    announce(href for pair in pairs for href in (pair.image, pair.mask))
    return _named(name, scenes, pairs)


def _named(name: str, scenes: Sequence[Scene], pairs: Sequence[Pair]) -> Inputs:
    """Returns inputs whose areas, scenes and names can be parts of file names."""
    places = [(scene.area, scene.scene) for scene in scenes]
    chips = [(pair.area, pair.scene, pair.name) for pair in pairs]
    folders = sorted({chip[:2] for chip in chips})
    for keys in (places, chips, folders, sorted({key[:1] for key in places + folders})):
        _refuse_equal(keys)
    tidy = [replace(scene, area=_plain(scene.area), scene=_plain(scene.scene)) for scene in scenes]
    chipped = [
        replace(pair, area=_plain(pair.area), scene=_plain(pair.scene), name=_plain(pair.name)) for pair in pairs
    ]
    return Inputs(
        as_name(normalize("NFC", name), "data"),
        tuple(sorted(tidy, key=lambda scene: (scene.area, scene.scene))),
        tuple(sorted(chipped, key=lambda pair: (pair.area, pair.scene, pair.name))),
    )


def _plain(text: str) -> str:
    return as_name(normalize("NFC", text), "unnamed")


def _refuse_equal(keys: Sequence[tuple[str, ...]]) -> None:
    first: dict[tuple[str, ...], tuple[str, ...]] = {}
    equal = []
    for key in keys:
        plain = tuple(_plain(part) for part in key)
        if plain in first:
            equal.append(" and ".join(dict.fromkeys(("/".join(first[plain]), "/".join(key)))))
        first.setdefault(plain, key)
    if equal:
        raise DataError(
            f"{len(equal)} of {len(keys)} names are used twice, first {', '.join(equal[:3])}",
            "give each another area, scene or name, of letters, digits, `.`, `_` and `-`: others become `-`",
        )
