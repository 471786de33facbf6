"""The chips of a test set: a STAC catalogue or a folder of TIFFs."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from kit.data.sources.stac import TIFF_SUFFIXES, image_of, open_catalog, read_items
from kit.errors import CatalogError


@dataclass(frozen=True)
class Chip:
    """One test image.

    Args:
        id: names the mask that is submitted.
        path: of the image.
    """

    id: str
    path: Path


def find_chips(test: Path) -> list[Chip]:
    """Returns the chips of a test set, sorted by id.

    Args:
        test: a STAC catalogue (a file, or the folder that holds `catalog.json`) or a folder of .tif chips.

    Raises:
        CatalogError: it is missing, holds no chips, or two chips have one id.
    """
    catalog = test / "catalog.json" if test.is_dir() else test
    if catalog.is_file():
        chips = _chips_in_catalog(catalog)
    elif test.is_dir():
        chips = [Chip(path.stem, path) for path in test.iterdir() if _is_tiff(path)]
    else:
        raise CatalogError(f"no test set {test}", "give a catalog.json, its folder, or a folder of .tif chips")
    if not chips:
        raise CatalogError(f"no chips in {test}, expected STAC items with an image, or .tif files", "is it complete?")
    if repeated := [name for name, count in Counter(chip.id for chip in chips).items() if count > 1]:
        raise CatalogError(
            f"{len(repeated)} chip ids in {test} stand twice, first {min(repeated)}", "give each chip its own id"
        )
    if odd := [chip.id for chip in chips if chip.id.startswith(".") or Path(chip.id).name != chip.id]:
        raise CatalogError(f"chip id {odd[0]!r} in {test} cannot name a file", "rename it in the catalogue")
    return sorted(chips, key=lambda chip: chip.id)


def _is_tiff(path: Path) -> bool:
    return path.suffix.lower() in TIFF_SUFFIXES and not path.name.startswith(".")


def _chips_in_catalog(catalog: Path) -> list[Chip]:
    return [Chip(item.id, Path(image_of(item))) for item in read_items(open_catalog(catalog))]
