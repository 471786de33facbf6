"""The buildings that belong to a cell, out of all that it sees.

A building belongs to the cell and to the UTM zone that hold its anchor, its northernmost pixel (the westernmost of
them): exact for a building that two cells see on one grid. Two zones see it on two grids, so near their meridian both
keep it, and the merge chooses one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely

from kit.deploy.country.cell_rows import INSIDE, SEAM_OTHER, SEAM_OWN, CellRows
from kit.deploy.country.cells import MOST_GROWN, Cell, Lattice, Pixels, at_seam, zone_of_point
from kit.deploy.mapping.apart import Apart
from kit.deploy.mapping.dividing import LARGEST_PX
from kit.deploy.mapping.polygons import Buildings, areas_m2, in_degrees, outlined
from kit.deploy.mapping.scene import Frame
from kit.deploy.mapping.tracing import Anchor, Footprint, Piece
from kit.deploy.weights.card import Splitting
from kit.deploy.weights.cleaning import Cleaning

SIMPLIFIED_PX = 2.0  # default tolerance of outlines, px


@dataclass(frozen=True)
class CellOptions:
    """What the buildings of every cell depend on, weights and scenes aside."""

    cleaning: Cleaning
    alone: bool = False  # where scenes overlap, the preferred one alone; else the mean of all
    square: bool = False  # turns walls to right angles
    simplify_m: float | None = None  # how far an outline may move, metres; None: two pixels
    splitting: Splitting | None = None  # how buildings that touch are told apart; None: they are one


def core_in(lattice: Lattice, cell: Cell, grown: int) -> Pixels:
    """Returns left, top, right, bottom of a cell in pixels of what it sees."""
    left, top, _, _ = lattice.seen(cell, grown)
    core = lattice.core(cell)
    return core[0] - left, core[1] - top, core[2] - left, core[3] - top


def reaches_out(building: Footprint, lattice: Lattice, cell: Cell, grown: int) -> bool:
    """Returns whether a building lies partly in the cell, and touches the end of its halo."""
    left, top, right, bottom = shapely.total_bounds(building.polygons)
    seen = lattice.seen(cell, grown)
    if left > 0 and top > 0 and right < seen[2] - seen[0] and bottom < seen[3] - seen[1]:
        return False
    return bool(shapely.intersects(building.polygons, shapely.box(*core_in(lattice, cell, grown))).any())


def clipped(piece: Piece, lattice: Lattice, cell: Cell, grown: int) -> Piece:
    """Returns a piece; of one that is too large to divide, what lies near the cell."""
    left, top, right, bottom = shapely.total_bounds(piece.polygons)
    margin = (math.isqrt(LARGEST_PX) - lattice.cell_px) // 2
    if margin <= 0 or (right - left) * (bottom - top) <= LARGEST_PX:
        return piece
    near = shapely.box(*core_in(lattice, cell, grown)).buffer(margin, join_style="mitre")
    return Piece({number: _within(building, near) for number, building in piece.buildings.items()})


def rows_of(
    pieces: Sequence[Piece], lattice: Lattice, cell: Cell, grown: int, options: CellOptions
) -> tuple[CellRows, int]:
    """Returns the buildings that belong to a cell, and how many were cut at its edge since they reach too far.

    Args:
        pieces: of the mask of what the cell sees, in its pixels, divided into buildings.
        lattice: of the map.
        cell: of the map.
        grown: rows of windows that were added around it.
        options: of the outlines.
    """
    core, frame = shapely.box(*core_in(lattice, cell, grown)), lattice.frame(cell, grown)
    groups, belongs, cut = [], {}, 0
    for piece in pieces:
        group = Piece()
        for number, building in piece.buildings.items():
            if _too_large(building, lattice, cell, grown):
                building = _within(building, core)
                cut += bool(building.polygons)
            if building.polygons:
                group.buildings[number] = building = replace(building, anchor=_anchor(building))
                belongs[building.anchor[1:]] = _belongs(building, lattice, cell, grown)
        if group.buildings:
            groups.append(group)
    # the same order in every cell that sees them
    groups.sort(key=lambda group: max(building.anchor for building in group.buildings.values()), reverse=True)
    simplify_m = options.simplify_m or SIMPLIFIED_PX * lattice.gsd_m
    buildings = Buildings.joined([_outlined(group, frame, simplify_m, options.square) for group in groups])
    polygons = Apart(frame.gsd_m).separated(buildings)
    seams = [belongs[-y, -x] for y, x, _ in buildings.anchors.tolist()]
    chosen = [row for row, seam in enumerate(seams) if seam is not None and polygons[row] is not None]
    degrees = in_degrees(polygons[np.array(chosen, np.int64)], frame)
    kept = np.array(chosen, np.int64)[~shapely.is_missing(degrees)]
    degrees = degrees[~shapely.is_missing(degrees)]
    rows = CellRows(
        [_name(lattice, cell, grown, *buildings.anchors[row].tolist()) for row in kept], degrees,
        np.round(areas_m2(degrees), 2), np.round(buildings.confidence[kept], 4),
        np.array([seams[row] for row in kept], np.int8),
    )  # fmt: skip
    return rows, cut


def _too_large(building: Footprint, lattice: Lattice, cell: Cell, grown: int) -> bool:
    """Returns whether one of the cells that a building touches does not see it whole, even with the largest halo."""
    corner = lattice.seen(cell, grown)[:2]
    left, top, right, bottom = shapely.total_bounds(building.polygons) + np.array([*corner, *corner])
    first = Cell(cell.zone, int(top // lattice.cell_px), int(left // lattice.cell_px))
    last = Cell(cell.zone, math.ceil(bottom / lattice.cell_px) - 1, math.ceil(right / lattice.cell_px) - 1)
    start, end = lattice.seen(last, MOST_GROWN)[:2], lattice.seen(first, MOST_GROWN)[2:]
    return bool(left <= start[0] or top <= start[1] or right >= end[0] or bottom >= end[1])


def _within(building: Footprint, area: shapely.Polygon) -> Footprint:
    """Returns the part of a building that lies in an area."""
    parts = shapely.get_parts(shapely.intersection(building.polygons, area))
    return replace(building, polygons=[part for part in parts if part.area > 0])


def _anchor(building: Footprint) -> Anchor:
    """Returns a building's northernmost pixel, the westernmost of them, as an anchor of its own."""
    points = shapely.get_coordinates(building.polygons)
    top = points[:, 1].min()
    return 0, -int(top), -int(points[points[:, 1] == top, 0].min())


