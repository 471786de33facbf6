"""Ready-made masks: which values or colours are buildings, and their place on the image."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject

from kit.data.masks import BACKGROUND, BUILDING, IGNORE, white_on_black
from kit.data.orientation import orientation_of, upright
from kit.data.rasters import Picture, open_picture, unreadable
from kit.errors import DataError, RasterError
from kit.system.cpu import cpu_count

SAME_PX = 0.1  # pixels that lie nearer to each other than this are the same
Value = tuple[int, ...]  # a class (2,), or a colour (255, 0, 0)


@dataclass(frozen=True)
class ReadyMask:
    """A mask as its file holds it, upright."""

    bands: NDArray[np.uint8]  # (C, H, W) uint8, without alpha
    crs: CRS | None  # of its georeference, or None
    transform: Affine  # pixel to CRS


@dataclass(frozen=True)
class Meaning:
    """What the values of a data set's masks mean."""

    buildings: tuple[Value, ...] = ()  # classes or colours that the user named; empty: 1, else 255
    white_is_building: bool = True  # whether 255 is building in masks without a 1; else it is no data


def parse_values(texts: Iterable[str]) -> tuple[Value, ...]:
    """Returns the classes and colours of texts such as `2` and `255,0,0`.

    Raises:
        DataError: one is neither.
    """
    values = []
    for text in texts:
        parts = [part.strip() for part in text.split(",")]
        if len(parts) not in (1, 3) or not all(part.isdecimal() and int(part) <= IGNORE for part in parts):
            raise DataError(
                f"building value {text!r} is neither a class nor a colour",
                "expected a number from 0 to 255, or red, green and blue: --building-value 2, --building-value 0,0,255",
            )
        values.append(tuple(map(int, parts)))
    return tuple(values)


def read_ready_mask(href: str) -> ReadyMask:
    """Returns a mask's file.

    Raises:
        RasterError: it cannot be read, is not uint8, or has an alpha band that hides a part of it.
    """
    with open_picture(href) as source:
        if set(source.dtypes) != {"uint8"}:
            kinds = ", ".join(sorted(set(source.dtypes)))
            raise RasterError(f"mask {href} holds {kinds}, expected uint8", "convert it: gdal_translate -ot Byte")
        try:
            bands: NDArray[np.uint8] = source.read()
            if source.count == 1:
                bands = white_on_black(bands, source)
        except RasterioError as cause:
            raise unreadable(href, cause) from cause
        if source.count > 1 and source.colorinterp[-1] == ColorInterp.alpha:
            if (bands[-1] != IGNORE).any():
                raise RasterError(
                    f"mask {href} is transparent in places", "write it without alpha: gdal_translate -b 1"
                )
            bands = bands[:-1]
        return ReadyMask(upright(bands, orientation_of(source)), source.crs, source.transform)


def find_meaning(hrefs: Iterable[str], buildings: tuple[Value, ...] = ()) -> Meaning:
    """Returns what the values of a data set's masks mean. Masks that cannot be read are left out: they fail later.

    A mask with a 1 holds 0 and 1, and 255 is no data. In one without, 255 is building; but no data where other masks
    hold both a 1 and 255.

    Args:
        hrefs: of all masks.
        buildings: classes or colours that the user named.

    Raises:
        DataError: masks of 0 and 1 and masks of 0 and 255 are mixed, and a mask holds nothing but 255.
    """
    if buildings:
        return Meaning(buildings)
    examples: dict[frozenset[int], str] = {}
    with ThreadPoolExecutor(cpu_count()) as pool:
        for href, values in pool.map(_values_of, hrefs):
            examples.setdefault(values, href)
    ones = [href for values, href in examples.items() if BUILDING in values and IGNORE not in values]
    if any({BUILDING, IGNORE} <= values for values in examples):
        return Meaning(white_is_building=False)
    full = examples.get(frozenset({IGNORE}))
    if ones and full:
        white = examples.get(frozenset({BACKGROUND, IGNORE}), full)
        raise DataError(
            f"masks of 0 and 1 (such as {ones[0]}) and of 0 and 255 (such as {white}) are mixed, and {full} holds 255 "
            "alone: building or no data",
            "say which value is building: --building-value 1 (then 255 is no data), or --building-value 255",
        )
    return Meaning()


