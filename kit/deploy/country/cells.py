"""Cells of a map of many scenes: squares of about a kilometre on the pixel grid of their UTM zone.

Every zone has one grid of pixels and one of windows, whichever scenes and cells there are. Two neighbouring cells
predict the windows that they share from the same pixels, so both see the same buildings between them. A building
belongs to the cell, and to the zone, that holds its anchor: its northernmost pixel, the westernmost of them.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from kit.data.grids import Grid
from kit.deploy.country.collection import PlacedScene
from kit.deploy.mapping.scene import DEGREES, Frame
from kit.deploy.mapping.windows import Axis
from kit.errors import KitError

CELL_M = 1000.0
MOST_WINDOWS = 8  # along a cell's side: 7,200 px with the default windows, which take half a gigabyte to trace
MOST_GROWN = 2  # rows of windows that are added on each side for buildings that reach beyond the cell's halo
ZONES, ZONE_DEGREES = 60, 6.0
HALF = ZONE_DEGREES / 2
SEAM_DEGREES = 2e-3  # a zone's cells reach beyond its meridians by so much: more than a building's width
NEAR_DEGREES = 1e-4  # a building so near to a meridian may be seen on either side of it
SLACK = 0.005  # share of its size by which a scene's outline may differ from its four corners in another projection

Pixels = tuple[int, int, int, int]  # left, top, right, bottom on a zone's grid


@dataclass(frozen=True, order=True)
class Cell:
    """One cell: its UTM zone, 1 to 60, and its row (southwards from the equator) and column on the zone's grid."""

    zone: int
    row: int
    column: int

    @property
    def name(self) -> str:
        """Its name in files, for example `36n0044_0513`: rows count from the equator, northwards or southwards."""
        row = f"s{self.row:04}" if self.row >= 0 else f"n{-self.row - 1:04}"
        return f"{self.zone:02}{row}_{self.column:04}"


@dataclass(frozen=True)
class Lattice:
    """The grids that a map's cells, windows and pixels lie on, the same in every zone."""

    gsd_m: float  # metres per pixel
    side_px: int  # of a window
    step_px: int  # from one window to the next
    windows: int  # along a cell's side

    @property
    def overlap_px(self) -> int:
        """What a window shares with the next one."""
        return self.side_px - self.step_px

    @property
    def cell_px(self) -> int:
        """Side of a cell."""
        return self.windows * self.step_px

    def grid(self, zone: int) -> Grid:
        """Returns the windows of a zone."""
        return Grid(crs_of(zone), self.gsd_m, self.gsd_m, 0.0, 0.0, self.side_px, self.overlap_px)

    def spans(self, cell: Cell, grown: int = 0) -> tuple[range, range]:
        """Returns the rows and columns of the windows that a cell is predicted with.

        Args:
            cell: of the map.
            grown: rows and columns of windows that are added on each side.
        """
        rows, columns = (
            range(at * self.windows - 1 - grown, (at + 1) * self.windows + 1 + grown) for at in (cell.row, cell.column)
        )
        return rows, columns

    def axis(self, span: range) -> Axis:
        """Returns consecutive windows as an axis that begins with the first one's first pixel."""
        starts = tuple(self.step_px * at for at in range(len(span)))
        return Axis(starts, self.side_px, starts[-1] + self.side_px)

    def seen(self, cell: Cell, grown: int = 0) -> Pixels:
        """Returns the pixels of a cell and its halo: those whose windows are all predicted for the cell."""
        rows, columns = self.spans(cell, grown)
        left, top = (span.start * self.step_px + self.overlap_px for span in (columns, rows))
        return left, top, columns.stop * self.step_px, rows.stop * self.step_px

    def core(self, cell: Cell) -> Pixels:
        """Returns the pixels of a cell."""
        left, top = cell.column * self.cell_px, cell.row * self.cell_px
        return left, top, left + self.cell_px, top + self.cell_px

    def read(self, cell: Cell, grown: int = 0) -> Pixels:
        """Returns the pixels of all windows of a cell."""
        rows, columns = self.spans(cell, grown)
        left, top = columns.start * self.step_px, rows.start * self.step_px
        return left, top, columns.stop * self.step_px + self.overlap_px, rows.stop * self.step_px + self.overlap_px

    def frame(self, cell: Cell, grown: int = 0) -> Frame:
        """Returns the frame of `seen`."""
        left, top, right, bottom = self.seen(cell, grown)
        grid = Grid(crs_of(cell.zone), self.gsd_m, self.gsd_m, left * self.gsd_m, -top * self.gsd_m, 1)
        wkt = pyproj.CRS(grid.crs).to_wkt()
        return Frame(right - left, bottom - top, grid.transform(0, 0), wkt, self.gsd_m, self.gsd_m)

    def box(self, pixels: Pixels) -> tuple[float, float, float, float]:
        """Returns left, bottom, right, top of pixels of a zone, metres."""
        left, top, right, bottom = (at * self.gsd_m for at in pixels)
        return left, -bottom, right, -top


