"""Writes tiles of ready-made images with masks, as on Kaggle."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from kit.data.grids import Grid, on_earth
from kit.data.masks import IGNORE
from kit.data.rasters import Picture, image_size, off_earth, read_picture
from kit.data.sources.inputs import Pair
from kit.data.tiles.cutting import Cut, Failed, at_work, cut_before, too_little
from kit.data.tiles.options import Style
from kit.data.tiles.ready_masks import Meaning, decode, place_mask, read_ready_mask
from kit.data.tiles.tile import Spot, encode_image, encode_mask, row_of
from kit.errors import KitError, RasterError
from kit.system.files import write_bytes

BATCH = 32  # pairs at a time
MULTIPLE_PX = 32  # largest stride of encoders


@dataclass(frozen=True)
class Batch:
    """Some pairs, with everything that is needed to make tiles of them."""

    pairs: tuple[Pair, ...]  # of one scene
    side_px: int  # of the tiles
    meaning: Meaning  # of the masks' values
    gsd_m: float  # metres on the ground per pixel, for images without a georeference; 0 if unknown
    style: Style  # of the tiles
    folder: Path  # of the data set


def take_over(batch: Batch) -> Cut:
    """Writes one tile per pair, or several if it is larger than a tile.

    Smaller ones are padded with no data, so that all tiles have one size.

    Raises:
        KitError: the disk is full.
    """
    cut = Cut()
    with at_work(batch.pairs[0].image):
        for pair in batch.pairs:
            try:
                rgb, mask, grid = _read_pair(pair, batch)
            except KitError as error:
                cut.failed.append(Failed(f"{pair.area}_{pair.scene}_{pair.name}", error.message, error.hint))
            else:
                _write_tiles(pair, rgb, mask, grid, batch, cut)
    return cut


def side_of(pairs: Iterable[Pair], most_px: int) -> int:
    """Returns the tiles' side: that of the largest image, a multiple of 32 px, and `most_px` at most.

    Images that cannot be read are left out: they fail later.
    """
    longest = MULTIPLE_PX
    for pair in pairs:
        with suppress(RasterError):
            longest = max(longest, *image_size(pair.image))
        if longest >= most_px:
            return most_px
    return min(most_px, -(-longest // MULTIPLE_PX) * MULTIPLE_PX)


def _write_tiles(
    pair: Pair, rgb: NDArray[np.uint8], mask: NDArray[np.uint8], grid: Grid, batch: Batch, cut: Cut
) -> None:
    height, width = mask.shape
    side = batch.side_px
    rows, columns = grid.span((grid.left, grid.top - height * grid.y_pixel, grid.left + width * grid.x_pixel, grid.top))
    alone = len(rows) == len(columns) == 1
    for row, column in product(rows, columns):
        place = pair.name if alone else f"{pair.name}_r{row}_c{column}"
        spot = Spot(pair.area, pair.scene, pair.tier, place, grid, row, column)
        at = np.s_[..., row * grid.step_px :, column * grid.step_px :]
        truth = filled(mask[None][at], side, IGNORE)
        if cut_before(spot, batch.folder) is None:
            if too_little(spot, truth[0] != IGNORE, batch.style, cut):
                continue
            write_bytes(batch.folder / spot.image, encode_image(filled(rgb[at], side, 0), spot, batch.style.images))
            write_bytes(batch.folder / spot.mask, encode_mask(truth, spot))
        cut.tiles.append(row_of(spot, truth[0], 0, spot.gsd_m if grid.crs else batch.gsd_m))


def filled(bands: NDArray[np.uint8], side_px: int, value: int) -> NDArray[np.uint8]:
    """Returns (C, h, w), cropped or padded to (C, side, side) on the right and below."""
    bands = bands[:, :side_px, :side_px]
    _, height, width = bands.shape
    return np.pad(bands, ((0, 0), (0, side_px - height), (0, side_px - width)), constant_values=value)


def _read_pair(pair: Pair, batch: Batch) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Grid]:
    """Returns a pair's image (3, H, W) and mask (H, W), both uint8, and the grid that its own pixels make."""
    picture = read_picture(pair.image)
    rgb, valid, grid = picture.bands[:3], picture.valid, own_grid(picture, batch.side_px, batch.style.overlap_px)
    if picture.crs is not None and not on_earth(picture.crs):
        raise off_earth(pair.image, picture.crs)
    truth = pair.drawing.mask() if pair.drawing else _read_truth(pair, picture, batch.meaning)
    if truth.shape != valid.shape:
        (height, width), (h, w) = valid.shape, truth.shape
        raise RasterError(
            f"{pair.image} has {width} x {height} px, its mask {pair.mask} {w} x {h}", "is it the mask of this image?"
        )
    mask = np.where(valid, truth, IGNORE).astype(np.uint8)
    rgb[:, ~valid] = 0
    return rgb, mask, grid


def _read_truth(pair: Pair, picture: Picture, meaning: Meaning) -> NDArray[np.uint8]:
    """Returns a pair's mask, (H, W) uint8, on the pixels of its image where both are georeferenced."""
    ready = read_ready_mask(pair.mask)
    if ready.crs is not None and not on_earth(ready.crs):
        raise off_earth(pair.mask, ready.crs)
    truth = place_mask(decode(ready, meaning, pair.mask), ready, picture)
    if truth is None:
        raise RasterError(
            f"mask {pair.mask} lies on other ground than {pair.image}", "check their georeferences: gdalinfo"
        )
    return truth


def own_grid(source: Picture | DatasetReader, side_px: int, overlap_px: int = 0) -> Grid:
    """Returns the grid of an image's own pixels, without a CRS where the image has none or is turned.

    Args:
        source: where the image lies.
        side_px: of a tile.
        overlap_px: what neighbours share.
    """
    a, b, _, d, e, _ = source.transform[:6]
    if source.crs is None or b or d or a < 0 or e > 0:
        return Grid("", 1.0, 1.0, 0.0, 0.0, side_px, overlap_px)
    return Grid(source.crs.to_string(), a, -e, source.transform.c, source.transform.f, side_px, overlap_px)
