"""Grids of square tiles: XYZ zooms, a fixed ground resolution, or a scene's own pixels."""

import math
import re
from dataclasses import dataclass
from typing import Protocol

import pyproj
from affine import Affine
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.warp import transform as project

from kit.errors import DataError

MERCATOR_M = 2 * math.pi * 6378137.0  # equator of EPSG:3857; the XYZ scheme halves it once per zoom
FINEST_ZOOM = 24  # 9 mm per pixel at 256 px a tile

Bounds = tuple[float, float, float, float]  # left, bottom, right, top


class Placed(Protocol):
    """The place of an image."""

    name: str
    crs: CRS
    transform: Affine
    width: int
    height: int


@dataclass(frozen=True)
class Grid:
    """Square tiles of one CRS: tile (row, column) starts at (left + column x step, top - row x step).

    The step is a tile's side less the overlap: without overlap, tiles share no pixel and leave none out.
    """

    crs: str  # of the grid; empty where an image lies nowhere, and its pixels are the units
    x_pixel: float  # width of a pixel, in units of the CRS
    y_pixel: float  # its height
    left: float  # x of column 0
    top: float  # y of row 0
    side_px: int  # side of a tile
    overlap_px: int = 0  # what a tile shares with the next one

    @property
    def step_px(self) -> int:
        """From one tile's edge to the next one's."""
        return self.side_px - self.overlap_px

    def transform(self, row: int, column: int) -> Affine:
        """Returns the pixel-to-CRS transform of a tile."""
        left = self.left + column * self.step_px * self.x_pixel
        top = self.top - row * self.step_px * self.y_pixel
        return Affine(self.x_pixel, 0, left, 0, -self.y_pixel, top)

    def bounds(self, row: int, column: int, margin_px: int = 0) -> Bounds:
        """Returns (left, bottom, right, top) of a tile and a margin around it, in the grid's CRS."""
        near, far = -margin_px, self.side_px + margin_px
        (left, top), (right, bottom) = (self.transform(row, column) @ (at, at) for at in (near, far))
        return left, bottom, right, top

    def span(self, bounds: Bounds) -> tuple[range, range]:
        """Returns the fewest rows and columns that cover (left, bottom, right, top), in the grid's CRS."""
        left, bottom, right, top = bounds
        rows = self._along((self.top - top) / self.y_pixel, (self.top - bottom) / self.y_pixel)
        columns = self._along((left - self.left) / self.x_pixel, (right - self.left) / self.x_pixel)
        return rows, columns

    def _along(self, start_px: float, stop_px: float) -> range:
        slack = 1e-6 * self.side_px  # a scene that ends on a grid line has no tile beyond it
        first = math.floor((start_px + slack) / self.step_px)
        last = math.ceil((stop_px - self.side_px - slack) / self.step_px)
        return range(first, max(first, last) + 1)


def check_grid(name: str, side_px: int, overlap_px: int) -> None:
    """Checks the options of a grid, before any scene is opened.

    Raises:
        DataError: an unknown name, an impossible zoom or resolution, or an overlap as large as the tile.
    """
    if not (0 <= _zoom(name) <= FINEST_ZOOM or name == "native" or _metres(name)):
        raise DataError(f"no grid {name!r}", "expected an XYZ zoom such as z19, a resolution such as 0.1m, or native")
    if not 0 <= overlap_px < side_px:
        raise DataError(
            f"an overlap of {overlap_px} px between tiles of {side_px} px", f"expected 0 to {side_px // 2} px"
        )


def _zoom(name: str) -> int:
    """Returns the zoom of a name such as `z19`, or -1."""
    match = re.fullmatch(r"z(\d+)", name)
    return int(match[1]) if match else -1


def _metres(name: str) -> float:
    """Returns the metres of a name such as `0.1m`, or 0."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)m", name)
    return float(match[1]) if match else 0.0


def grid_of(name: str, side_px: int, source: Placed, overlap_px: int = 0) -> Grid:
    """Returns a scene's grid: `z19` (XYZ, any zoom), `0.1m` (any ground resolution, in its CRS) or `native`.

    Raises:
        DataError: another name, a metric grid for a scene in degrees, or native pixels that are turned.
    """
    check_grid(name, side_px, overlap_px)
    if name.startswith("z"):
        pixel = MERCATOR_M / 2 ** _zoom(name) / side_px
        return Grid("EPSG:3857", pixel, pixel, -MERCATOR_M / 2, MERCATOR_M / 2, side_px, overlap_px)
    left, bottom, right, top = extent(source)
    if name == "native":
        turned = source.transform.b or source.transform.d or source.transform.a < 0 or source.transform.e > 0
        if turned:
            raise DataError(
                f"the pixels of {source.name} are turned or mirrored against north", "use --grid z19 or --grid 0.1m"
            )
        x_pixel, y_pixel = source.transform.a, -source.transform.e
        return Grid(source.crs.to_string(), x_pixel, y_pixel, left, top, side_px, overlap_px)
    if not source.crs.is_projected:
        raise DataError(f"{source.name} is in {source.crs}, not in metres", "use --grid z19 or --grid native")
    pixel = _metres(name) / metres_per_unit(source.crs, (left + right) / 2, (bottom + top) / 2)
    return Grid(source.crs.to_string(), pixel, pixel, left, top, side_px, overlap_px)


def corners(source: Placed) -> list[tuple[float, float]]:
    """Returns where an image's four corners lie in its CRS, around it."""
    width, height = source.width, source.height
    return [source.transform @ corner for corner in ((0, 0), (width, 0), (width, height), (0, height))]


def extent(source: Placed) -> Bounds:
    """Returns (left, bottom, right, top) of an image in its CRS, whichever way its pixels are turned."""
    x, y = zip(*corners(source), strict=True)
    return min(x), min(y), max(x), max(y)


def metres_per_unit(crs: CRS, x: float, y: float) -> float:
    """Returns how many metres on the ground a unit of a CRS is at (x, y): Mercator's stretch by 1 / cos(latitude).

    Of degrees it is the mean of both directions, as the square root of their product.
    """
    _, (latitude,) = project(crs, CRS.from_epsg(4326), [x], [y])
    narrowing = math.cos(math.radians(latitude))
    if crs.is_geographic:
        return MERCATOR_M / 360 * math.sqrt(narrowing)
    return float(crs.linear_units_factor[1]) * (narrowing if crs.to_dict().get("proj") == "merc" else 1.0)


def world_width(crs: str) -> float:
    """Returns the width of the world in units of a CRS whose x follows the longitude; 0 of others."""
    known = CRS.from_user_input(crs)
    if known.is_geographic:
        return 360.0
    mercator = known.to_dict().get("proj") in ("merc", "webmerc")
    return MERCATOR_M / float(known.linear_units_factor[1]) if mercator else 0.0


def on_earth(crs: CRS) -> bool:
    """Returns whether a coordinate system can be converted to degrees; that of a technical drawing cannot."""
    try:
        pyproj.Transformer.from_crs(crs.to_wkt(), "EPSG:4326")
    except ProjError:
        return False
    return not pyproj.CRS(crs.to_wkt()).is_geocentric


def ground_m(grid: Grid, row: int, column: int) -> float:
    """Returns metres on the ground per pixel at a tile's centre."""
    x, y = grid.transform(row, column) @ (grid.side_px / 2, grid.side_px / 2)
    return math.sqrt(grid.x_pixel * grid.y_pixel) * metres_per_unit(CRS.from_string(grid.crs), x, y)