def _values_of(href: str) -> tuple[str, frozenset[int]]:
    """Returns a mask's address and its values; none for one that is not grey, or cannot be read."""
    try:
        bands = read_ready_mask(href).bands
    except RasterError:
        return href, frozenset()
    values = frozenset(np.flatnonzero(np.bincount(bands[0].ravel())).tolist())
    return href, values if _is_grey(bands) and values <= {BACKGROUND, BUILDING, IGNORE} else frozenset()


def _is_grey(bands: NDArray[np.uint8]) -> bool:
    return all(np.array_equal(bands[0], band) for band in bands[1:])


def decode(mask: ReadyMask, meaning: Meaning, href: str) -> NDArray[np.uint8]:
    """Returns a mask as kit writes them, (H, W) uint8: 0, 1, 255 = no data.

    Raises:
        RasterError: the mask is in colour, and its colour of buildings is not named; or it holds unknown values.
    """
    named = "name what is building: --building-value 2, or --building-value 255,0,0 for a colour"
    grey = _is_grey(mask.bands)
    level = mask.bands[0]
    if not meaning.buildings:
        if not grey:
            raise RasterError(f"mask {href} is in colour: its {len(mask.bands)} bands differ", named)
        values = set(np.flatnonzero(np.bincount(level.ravel())).tolist())
        if other := values - {BACKGROUND, BUILDING, IGNORE}:
            raise RasterError(
                f"mask {href} holds the value {min(other)}, expected 0 and 1 (255 is no data), or 0 and 255",
                f"{named}; masks stored as JPEG must be exported again in a lossless format",
            )
        white = meaning.white_is_building and BUILDING not in values
        return np.where(level == IGNORE, BUILDING if white else IGNORE, level).astype(np.uint8)
    building = np.zeros(level.shape, bool)
    for value in meaning.buildings:
        if len(value) == 1 and not grey:
            raise RasterError(f"mask {href} is in colour, and {value[0]} is not a colour", named)
        if len(value) == 1:
            building |= level == value[0]
        else:
            bands: Any = mask.bands if len(mask.bands) == len(value) else [level] * len(value)
            building |= np.all([band == part for band, part in zip(bands, value, strict=True)], axis=0)
    unknown = level == IGNORE if grey and any(len(value) == 1 for value in meaning.buildings) else np.False_
    return np.where(building, BUILDING, np.where(unknown, IGNORE, BACKGROUND)).astype(np.uint8)


def place_mask(truth: NDArray[np.uint8], mask: ReadyMask, picture: Picture) -> NDArray[np.uint8] | None:
    """Returns a decoded mask on the pixels of its image, (H, W), by the georeference of both; 255 where it has none.

    Returns None where a mask lies on other ground. Without a georeference of both, the pixels count.
    """
    nowhere = Affine.identity()
    if nowhere in (mask.transform, picture.transform):
        return truth
    here, there = picture.crs or mask.crs or CRS.from_epsg(3857), mask.crs or picture.crs or CRS.from_epsg(3857)
    height, width = picture.valid.shape
    if here == there and truth.shape == picture.valid.shape:
        to_mask = ~mask.transform @ picture.transform
        corners = np.array([(0, 0), (width, 0), (0, height), (width, height)])
        if max(np.hypot(*(np.array(to_mask @ corner) - corner)) for corner in corners) < SAME_PX:
            return truth
    placed = np.full((height, width), IGNORE, np.uint8)
    reproject(
        truth, placed, src_transform=mask.transform, src_crs=there, dst_transform=picture.transform, dst_crs=here,
        src_nodata=IGNORE, dst_nodata=IGNORE, resampling=Resampling.nearest, tolerance=0,
    )  # fmt: skip
    return placed if (placed != IGNORE).any() or not (truth != IGNORE).any() else None
