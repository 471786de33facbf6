"""Scenes cut into tiles: image, mask and one index row each."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError, RasterioIOError
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as project
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from kit.console import Meter
from kit.data.catalog import Scene
from kit.data.footprints import Footprints, draw_layers, draw_mask, margin_px, read_footprints
from kit.data.masks import IGNORE, LAYERS
from kit.errors import DataError, FootprintError, RasterError

MERCATOR_M = 2 * math.pi * 6378137.0  # equator of EPSG:3857; the XYZ scheme halves it once per zoom
MIN_VALID = 0.01  # tiles with less imagery are skipped, and counted
# lossless, and each 256 px block can be read alone; predictor 2 halves the size of photographs
IMAGE_FORMAT = {"compress": "deflate", "zlevel": 6, "predictor": 2, "tiled": True, "blockxsize": 256, "blockysize": 256}
MASK_FORMAT = {"compress": "deflate", "tiled": True, "blockxsize": 256, "blockysize": 256}
LAYERS_FORMAT = {"interleave": "band", "photometric": "minisblack"}  # one band can be read alone; none is red


@dataclass(frozen=True)
class Grid:
    """Square tiles of one CRS: tile (row, column) starts at (left + column x side, top - row x side).

    Args:
        crs: of the grid.
        pixel: side of a pixel, in units of the CRS.
        left: x of column 0.
        top: y of row 0.
        side_px: side of a tile.
    """

    crs: str
    pixel: float
    left: float
    top: float
    side_px: int

    def transform(self, row: int, column: int) -> Affine:
        """Returns the pixel-to-CRS transform of a tile."""
        side = self.pixel * self.side_px
        return Affine(self.pixel, 0, self.left + column * side, 0, -self.pixel, self.top - row * side)

    def bounds(self, row: int, column: int, margin_px: int = 0) -> tuple[float, float, float, float]:
        """Returns (left, bottom, right, top) of a tile and a margin around it, in the grid's CRS."""
        near, far = -margin_px, self.side_px + margin_px
        (left, top), (right, bottom) = (self.transform(row, column) @ (at, at) for at in (near, far))
        return left, bottom, right, top

    def span(self, bounds: tuple[float, float, float, float]) -> tuple[range, range]:
        """Returns the rows and columns that cover (left, bottom, right, top), in the grid's CRS."""
        side = self.pixel * self.side_px
        slack = 1e-6  # of a tile: a scene that ends on a grid line has no tile beyond it
        columns = (bounds[0] - self.left) / side, (bounds[2] - self.left) / side
        rows = (self.top - bounds[3]) / side, (self.top - bounds[1]) / side
        return tuple(range(math.floor(a + slack), math.ceil(b - slack)) for a, b in (rows, columns))  # type: ignore[return-value]


@dataclass(frozen=True)
class Tile:
    """One row of the index.

    Args:
        tile: id, unique in the data set: area, scene, row and column on the grid.
        image: path of the RGB GeoTIFF, relative to the data set.
        mask: path of the mask (0 background, 1 building, 255 no data), likewise; with layers, its band 1.
        gsd_m: metres on the ground per pixel.
        valid_fraction: share of pixels with imagery.
        building_fraction: share of buildings among those.
        n_footprints: polygons that touch the tile.
    """

    tile: str
    area: str
    scene: str
    tier: int
    image: str
    mask: str
    width_px: int
    height_px: int
    gsd_m: float
    valid_fraction: float
    building_fraction: float
    n_footprints: int


def grid_of(name: str, side_px: int, source: rasterio.DatasetReader) -> Grid:
    """Returns the grid `z19` (XYZ, any zoom), `0.1m` (any resolution, in the scene's CRS) or `native` of a scene.

    Raises:
        DataError: another name, or a metric grid for a scene in degrees.
    """
    zoom = re.fullmatch(r"z(\d+)", name)
    if zoom:
        return Grid("EPSG:3857", MERCATOR_M / 2 ** int(zoom[1]) / side_px, -MERCATOR_M / 2, MERCATOR_M / 2, side_px)
    metres = re.fullmatch(r"([\d.]+)m", name)
    if not metres and name != "native":
        raise DataError(f"no grid {name!r}", "expected an XYZ zoom such as z19, a resolution such as 0.1m, or native")
    if metres and not source.crs.is_projected:
        raise DataError(f"{source.name} is in {source.crs}, not in metres", "use --grid z19 or --grid native")
    pixel = float(metres[1]) if metres else abs(source.transform.a)
    return Grid(source.crs.to_string(), pixel, source.bounds.left, source.bounds.top, side_px)


def ground_m(grid: Grid, transform: Affine) -> float:
    """Returns metres on the ground per pixel at the tile's centre: web mercator stretches by 1 / cos(latitude)."""
    crs = CRS.from_string(grid.crs)
    x, y = transform @ (grid.side_px / 2, grid.side_px / 2)
    _, (latitude,) = project(crs, CRS.from_epsg(4326), [x], [y])
    if crs.to_epsg() == 3857:
        return grid.pixel * math.cos(math.radians(latitude))
    return grid.pixel * (MERCATOR_M / 360 if crs.is_geographic else 1.0)


