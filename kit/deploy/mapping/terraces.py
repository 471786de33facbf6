"""Outlines of buildings that touch: neighbours keep the wall that they share, vertex by vertex.

The outlines of a group of buildings are cut into walls, each from one junction to the next. Each wall is simplified
once, for both its sides. For right angles, the corners of the whole group are moved together: least squares over all
walls, each of which is to follow an axis of its own building.
"""

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve

from kit.deploy.mapping.longitudes import POLYGON
from kit.deploy.mapping.squares import CHAMFER, LEAST_OVERLAP, OBLIQUE, main_direction

COURTYARD_M2 = 4.0  # a smaller hole in a building is a light well, a chimney or an error of the mask, not a courtyard
SHORT = 3.0  # walls shorter than so many simplification tolerances go along with the walls that they join
ALIKE = np.radians(8)  # axes of neighbours that differ by less are one
STAY = 1e-5  # weight of a corner's own place against a metre of wall
ROUNDS = 4  # of right angles: buildings that lose their shape in one keep their outline in the next
STRAIGHT = 0.1  # share of the tolerance within which corners of a right-angled wall are dropped

Polygons = NDArray[np.object_]
Points = NDArray[np.float64]
Places = NDArray[np.int64]


def simple_polygons(shapes: Polygons) -> tuple[Polygons, Places]:
    """Returns shapes as valid polygons, and each one's place in `shapes`; parts that touch at corners are split."""
    broken = ~shapely.is_valid(shapes)
    valid = shapes.copy()
    valid[broken] = shapely.make_valid(shapes[broken], method="structure", keep_collapsed=False)
    parts, owners = shapely.get_parts(valid, return_index=True)
    kept = (shapely.get_type_id(parts) == POLYGON) & ~shapely.is_empty(parts)
    return parts[kept], owners[kept]


def without_pits(polygons: Polygons) -> Polygons:
    """Returns polygons, in metres, without holes smaller than a courtyard in which none of the polygons lies."""
    filled, tree = polygons.copy(), None
    for place in np.flatnonzero(shapely.get_num_interior_rings(polygons)):
        holes = shapely.polygons(polygons[place].interiors)
        small = np.flatnonzero(shapely.area(holes) < COURTYARD_M2)
        if len(small):
            tree = tree or shapely.STRtree(shapely.point_on_surface(polygons))
            empty = np.setdiff1d(small, tree.query(holes, predicate="contains")[0])
            filled[place] = shapely.Polygon(polygons[place].exterior, np.delete(polygons[place].interiors, empty))
    return filled


def shared_outlines(
    whole: Polygons, pixel_m: tuple[float, float], simplify_m: float, squared: bool
) -> tuple[Polygons, Places]:
    """Returns the polygons of buildings that touch, in metres: a coverage; and each one's place in `whole`, ascending.

    Args:
        whole: outlines that follow pixels, in pixels of the map, (n,); they do not overlap.
        pixel_m: width and height of a pixel.
        simplify_m: how far an outline may move, metres.
        squared: turns walls to right angles.
    """
    stairs, owners = simple_polygons(whole)
    stairs = shapely.transform(shapely.segmentize(stairs, 1.0), lambda points: np.rint(points) * pixel_m)
    outlines, of = _simplified(stairs, simplify_m)
    if squared:
        outlines = right_angled(outlines, simplify_m)
    return outlines, owners[of]


def _simplified(stairs: Polygons, simplify_m: float) -> tuple[Polygons, Places]:
    """Returns a coverage whose walls moved by at most `simplify_m`, and the place of each polygon in `stairs`."""
    walls = shapely.line_merge(shapely.unary_union(shapely.boundary(stairs)))
    walls = shapely.simplify(walls, simplify_m, preserve_topology=True)  # of all lines together: none cross
    faces = shapely.get_parts(shapely.polygonize([walls]))
    face, owner = shapely.STRtree(stairs).query(faces, predicate="intersects")
    plain = shapely.simplify(stairs, 0)  # the same areas of a tenth of the corners
    shared = shapely.area(shapely.intersection(faces[face], plain[owner]))
    most = np.zeros((len(faces), 2))  # area in common with the owner, and with all
    np.maximum.at(most[:, 0], face, shared)
    np.add.at(most[:, 1], face, shared)
    of = np.full(len(faces), -1)
    of[face[shared == most[face, 0]]] = owner[shared == most[face, 0]]
    ground = shapely.area(faces) - most[:, 1] > most[:, 0]
    of[ground | (most[:, 0] == 0)] = -1
    order = np.argsort(of, kind="stable")[(of < 0).sum() :]
    outlines, of = without_pits(faces[order]), of[order]
    if len(np.unique(of)) == len(stairs) and is_coverage(outlines):
        return outlines, of
    # walls that cross, or a building that vanished
    outlines = shapely.coverage_simplify(stairs, simplify_m)
    return np.asarray(outlines, dtype=object), np.arange(len(stairs))


