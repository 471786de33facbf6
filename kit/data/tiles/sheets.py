"""Contact sheets: details of a scene at full size with the outlines of its mask, to check that they fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from kit.data.masks import BUILDING, IGNORE
from kit.data.rasters import without_notice
from kit.data.tiles.tile import Tile, read_mask
from kit.errors import RasterError
from kit.system.files import write_bytes

COLUMNS, ROWS = 4, 3
VIEW_PX = 360  # of a place: a shift of 3 px shows, and a sheet fits on a screen
GAP_PX, TITLE_PX = 6, 22
MOSTLY = 0.5  # share of imagery in a tile that is shown, where there are such tiles
OUTLINE, UNKNOWN, PAPER, INK = (255, 235, 0), (255, 0, 160), (24, 24, 24), (230, 230, 230)  # RGB


@dataclass(frozen=True)
class Sheet:
    """A scene's contact sheet in a data set's folder."""

    folder: Path
    area: str
    scene: str

    @property
    def file(self) -> Path:
        """Path of the picture."""
        return self.folder / "sheets" / self.area / f"{self.scene}.png"


def draw_sheet(sheet: Sheet, tiles: Sequence[Tile]) -> Path:
    """Writes a scene's contact sheet, and returns its path.

    It shows up to 12 tiles, spread over the scene, each where it has most outlines: yellow around buildings, magenta
    over pixels without imagery.

    Raises:
        RasterError: a tile cannot be read.
    """
    built = [tile for tile in tiles if tile.building_fraction > 0] or tiles
    chosen = _spread([tile for tile in built if tile.valid_fraction >= MOSTLY] or built, COLUMNS * ROWS)
    views = [_view(sheet.folder, tile) for tile in chosen]
    columns = min(COLUMNS, len(views))
    rows = -(-len(views) // columns)
    cell = VIEW_PX + GAP_PX
    canvas = np.full((rows * (cell + TITLE_PX) + GAP_PX, columns * cell + GAP_PX, 3), PAPER, np.uint8)
    for number, (tile, view) in enumerate(zip(chosen, views, strict=True)):
        row, column = divmod(number, columns)
        left, top = GAP_PX + column * cell, GAP_PX + row * (cell + TITLE_PX)
        height, width, _ = view.shape
        place = tile.mask.rsplit("/", 1)[-1].removesuffix(".tif")
        title = f"{place}  {100 * tile.gsd_m:.1f} cm  {tile.building_fraction:.0%} built"
        cv2.putText(canvas, title, (left, top + 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
        canvas[top + TITLE_PX : top + TITLE_PX + height, left : left + width] = view
    _, png = cv2.imencode(".png", canvas[..., ::-1])
    sheet.file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(sheet.file, png.tobytes())
    return sheet.file


def _spread(tiles: Sequence[Tile], n: int) -> list[Tile]:
    """Returns up to n tiles at equal distances in their order."""
    picks = np.unique(np.linspace(0, len(tiles) - 1, min(n, len(tiles))).round().astype(int))
    return [tiles[pick] for pick in picks]


def _view(folder: Path, tile: Tile) -> NDArray[np.uint8]:
    """Returns a part of a tile at full size with its outlines drawn, (h, w, 3) uint8 RGB."""
    file = folder / tile.image
    try:
        with without_notice, rasterio.open(file) as source:
            image = cv2.merge(list(source.read((1, 2, 3))))  # (H, W, 3)
        file = folder / tile.mask
        mask = read_mask(file)
    except RasterioError as cause:  # of windows: their scene
        raise RasterError(f"{file} cannot be read: {cause.__cause__ or cause}", "cut it again with --scene") from cause
    building = (mask == BUILDING).astype(np.uint8)
    top, left = _busiest(cv2.morphologyEx(building, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)))
    at = np.s_[top : top + VIEW_PX, left : left + VIEW_PX]
    view = np.ascontiguousarray(image[at])
    unknown = mask[at] == IGNORE
    view[unknown] = view[unknown] // 2 + np.array(UNKNOWN, np.uint8) // 2
    lines, _ = cv2.findContours(building[at], cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(view, lines, -1, OUTLINE, 1)
    return view


def _busiest(outlines: NDArray[Any]) -> tuple[int, int]:
    """Returns top and left of the window with most outline pixels."""
    height, width = (min(VIEW_PX, side) for side in outlines.shape)
    sums = cv2.integral(outlines)
    step = 16
    inside = sums[height::step, width::step] - sums[:-height:step, width::step]
    inside = inside - sums[height::step, :-width:step] + sums[:-height:step, :-width:step]
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(row) * step, int(column) * step
