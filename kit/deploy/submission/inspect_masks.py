"""Reads the masks of a submission: a folder, an archive or a table of run lengths, with the faults of each mask."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from kit.data.rasters import MOST_PIXELS, image_size
from kit.deploy.mosaics.mosaic import RESOLUTIONS
from kit.deploy.submission.archive import PackedFile, packed_files
from kit.deploy.submission.mask_tiff import opened_mask
from kit.deploy.submission.progress import TABLE
from kit.deploy.submission.rle import TABLE as RLE
from kit.deploy.submission.rle import decode, read_rle
from kit.errors import RasterError, SubmissionError

Sizes = Mapping[str, tuple[int, int]]  # height and width, px, by chip
KIT_FILES = (TABLE, RLE, RESOLUTIONS)  # that kit submit writes beside the masks; hidden files aside
FORM = {  # the checks of each mask, and what a check without faults says
    "readable": "{n} masks", "bands": "one each", "type": "uint8", "values": "0 and 1", "sizes": "",
}  # fmt: skip


@dataclass(frozen=True)
class InspectedMask:
    """One mask of a submission."""

    name: str  # of the chip
    faults: Mapping[str, str] = field(default_factory=dict)  # what is wrong, by check, see FORM; they name the file
    size: tuple[int, int] = (0, 0)  # height and width, px; (0, 0) where unreadable
    building_px: int = 0  # where nothing is wrong
    packed: bytes = b""  # the mask for a later comparison; empty where it was not kept

    @classmethod
    def of(cls, name: str, mask: NDArray[Any], keep: bool) -> "InspectedMask":
        """Returns a faultless mask.

        Args:
            name: of the chip.
            mask: uint8 (H, W) of 0 and 1.
            keep: keep its pixels, in some KiB: a comparison holds thousands of masks.
        """
        packed = zlib.compress(np.packbits(mask).tobytes(), 1) if keep else b""
        return cls(name, {}, (mask.shape[0], mask.shape[1]), int(mask.sum()), packed)

    def pixels(self) -> NDArray[np.bool_]:
        """Returns the mask that was kept, (H, W)."""
        bits = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        return np.unpackbits(bits, count=self.size[0] * self.size[1]).reshape(self.size).astype(bool)


@dataclass(frozen=True)
class Contents:
    """What a submission holds."""

    path: Path  # of the submission
    names: tuple[str, ...]  # of the chips that have masks, as often as each occurs
    strays: tuple[str, ...]  # what should not be there, in words
    masks: tuple[InspectedMask, ...]  # of the chips of the test set, where that is known
    suffix: str = ".tif"  # of the masks' names
    form: tuple[str, ...] = ("flat", *FORM)  # the checks that apply to such masks

    def sound(self) -> dict[str, InspectedMask]:
        """Returns the masks without faults, by chip."""
        return {mask.name: mask for mask in self.masks if not mask.faults}


class ImageSizes(Mapping[str, tuple[int, int]]):
    """Height and width of images, px, by id: each is read from its file when it is asked for."""

    def __init__(self, images: Mapping[str, Path]) -> None:
        self.images = images

    def __getitem__(self, name: str) -> tuple[int, int]:
        return image_size(self.images[name])

    def __contains__(self, name: object) -> bool:
        return name in self.images

    def __iter__(self) -> Iterator[str]:
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)


def read_contents(path: Path, sizes: Sizes | None, keep: bool = False) -> Contents:
    """Returns what a submission holds.

    Args:
        path: a folder, an archive, or a `.csv` of run lengths.
        sizes: height and width of the chips of the test set, px; None to accept any chip.
        keep: keep the masks' pixels for a comparison.

    Raises:
        SubmissionError: the submission is missing, damaged or dangerous; or run lengths without a test set.
        RasterError: an image of the test set is missing or broken.
    """
    if path.suffix.lower() == ".csv" and not path.is_dir():
        return _read_table(path, sizes, keep)
    names: list[str] = []
    strays: list[str] = []
    masks: list[InspectedMask] = []
    is_folder = path.is_dir()
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"):  # once: a new one for each file takes half the time
        for file in packed_files(path):
            if is_folder and not file.is_folder and (file.name.startswith(".") or file.name in KIT_FILES):
                continue  # of a submission in progress
            if stray := _stray(file):
                strays.append(stray)
                continue
            name = file.name.removesuffix(".tif")
            names.append(name)
            if sizes is None or name in sizes:
                masks.append(_read_mask(file.read(), name, sizes[name] if sizes else None, keep))
    return Contents(path, tuple(names), tuple(strays), tuple(masks))


def _read_table(path: Path, sizes: Sizes | None, keep: bool) -> Contents:
    if sizes is None:
        raise SubmissionError(f"{path} holds run lengths, which have no image sizes", "give the test set: --test")
    names: list[str] = []
    masks: list[InspectedMask] = []
    for name, runs in read_rle(path):
        names.append(name)
        if name not in sizes:
            continue
        size = sizes[name]
        try:
            masks.append(InspectedMask.of(name, decode(runs, size), keep))
        except SubmissionError as cause:
            masks.append(InspectedMask(name, {"readable": f"{name} has {cause.message}"}, size))
    return Contents(path, tuple(names), (), tuple(masks), "", ("readable",))


def _stray(file: PackedFile) -> str:
    """Returns why a file should not be in a submission; empty for a mask."""
    name = PurePosixPath(file.name.replace("\\", "/"))
    if file.is_folder:
        return f"{file.name.rstrip('/')} is a folder"
    if name.name != file.name:
        return f"{file.name} lies in a folder"
    if file.is_link:
        return f"{file.name} is a link"
    if name.name.startswith(".") or name.suffix != ".tif":
        return f"{file.name} is not <chip>.tif"
    return ""


def _read_mask(data: bytes, name: str, expected: tuple[int, int] | None, keep: bool) -> InspectedMask:
    """Returns a mask with its faults.

    Args:
        data: the file's bytes.
        name: of the chip.
        expected: height and width, px; None for any.
        keep: keep its pixels.
    """
    file = f"{name}.tif"
    faults: dict[str, str] = {}
    try:
        with opened_mask(data, file) as dataset:
            size = height, width = int(dataset.height), int(dataset.width)
            dtype = sorted(set(dataset.dtypes))
            if dataset.count != 1:
                faults["bands"] = f"{file} has {dataset.count} bands, expected 1"
            if dtype != ["uint8"]:
                faults["type"] = f"{file} is {', '.join(dtype)}, expected uint8"
            if expected and size != expected:
                faults["sizes"] = f"{file} is {width} x {height} px, its chip {expected[1]} x {expected[0]}"
            elif height * width > MOST_PIXELS:
                faults["sizes"] = f"{file} claims {width} x {height} px: more than a mask needs"
            if faults:
                return InspectedMask(name, faults, size)
            band: NDArray[Any] = dataset.read(1)
    except RasterError as cause:
        return InspectedMask(name, {"readable": cause.message})
    if band.max() > 1:
        return InspectedMask(name, {"values": f"{file} holds the value {band.max()}, expected 0 and 1"}, size)
    return InspectedMask.of(name, band, keep)