def _outlined(piece: Piece, frame: Frame, simplify_m: float, squared: bool) -> Buildings:
    """Returns the outlines of a piece, computed from its own corner: with the same numbers in all cells that see it."""
    corner = shapely.total_bounds(piece.polygons)[:2]
    moved = {
        number: replace(each, polygons=list(shapely.transform(each.polygons, lambda points: points - corner)))
        for number, each in piece.buildings.items()
    }
    buildings = outlined([Piece(moved)], frame, simplify_m, squared)
    return replace(buildings, polygons=shapely.transform(buildings.polygons, lambda points: points + corner))


def _belongs(building: Footprint, lattice: Lattice, cell: Cell, grown: int) -> int | None:
    """Returns `INSIDE`, `SEAM_OWN` or `SEAM_OTHER` for a building that the cell keeps; None for another one."""
    left, top, right, bottom = core_in(lattice, cell, grown)
    y, x = (-at for at in building.anchor[1:])
    if not (left <= x < right and top <= y < bottom):
        return None
    corner = lattice.seen(cell, grown)[:2]
    own = zone_of_point(cell, lattice, x + corner[0] + 0.5, y + corner[1] + 0.5) == cell.zone
    bounds = shapely.total_bounds(building.polygons) + np.array([*corner, *corner])
    if at_seam(cell, lattice, bounds.tolist()):
        return SEAM_OWN if own else SEAM_OTHER
    return INSIDE if own else None


def _name(lattice: Lattice, cell: Cell, grown: int, y: int, x: int, part: int) -> str:
    """Returns a building's id: zone and anchor on the zone's grid, the same for every plan of this resolution."""
    left, top, _, _ = lattice.seen(cell, grown)
    x, y = x + left, y + top
    row = f"s{y:08}" if y >= 0 else f"n{-y - 1:08}"
    return f"{cell.zone:02}{row}_{x:08}{f'_{part}' if part else ''}"
