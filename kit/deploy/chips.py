"""The chips of a test set: a STAC catalogue or a folder of TIFFs."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pystac

from kit.errors import CatalogError

TIFF_SUFFIXES = (".tif", ".tiff")


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
        chips = list(_chips_in_catalog(catalog))
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


def _chips_in_catalog(catalog: Path) -> Iterator[Chip]:
    """Yields a chip for each item, at any depth."""
    hint = "give the catalog.json of a test set: one item a chip, with a TIFF as its asset `image`"
    try:
        for item in pystac.Catalog.from_file(str(catalog)).get_items(recursive=True):
            yield Chip(item.id, _image_of(item))
    except (pystac.STACError, pystac.STACTypeError, OSError, ValueError, KeyError, TypeError) as cause:
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise CatalogError(f"cannot read the catalogue {catalog}: {reason}", hint) from cause


def _image_of(item: pystac.Item) -> Path:
    """Returns the path of the asset `image`, else of the first TIFF."""
    tiffs = [asset for asset in item.assets.values() if Path(asset.href).suffix.lower() in TIFF_SUFFIXES]
    for asset in [item.assets.get("image"), *tiffs]:
        if asset is not None and (href := asset.get_absolute_href()):
            return Path(href)
    raise CatalogError(f"item {item.id} has no asset `image` and no TIFF", "expected one image a chip")
