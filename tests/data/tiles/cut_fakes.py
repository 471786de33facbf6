"""One scene cut here, without a catalogue: its tiles, laid side by side again where a test wants that."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import shapely
from factories import write_footprints

from kit.data.grids import Grid
from kit.data.sources.inputs import Scene
from kit.data.tiles.cutting import Block, Cut, cut_block
from kit.data.tiles.jobs import plan
from kit.data.tiles.options import Style


@dataclass(frozen=True)
class CutScene:
    """A scene's tiles below `folder`, their grid, and how many the plan told."""

    folder: Path
    cut: Cut
    grid: Grid
    total: int
    counts: dict[str, int]


def cut_scene(folder: Path, image: Path, polygons: list[shapely.Polygon], **style: object) -> CutScene:
    """Cuts a scene with footprints in EPSG:4326 into `folder`, in this process."""
    labels = folder / "labels.geojson"
    write_footprints(labels, polygons)
    planned = plan(Scene("kam", "a", 1, str(image), (str(labels),)), Style(**style), folder)
    cut = Cut()
    for block in planned.jobs:
        assert isinstance(block, Block)
        cut.add(cut_block(block))
    return CutScene(folder, cut, planned.jobs[0].grid, planned.tiles, planned.counts)


def place_of(tile: str) -> tuple[int, int]:
    """Returns row and column of a tile's id."""
    row, column = tile.rsplit("_", 2)[1:]
    return int(row.removeprefix("r")), int(column.removeprefix("c"))


def laid_out(made: CutScene) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Returns the tiles' RGB (3, H, W) and mask (H, W) as one raster, and its first row and column; no overlap."""
    places = [place_of(tile.tile) for tile in (*made.cut.tiles, *made.cut.skipped)]
    top, left = (min(place[axis] for place in places) for axis in (0, 1))
    rows, columns = (max(place[axis] for place in places) - first + 1 for axis, first in ((0, top), (1, left)))
    side = made.grid.side_px
    rgb = np.zeros((3, rows * side, columns * side), np.uint8)
    mask = np.full(rgb.shape[1:], 255, np.uint8)
    for tile in made.cut.tiles:
        row, column = place_of(tile.tile)
        down, across = (row - top) * side, (column - left) * side
        at = np.s_[..., down : down + side, across : across + side]
        with rasterio.open(made.folder / tile.image) as image, rasterio.open(made.folder / tile.mask) as truth:
            rgb[at], mask[at] = image.read((1, 2, 3)), truth.read(1)
    return rgb, mask, (top, left)