def open_scene(href: str) -> rasterio.DatasetReader:
    """Opens a scene and checks its bands.

    Raises:
        RasterError: it cannot be read, has no CRS, or is not uint8 RGB or RGBA.
    """
    try:
        source = rasterio.open(href)
    except RasterioIOError as cause:
        raise RasterError(f"{href} cannot be read: {cause}", "expected a GeoTIFF; fetch the file again") from cause
    if source.count not in (3, 4) or source.dtypes[0] != "uint8":
        raise RasterError(
            f"{href} has {source.count} bands of {source.dtypes[0]}, expected 3 or 4 (RGB, alpha) of uint8",
            "convert it: gdal_translate -ot Byte -b 1 -b 2 -b 3",
        )
    if source.crs is None:
        raise RasterError(f"{href} has no coordinate system", "assign one: gdal_edit.py -a_srs EPSG:...")
    return source


def _warped(source: rasterio.DatasetReader, grid: Grid, rows: range, columns: range) -> WarpedVRT:
    """Returns the scene on the grid, RGB and alpha, covering the given tiles exactly."""
    has_alpha = ColorInterp.alpha in source.colorinterp
    return WarpedVRT(
        source,
        crs=grid.crs,
        transform=grid.transform(rows.start, columns.start),
        width=len(columns) * grid.side_px,
        height=len(rows) * grid.side_px,
        resampling=Resampling.bilinear,
        add_alpha=not has_alpha,
    )


def cut_scene(
    scene: Scene, grid_name: str, side_px: int, folder: Path, progress: Meter, layers: bool = False
) -> tuple[list[Tile], int]:
    """Cuts one scene into tiles below `folder`, and returns their rows and how many tiles were skipped as empty.

    With layers, a mask file has the bands footprint, boundary and contact; without, the footprint alone.

    Raises:
        RasterError: the scene cannot be read to its end.
        FootprintError: no footprint lies on the scene.
    """
    tiles: list[Tile] = []
    skipped = 0
    with open_scene(scene.image) as source:
        grid = grid_of(grid_name, side_px, source)
        bounds = transform_bounds(source.crs, grid.crs, *source.bounds)
        footprints = read_footprints(scene.labels, grid.crs)
        if not len(footprints.touching(bounds)):
            raise FootprintError(
                f"none of the {len(footprints.polygons)} footprints of {scene.area}/{scene.scene} lies on the scene",
                f"check the coordinates in {scene.labels[0]}: GeoJSON is longitude, latitude",
            )
        rows, columns = grid.span(bounds)
        progress.total += len(rows) * len(columns)
        with _warped(source, grid, rows, columns) as warped:
            for i, j in np.ndindex(len(rows), len(columns)):
                window = Window(j * side_px, i * side_px, side_px, side_px)
                try:
                    pixels = warped.read(window=window)  # (4, side, side)
                except RasterioError as cause:
                    raise RasterError(
                        f"{scene.image} is broken at tile row {i}, column {j}: {cause}", "fetch the file again"
                    ) from cause
                valid = pixels[3] > 0
                progress.advance()
                if valid.mean() < MIN_VALID:
                    skipped += 1
                    continue
                tiles.append(_write(scene, grid, rows[i], columns[j], pixels[:3], valid, footprints, folder, layers))
    return tiles, skipped


def _write(
    scene: Scene,
    grid: Grid,
    row: int,
    column: int,
    rgb: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    footprints: Footprints,
    folder: Path,
    layers: bool,
) -> Tile:
    transform = grid.transform(row, column)
    side = grid.side_px
    gsd_m = ground_m(grid, transform)
    polygons = footprints.touching(grid.bounds(row, column))
    if layers:
        around = footprints.touching(grid.bounds(row, column, margin_px(gsd_m)))
        mask = draw_layers(around, transform, (side, side), valid, gsd_m)  # (3, side, side)
    else:
        mask = draw_mask(polygons, transform, (side, side), valid)[None]
    name = f"{scene.area}_{scene.scene}_r{row}_c{column}"
    tile = Tile(
        tile=name,
        area=scene.area,
        scene=scene.scene,
        tier=scene.tier,
        image=f"images/{name}.tif",
        mask=f"masks/{name}.tif",
        width_px=side,
        height_px=side,
        gsd_m=round(gsd_m, 6),
        valid_fraction=round(float(valid.mean()), 6),
        building_fraction=round(float((mask[0] == 1).sum() / valid.sum()), 6),
        n_footprints=len(polygons),
    )
    rgb = np.where(valid, rgb, 0)
    shared = {"driver": "GTiff", "width": side, "height": side, "dtype": "uint8", "crs": grid.crs}
    shared["transform"] = transform
    with rasterio.open(folder / tile.image, "w", count=3, photometric="rgb", **shared, **IMAGE_FORMAT) as target:
        target.write(rgb)
    shared |= MASK_FORMAT | (LAYERS_FORMAT if layers else {})
    with rasterio.open(folder / tile.mask, "w", count=len(mask), nodata=IGNORE, **shared) as target:
        target.write(mask)
        if layers:
            target.descriptions = LAYERS
    return tile