def is_coverage(polygons: Polygons) -> bool:
    """Returns whether polygons are valid, overlap nowhere, and have all corners of a wall in common."""
    return bool(shapely.is_valid(polygons).all() and shapely.coverage_is_valid(polygons))


def right_angled(outlines: Polygons, tolerance_m: float) -> Polygons:
    """Returns a coverage whose walls follow the axes of their buildings.

    A building that would lose its shape keeps its outline; if that does not help, all do.

    Args:
        outlines: a coverage in metres, simplified.
        tolerance_m: of that simplification.
    """
    net = WallNet(outlines)
    for tolerance in (tolerance_m, 0.0):
        fixed = np.zeros(len(outlines), bool)
        for _ in range(ROUNDS):
            moved = net.placed(net.aligned(tolerance, fixed))
            shared = shapely.area(shapely.intersection(outlines, shapely.make_valid(moved)))
            bad = shared < LEAST_OVERLAP * (shapely.area(outlines) + shapely.area(moved) - shared)
            bad |= ~shapely.is_valid(moved)
            if not bad.any():
                bad = ~shapely.is_empty(shapely.coverage_invalid_edges(moved))
            if not bad.any():
                return np.asarray(shapely.coverage_simplify(moved, STRAIGHT * tolerance_m), dtype=object)
            if (fixed | ~bad).all():
                break
            fixed |= bad
    return outlines