def lattice_of(gsd_m: float, window_px: int, overlap_px: int, stride_px: int, cell_m: float = CELL_M) -> Lattice:
    """Returns the lattice of a map.

    Args:
        gsd_m: ground resolution to predict at, metres per pixel.
        window_px: side of a window.
        overlap_px: least overlap of neighbours.
        stride_px: of the network's encoder; windows start at its multiples.
        cell_m: side of a cell; rounded to whole windows, at most `MOST_WINDOWS`.

    Raises:
        KitError: an impossible length.
    """
    if not 0 < cell_m < math.inf:
        raise KitError(f"--cell is {cell_m:g}", f"expected metres, for example {CELL_M:g}")
    step = max(1, (window_px - overlap_px) // stride_px) * stride_px
    if step >= window_px:
        raise KitError(
            f"windows of {window_px} px with an overlap of {overlap_px} px, the network needs multiples of {stride_px}",
            "take larger windows: --window 1024",
        )
    return Lattice(gsd_m, window_px, step, min(MOST_WINDOWS, max(1, round(cell_m / (step * gsd_m)))))


def crs_of(zone: int) -> str:
    """Returns the CRS of a zone's grid: the northern one, in which the south has negative northings."""
    return f"EPSG:{32600 + zone}"


def zone_of(longitude: float) -> int:
    """Returns the UTM zone of a longitude: six degrees each, the western meridian belongs to it."""
    return math.floor((longitude + 180) / ZONE_DEGREES) % ZONES + 1


def zone_of_point(cell: Cell, lattice: Lattice, x_px: float, y_px: float) -> int:
    """Returns the zone that a point of a cell's grid lies in."""
    longitude, _ = _to_degrees(cell.zone).transform(x_px * lattice.gsd_m, -y_px * lattice.gsd_m)
    return zone_of(longitude)


def at_seam(cell: Cell, lattice: Lattice, bounds_px: Sequence[float]) -> bool:
    """Returns whether left, top, right, bottom of a building on a cell's grid are near a meridian between zones.

    There the grids of two zones see nearly, but not exactly, the same building.
    """
    left, top, right, bottom = (at * lattice.gsd_m for at in bounds_px)
    corners = [(x, -y) for x in (left, right) for y in (top, bottom)]
    off = [_off(cell.zone, x, y) for x, y in corners]
    return any(min(off) <= seam + NEAR_DEGREES and max(off) >= seam - NEAR_DEGREES for seam in (-HALF, HALF))


def _off(zone: int, x: float, y: float) -> float:
    """Returns how many degrees a point in metres of a zone's grid lies east of the zone's middle."""
    longitude, _ = _to_degrees(zone).transform(x, y)
    return float((longitude - central(zone) + 180) % 360 - 180)


def central(zone: int) -> float:
    """Returns the longitude of a zone's middle."""
    return ZONE_DEGREES * (zone - 0.5) - 180


@cache
def _to_degrees(zone: int) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(crs_of(zone), DEGREES, always_xy=True)


@cache
def _from_degrees(zone: int) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(DEGREES, crs_of(zone), always_xy=True)


def zones_of(scene: PlacedScene) -> list[int]:
    """Returns the zones that a scene reaches, as far as their seams go."""
    longitudes = [x for x, _ in scene.ring]
    first, last = (
        math.floor((x + 180) / ZONE_DEGREES) for x in (min(longitudes) - SEAM_DEGREES, max(longitudes) + SEAM_DEGREES)
    )
    return sorted({at % ZONES + 1 for at in range(first, last + 1)})


def outline_in(scene: PlacedScene, zone: int) -> shapely.Polygon:
    """Returns an outline that holds a scene, in metres of a zone's grid."""
    points = np.array([_from_degrees(zone).transform(x, y) for x, y in scene.ring])
    size = float(np.ptp(points, axis=0).max())
    hull: shapely.Polygon = shapely.MultiPoint(points).convex_hull
    return hull.buffer(2 * scene.gsd_m + SLACK * size, join_style="mitre")


class SceneTree:
    """The scenes of a map by place.

    Args:
        scenes: of a collection, in the order in which they are preferred.
    """

    def __init__(self, scenes: Sequence[PlacedScene]) -> None:
        self.scenes = scenes
        self.outlines: dict[int, tuple[NDArray[np.int64], shapely.STRtree]] = {}
        members: dict[int, list[int]] = {}
        for place, scene in enumerate(scenes):
            for zone in zones_of(scene):
                members.setdefault(zone, []).append(place)
        for zone, places in sorted(members.items()):
            tree = shapely.STRtree([outline_in(scenes[place], zone) for place in places])
            self.outlines[zone] = np.array(places), tree

    def near(self, lattice: Lattice, cell: Cell, grown: int = 0) -> list[PlacedScene]:
        """Returns the scenes that a cell's windows may see, in order."""
        places, tree = self.outlines[cell.zone]
        box = shapely.box(*lattice.box(lattice.read(cell, grown)))
        return [self.scenes[place] for place in sorted(places[tree.query(box, predicate="intersects")].tolist())]

    def cells(self, lattice: Lattice) -> list[Cell]:
        """Returns the cells that the scenes touch, sorted by zone, row and column."""
        cells: set[Cell] = set()
        for zone, (_, tree) in self.outlines.items():
            for outline in tree.geometries:
                cells.update(_touched(lattice, zone, outline))
        inside: dict[Cell, bool] = {cell: _in_zone(lattice, cell) for cell in cells}
        return sorted(cell for cell, here in inside.items() if here)


def _touched(lattice: Lattice, zone: int, outline: shapely.Polygon) -> Iterator[Cell]:
    """Yields the cells of a zone's grid that an outline touches."""
    side = lattice.cell_px * lattice.gsd_m
    left, bottom, right, top = outline.bounds
    shapely.prepare(outline)
    for row in range(math.floor(-top / side), math.floor(-bottom / side) + 1):
        for column in range(math.floor(left / side), math.floor(right / side) + 1):
            cell = Cell(zone, row, column)
            if outline.intersects(shapely.box(*lattice.box(lattice.core(cell)))):
                yield cell


def _in_zone(lattice: Lattice, cell: Cell) -> bool:
    """Returns whether a cell reaches into its zone, or its seams."""
    left, bottom, right, top = lattice.box(lattice.core(cell))
    off = [_off(cell.zone, x, y) for x in (left, right) for y in (bottom, top)]
    return min(off) <= HALF + SEAM_DEGREES and max(off) >= -HALF - SEAM_DEGREES


def corner_degrees(lattice: Lattice, cell: Cell) -> list[tuple[float, float]]:
    """Returns a cell's closed ring of corners in degrees."""
    left, bottom, right, top = lattice.box(lattice.core(cell))
    ring = [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]
    points: Iterable[tuple[float, float]] = (_to_degrees(cell.zone).transform(x, y) for x, y in ring)
    return [(round(x, 8), round(y, 8)) for x, y in points]
