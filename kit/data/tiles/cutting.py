"""Cuts a block of neighbouring tiles from a scene: one job of one process."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from kit.data.burning import as_mask, draw_ids, draw_layers, margin_px, read_width
from kit.data.collars import Collar
from kit.data.footprints import Footprints
from kit.data.grids import Grid
from kit.data.instances import ids_file
from kit.data.rasters import gdal_options
from kit.data.sources.inputs import Scene
from kit.data.sources.remote import is_remote
from kit.data.tiles.options import Style
from kit.data.tiles.tile import SCENE, Skipped, Spot, Tile, encode_ids, encode_image, encode_mask, read_mask, row_of
from kit.data.tiles.warping import Imagery
from kit.errors import RasterError
from kit.system.files import write_bytes

BLOCK = 4  # tiles a side of a block: most decoded parts of the scene are used by several of its tiles
CACHE_BYTES = 128 << 20  # decoded imagery per process: the row of a block's tiles above is still there


@dataclass(frozen=True)
class Failed:
    """A tile that could not be cut."""

    tile: str  # id, as of `Tile`; of a scene that could not be opened, `area/scene`
    reason: str  # the error
    hint: str = ""  # what to do about it


@dataclass
class Cut:
    """The tiles of a job: those that were cut, those skipped, and those that failed."""

    tiles: list[Tile] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)

    def add(self, more: "Cut") -> None:
        """Adds the tiles of another job."""
        self.tiles += more.tiles
        self.skipped += more.skipped
        self.failed += more.failed

    def __len__(self) -> int:
        return len(self.tiles) + len(self.skipped) + len(self.failed)


@dataclass(frozen=True)
class Block:
    """Neighbouring tiles of a scene, with everything that is needed to cut them."""

    scene: Scene  # to cut from
    grid: Grid  # of its tiles
    rows: range  # of the block
    columns: range  # of the block
    polygons: NDArray[np.object_]  # footprints that touch the block or its surroundings, in the grid's CRS
    collar: Collar | None  # of the scene, or None
    style: Style  # of the tiles
    folder: Path  # of the data set


def at_work(href: str) -> rasterio.Env:
    """Returns a context with GDAL's settings for one of several processes."""
    return rasterio.Env(**gdal_options(CACHE_BYTES, is_remote(href)))


def cut_block(block: Block) -> Cut:
    """Cuts the tiles of a block; those that an interrupted command has cut are kept.

    Raises:
        KitError: the disk is full.
    """
    cut = Cut()
    scene, grid = block.scene, block.grid
    suffix = ".vrt" if block.style.images == SCENE else ".tif"
    footprints = Footprints(block.polygons, grid.crs)
    spots = [
        Spot(scene.area, scene.scene, scene.tier, f"r{row}_c{column}", grid, row, column, suffix)
        for row, column in product(block.rows, block.columns)
    ]
    with at_work(scene.image):
        try:
            with Imagery(scene.image, grid, block.rows, block.columns, block.collar) as imagery:
                for spot in spots:
                    _cut_tile(spot, imagery, footprints, block, cut)
        except RasterError as error:  # the scene cannot be opened any more
            cut.failed += [Failed(spot.tile, error.message, error.hint) for spot in spots[len(cut) :]]
    return cut


def _cut_tile(spot: Spot, imagery: Imagery, footprints: Footprints, block: Block, cut: Cut) -> None:
    n_footprints = len(footprints.touching(spot.grid.bounds(spot.row, spot.column)))
    truth = cut_before(spot, block.folder)
    if truth is None:
        try:
            rgb, valid = imagery.read(spot.row, spot.column)
        except RasterError as error:
            cut.failed.append(Failed(spot.tile, error.message, error.hint))
            return
        if too_little(spot, valid, block.style, cut):
            return
        ids = draw_ids(footprints.touching(spot.grid.bounds(spot.row, spot.column)), spot.transform, valid.shape)
        mask = _draw(footprints, spot, valid, block.style) if block.style.layers else as_mask(ids, valid)[None]
        if block.style.images == SCENE:
            write_bytes(block.folder / spot.image, imagery.window(spot.row, spot.column))
        else:
            write_bytes(block.folder / spot.image, encode_image(rgb, spot, block.style.images))
        write_bytes(ids_file(block.folder / spot.mask), encode_ids(ids, spot))
        write_bytes(block.folder / spot.mask, encode_mask(mask, spot))
        truth = mask[0]
    cut.tiles.append(row_of(spot, truth, n_footprints, spot.gsd_m))


def margin_of(style: Style, gsd_m: float) -> int:
    """Returns how far beyond a tile footprints still affect its mask, px."""
    if not style.layers:
        return 0
    return margin_px(gsd_m, read_width(style.boundary).odd_px(gsd_m), read_width(style.contact).m(gsd_m))


def cut_before(spot: Spot, folder: Path) -> NDArray[np.uint8] | None:
    """Returns the mask of a tile that an interrupted command has cut, or None. It is written after the image."""
    file = folder / spot.mask
    try:
        return read_mask(file) if file.exists() and (folder / spot.image).exists() else None
    except RasterioError:  # a machine that lost power may leave a name without content
        return None


def too_little(spot: Spot, valid: NDArray[np.bool_], style: Style, cut: Cut) -> bool:
    """Returns whether a tile has too little imagery; then it is added to the skipped ones."""
    share = float(valid.mean())
    if share >= style.min_valid and share > 0:
        return False
    reason = f"imagery below {style.min_valid:g}" if share else "no imagery"
    cut.skipped.append(Skipped(spot.tile, spot.area, spot.scene, reason, round(share, 6)))
    return True


def _draw(footprints: Footprints, spot: Spot, valid: NDArray[np.bool_], style: Style) -> NDArray[np.uint8]:
    """Returns the layers of a tile's mask, (3, side, side) uint8."""
    grid, gsd_m = spot.grid, spot.gsd_m
    around = footprints.touching(grid.bounds(spot.row, spot.column, margin_of(style, gsd_m)))
    boundary_px, contact_m = read_width(style.boundary).odd_px(gsd_m), read_width(style.contact).m(gsd_m)
    return draw_layers(around, spot.transform, valid.shape, valid, gsd_m, boundary_px, contact_m)
