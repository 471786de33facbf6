"""The chips of a test set: a STAC catalogue or a folder of images."""

from dataclasses import dataclass
from pathlib import Path

from kit.data.sources.folders import files_below
from kit.data.sources.inputs import IMAGE_SUFFIXES
from kit.data.sources.remote import is_remote, local_path
from kit.data.sources.stac import image_of, read_catalog
from kit.errors import CatalogError
from kit.outputs import LONGEST_NAME_BYTES

__all__ = ["Chip", "find_chips"]


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
        test: a STAC catalogue (a file, or the folder that holds `catalog.json`), or a folder of images, which may lie
            in folders of their own.

    Raises:
        CatalogError: it is missing, holds no chips, two chips have one id, an id cannot name a file, or an image is
            missing or not a regular file.
    """
    catalog = test / "catalog.json" if test.is_dir() else test
    if catalog.is_file() and catalog.suffix.lower() in (*IMAGE_SUFFIXES, ".zip", ".tgz", ".gz", ".tar"):
        raise CatalogError(
            f"{test} is not a catalogue or folder", "unpack an archive, and give its folder; of an image, its folder"
        )
    if catalog.is_file():
        chips = [Chip(item.id, _local(item.id, image_of(item))) for item in read_catalog(catalog)[1]]
    elif test.is_dir():
        images = (file for file in files_below(test) if file.suffix.lower() in IMAGE_SUFFIXES)
        chips = [Chip(image.stem, test / image) for image in images]
    else:
        raise CatalogError(f"no test set {test}", "give a catalog.json, its folder, or a folder of images, on a disk")
    if not chips:
        raise CatalogError(
            f"no chips in {test}, expected STAC items with an image, or files {', '.join(IMAGE_SUFFIXES)}",
            "is it complete?",
        )
    _check_ids(test, chips)
    if lost := [chip for chip in chips if not chip.path.is_file()]:
        raise CatalogError(
            f"{len(lost)} of {len(chips)} chips in {test} are not regular files, first {lost[0].path}",
            "expected images: no broken links, pipes or devices",
        )
    return sorted(chips, key=lambda chip: chip.id)


def _check_ids(test: Path, chips: list[Chip]) -> None:
    """Checks that each chip's id can name a mask and a row of a table, and is its own."""
    if odd := [chip.id for chip in chips if not _can_name_a_file(chip)]:
        raise CatalogError(
            f"{len(odd)} of {len(chips)} chip names in {test!s:.200} cannot name a mask, first {odd[0][:60]!a}",
            f"rename: visible characters of UTF-8, no `/`, no dot in front, at most {LONGEST_NAME_BYTES} bytes",
        )
    first: dict[str, Chip] = {}
    twice = [(first[chip.id], chip) for chip in chips if first.setdefault(chip.id, chip) is not chip]
    if twice:
        one, other = twice[0]
        raise CatalogError(
            f"{len(twice)} chip ids in {test} occur twice, first {one.id}: {one.path} and {other.path}",
            "give each chip its own name, or the folder of images alone: both masks would be one file",
        )


def _can_name_a_file(chip: Chip) -> bool:
    """Returns whether a chip's id is one visible name, and its path text."""
    if not chip.id or not chip.id.isprintable() or chip.id.startswith(".") or Path(chip.id).name != chip.id:
        return False  # not printable: newlines, U+2028, NUL, escape sequences, lone surrogates
    try:
        str(chip.path).encode()
    except UnicodeEncodeError:
        return False
    return len(chip.id.encode()) <= LONGEST_NAME_BYTES


def _local(chip: str, href: str) -> Path:
    if is_remote(href):
        raise CatalogError(f"chip {chip!a} lies at {href}", "download the test set: chips are read from a disk")
    return local_path(href)