class WallNet:
    """The corners and walls of a coverage, to move corners without parting neighbours.

    Args:
        outlines: a coverage in metres.
    """

    def __init__(self, outlines: Polygons) -> None:
        self.outlines = outlines
        rings, self.building_of = shapely.get_rings(outlines, return_index=True)
        points, ring = shapely.get_coordinates(rings, return_index=True)
        ends = np.append(np.diff(ring) > 0, True)  # the closing corner of each ring is its first again
        self.ring, points = ring[~ends], points[~ends]
        self.corners, corner = np.unique(points, axis=0, return_inverse=True)
        self.corner = corner.reshape(-1)  # of each wall's start, along the rings
        first = np.searchsorted(self.ring, np.arange(len(rings)))
        last = np.searchsorted(self.ring, np.arange(len(rings)), side="right") - 1
        places = np.arange(len(self.ring))
        self.after, self.before = places + 1, places - 1
        self.after[last], self.before[first] = first, last
        self.building = self.building_of[self.ring]
        steps = self.corners[self.corner[self.after]] - self.corners[self.corner]
        self.length = np.hypot(*steps.T)
        directions = self._directions()[self.building]
        angle = np.arctan2(steps[:, 1], steps[:, 0])
        quarter = np.rint((angle - directions) / (np.pi / 2))
        self.axis_angle = directions + quarter * np.pi / 2
        self.axis = np.where(np.abs(angle - self.axis_angle) <= OBLIQUE, quarter.astype(int) % 2, -1)

    def aligned(self, tolerance_m: float, fixed: NDArray[np.bool_]) -> Points:
        """Returns the corners, (n, 2), m, that fit the axes best.

        Args:
            tolerance_m: walls shorter than three times that, between two along one axis, take their axis, so that
                these become one straight wall. Other walls shorter than that become a corner.
            fixed: buildings whose corners stay, (buildings,).
        """
        axis, angle = self.axis.copy(), self.axis_angle.copy()
        beside = np.minimum(self.length[self.before], self.length[self.after])
        jog = (self.length < np.minimum(SHORT * tolerance_m, beside)) & (axis[self.before] == axis[self.after])
        jog &= axis[self.before] >= 0
        axis[jog], angle[jog] = axis[self.before][jog], self.axis_angle[self.before][jog]
        chamfer = (axis < 0) & (self.length < CHAMFER * beside)
        chamfer &= (np.minimum(axis[self.before], axis[self.after]) == 0) & (axis[self.before] != axis[self.after])
        corner = chamfer | ((self.length < tolerance_m) & ~jog)
        used = self._once() & ~fixed[self.building]
        straight, closed = np.flatnonzero(used & (axis >= 0) & ~corner), np.flatnonzero(used & corner)
        wall = np.concatenate([straight, closed, closed])
        across = np.concatenate([angle[straight] + np.pi / 2, np.zeros(len(closed)), np.full(len(closed), np.pi / 2)])
        weight = np.sqrt(np.where(corner, beside, self.length))[wall]
        step = np.stack([np.cos(across), np.sin(across)], axis=1) * weight[:, None]
        start, end = self.corner[wall], self.corner[self.after][wall]
        count, rows = len(self.corners), np.repeat(np.arange(len(wall)), 4)
        columns = np.stack([2 * start, 2 * start + 1, 2 * end, 2 * end + 1], axis=1).ravel()
        walls = coo_array((np.hstack([step, -step]).ravel(), (rows, columns)), shape=(len(wall), 2 * count)).tocsr()
        stay = np.zeros(count)
        for side in (self.corner, self.corner[self.after]):
            np.add.at(stay, side, STAY * self.length / 2)
        held = np.zeros(count, bool)
        held[self.corner[fixed[self.building]]] = True
        stay[held] = 1 / STAY
        stay = np.repeat(stay, 2)
        matrix = (walls.T @ walls + diags_array(stay)).tocsc()
        placed: Points = spsolve(matrix, stay * self.corners.ravel()).reshape(-1, 2)
        placed[held] = self.corners[held]
        return placed

    def placed(self, corners: Points) -> Polygons:
        """Returns the buildings with their corners at other places."""
        starts = np.flatnonzero(np.diff(self.ring, prepend=-1))
        closed = np.insert(self.corner, np.append(starts[1:], len(self.corner)), self.corner[starts])
        index = np.insert(self.ring, np.append(starts[1:], len(self.ring)), self.ring[starts])
        rings = shapely.linearrings(corners[closed], indices=index)
        outer = np.diff(self.building_of, prepend=-1) > 0  # the first ring of each building
        holes = ~outer
        polygons = shapely.polygons(rings[outer])
        for building in np.unique(self.building_of[holes]):
            inner = rings[holes & (self.building_of == building)]
            polygons[building] = shapely.Polygon(polygons[building].exterior, list(inner))
        return np.asarray(polygons, dtype=object)

    def _directions(self) -> Points:
        """Returns the first axis of each building, radians: one for neighbours whose axes are nearly the same."""
        axes = np.array([main_direction(outline) for outline in self.outlines])
        turns = np.exp(4j * axes)
        ends = np.sort(np.stack([self.corner, self.corner[self.after]], axis=1), axis=1)
        _, wall = np.unique(ends, axis=0, return_inverse=True)
        order = np.argsort(wall.reshape(-1), kind="stable")
        both = np.flatnonzero(np.diff(wall.reshape(-1)[order]) == 0)  # walls of two buildings
        pairs = self.building[np.stack([order[both], order[both + 1]])]
        pairs = pairs[:, np.abs(np.angle(turns[pairs[0]] / turns[pairs[1]])) < 4 * ALIKE]
        count = len(axes)
        graph = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(count, count))
        row = connected_components(graph, directed=False)[1]
        weight = shapely.length(self.outlines)
        common = np.zeros(count, complex)
        np.add.at(common, row, weight * turns)
        near = np.abs(np.angle(common[row] / turns)) < 4 * ALIKE
        directions: Points = np.where(near, np.angle(common[row]) / 4, axes)
        return directions

    def _once(self) -> NDArray[np.bool_]:
        """Returns which walls of the rings to use: of two that are one, that of the larger building."""
        order = np.lexsort((self.building, -shapely.area(self.outlines)[self.building]))
        ends = np.sort(np.stack([self.corner, self.corner[self.after]], axis=1), axis=1)[order]
        once = np.zeros(len(order), bool)
        once[order[np.unique(ends, axis=0, return_index=True)[1]]] = True
        return once
