"""The buildings that belong to a cell, out of all that it sees.

A building belongs to the cell and to the UTM zone that hold its anchor, its northernmost pixel (the westernmost of
them): exact for a building that two cells see on one grid. Two zones see it on two grids, so near their meridian both
keep it, and the merge chooses one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely

from kit.deploy.country.cell_rows import INSIDE, SEAM_OTHER, SEAM_OWN, CellRows
from kit.deploy.country.cells import Cell, Lattice, Pixels, at_seam, zone_of_point
from kit.deploy.mapping.apart import Apart
from kit.deploy.mapping.polygons import Buildings, areas_m2, in_degrees, outlined
from kit.deploy.mapping.tracing import Footprint, Piece
from kit.deploy.weights.cleaning import Cleaning

SIMPLIFIED_PX = 2.0  # default tolerance of outlines, px


@dataclass(frozen=True)
class CellOptions:
    """What the buildings of every cell depend on, weights and scenes aside."""

    cleaning: Cleaning
    alone: bool = False  # where scenes overlap, the preferred one alone; else the mean of all
    square: bool = False  # turns walls to right angles
    simplify_m: float | None = None  # how far an outline may move, metres; None: two pixels


@dataclass(frozen=True)
class Anchored:
    """A piece of a cell's mask."""

    piece: Piece
    x: int  # of its anchor, pixels from the left of what the cell sees
    y: int  # of its anchor, pixels from the top


def core_in(lattice: Lattice, cell: Cell, grown: int) -> Pixels:
    """Returns left, top, right, bottom of a cell in pixels of what it sees."""
    left, top, _, _ = lattice.seen(cell, grown)
    core = lattice.core(cell)
    return core[0] - left, core[1] - top, core[2] - left, core[3] - top


def reaches_out(piece: Piece, lattice: Lattice, cell: Cell, grown: int) -> bool:
    """Returns whether a piece lies partly in the cell, and touches the end of its halo."""
    left, top, right, bottom = shapely.total_bounds(piece.polygons)
    seen = lattice.seen(cell, grown)
    if left > 0 and top > 0 and right < seen[2] - seen[0] and bottom < seen[3] - seen[1]:
        return False
    return bool(shapely.intersects(piece.polygons, shapely.box(*core_in(lattice, cell, grown))).any())


def anchored(piece: Piece) -> Anchored:
    """Returns a piece with its anchor."""
    points = shapely.get_coordinates(piece.polygons)
    top = points[:, 1].min()
    return Anchored(piece, int(points[points[:, 1] == top, 0].min()), int(top))


def rows_of(
    pieces: Sequence[Piece], lattice: Lattice, cell: Cell, grown: int, options: CellOptions
) -> tuple[CellRows, int]:
    """Returns the buildings that belong to a cell, and how many were cut at its edge since they reach too far.

    Args:
        pieces: of the mask of what the cell sees, in its pixels.
        lattice: of the map.
        cell: of the map.
        grown: rows of windows that were added around it.
        options: of the outlines.
    """
    core, frame = core_in(lattice, cell, grown), lattice.frame(cell, grown)
    inside, cut = [], 0
    for piece in pieces:
        if reaches_out(piece, lattice, cell, grown):
            piece, cut = _within(piece, core), cut + 1
        if piece.polygons:
            inside.append(anchored(piece))
    inside.sort(key=lambda one: (one.y, one.x))  # the same order in every cell that sees them
    simplify_m = options.simplify_m or SIMPLIFIED_PX * lattice.gsd_m
    parts = [outlined([one.piece], frame, simplify_m, options.square) for one in inside]
    buildings = Buildings.joined(parts)
    polygons = Apart(frame.gsd_m).separated(buildings)
    names, seams, chosen, row = [], [], [], 0
    for one, part in zip(inside, parts, strict=True):
        seam = _belongs(one, lattice, cell, grown)
        for number in range(len(part)):
            if seam is not None and polygons[row] is not None:
                names.append(_name(one, lattice, cell, grown, number))
                seams.append(seam)
                chosen.append(row)
            row += 1
    degrees = in_degrees(polygons[np.array(chosen, np.int64)], frame)
    kept = ~shapely.is_missing(degrees)
    rows = CellRows(
        [name for name, whole in zip(names, kept, strict=True) if whole], degrees[kept],
        np.round(areas_m2(degrees[kept]), 2), np.round(buildings.confidence[chosen][kept], 4),
        np.array(seams, np.int8)[kept],
    )  # fmt: skip
    return rows, cut


def _within(piece: Piece, core: Pixels) -> Piece:
    """Returns the part of a piece that lies in the cell."""
    buildings: dict[int, Footprint] = {}
    for number, building in piece.buildings.items():
        parts = shapely.get_parts(shapely.intersection(building.polygons, shapely.box(*core)))
        if inside := [part for part in parts if part.area > 0]:
            buildings[number] = replace(building, polygons=inside)
    return Piece(buildings)


def _belongs(one: Anchored, lattice: Lattice, cell: Cell, grown: int) -> int | None:
    """Returns `INSIDE`, `SEAM_OWN` or `SEAM_OTHER` for a building that the cell keeps; None for another one."""
    left, top, right, bottom = core_in(lattice, cell, grown)
    if not (left <= one.x < right and top <= one.y < bottom):
        return None
    corner = lattice.seen(cell, grown)[:2]
    own = zone_of_point(cell, lattice, one.x + corner[0] + 0.5, one.y + corner[1] + 0.5) == cell.zone
    bounds = shapely.total_bounds(one.piece.polygons) + np.array([*corner, *corner])
    if at_seam(cell, lattice, bounds.tolist()):
        return SEAM_OWN if own else SEAM_OTHER
    return INSIDE if own else None


def _name(one: Anchored, lattice: Lattice, cell: Cell, grown: int, part: int) -> str:
    """Returns a building's id: zone and anchor on the zone's grid, the same for every plan of this resolution."""
    left, top, _, _ = lattice.seen(cell, grown)
    x, y = one.x + left, one.y + top
    row = f"s{y:08}" if y >= 0 else f"n{-y - 1:08}"
    return f"{cell.zone:02}{row}_{x:08}{f'_{part}' if part else ''}"
