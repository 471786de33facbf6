"""Turns a building's walls to right angles, along the two directions that most of its outline follows.

The usual steps of building regularisation: the main direction is the mean angle of the edges, modulo 90 degrees and
weighted by length. Edges near one of its two axes are replaced by lines along that axis, others keep their direction.
The new corners are where neighbouring lines meet.
"""

import cmath
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely
from numpy.typing import NDArray

OBLIQUE = math.radians(25)  # an edge that is further than this from both axes keeps its direction
# edges shorter than so many simplification tolerances are ignored; the largest factor that keeps the shape is used
SHORTEST = (6.0, 3.0, 1.0, 0.0)
CHAMFER = 1 / 3  # an oblique edge shorter than this share of both its neighbours is a cut-off corner
LEAST_OVERLAP = 0.9  # intersection over union of the squared and the given outline; below, the given one is kept


@dataclass(frozen=True)
class Wall:
    """A line that replaces one or more edges of an outline."""

    x: float  # of a point on the line, m
    y: float  # of the same point, m
    angle: float  # direction of the line, radians
    length: float  # sum of its edges' lengths, m
    axis: int  # 0 or 1 for a line along the first or second axis, 2 for an oblique one

    def follows(self, other: "Wall") -> bool:
        """Returns whether both run along the same axis and in the same sense."""
        return self.axis == other.axis < 2 and math.cos(self.angle - other.angle) > 0

    def cuts_corner(self, before: "Wall", after: "Wall") -> bool:
        """Returns whether this is a short oblique edge between long edges along both axes."""
        short = self.length < CHAMFER * min(before.length, after.length)
        return self.axis == 2 and {before.axis, after.axis} == {0, 1} and short

    def merged(self, other: "Wall") -> "Wall":
        """Returns one line for the edges of both: between them, nearer to the longer one."""
        length = self.length + other.length
        x, y = ((self.length * a + other.length * b) / length for a, b in ((self.x, other.x), (self.y, other.y)))
        return Wall(x, y, self.angle, length, self.axis)

    def meets(self, other: "Wall") -> tuple[float, float] | None:
        """Returns the point where both lines cross; None if they are nearly parallel."""
        turn = math.sin(other.angle - self.angle)
        if abs(turn) < math.sin(OBLIQUE) / 2:
            return None
        along = ((other.x - self.x) * math.sin(other.angle) - (other.y - self.y) * math.cos(other.angle)) / turn
        return self.x + along * math.cos(self.angle), self.y + along * math.sin(self.angle)


def square(polygon: shapely.Polygon, tolerance_m: float) -> shapely.Polygon:
    """Returns a polygon with right angles, or the polygon itself if that would change its shape too much.

    Args:
        polygon: in metres, simplified.
        tolerance_m: of that simplification.
    """
    direction = main_direction(polygon)
    for shortest in SHORTEST:
        rings = [squared_ring(ring, direction, shortest * tolerance_m) for ring in _rings(polygon)]
        if rings[0] is None:
            continue
        pairs = zip(rings[1:], polygon.interiors, strict=True)
        holes = [np.asarray(given.coords) if squared is None else squared for squared, given in pairs]
        candidate = shapely.Polygon(rings[0], holes)
        if candidate.is_valid and not candidate.is_empty and _overlap(candidate, polygon) >= LEAST_OVERLAP:
            return candidate
    return polygon


def _rings(polygon: shapely.Polygon) -> list[shapely.LinearRing]:
    return [polygon.exterior, *polygon.interiors]


def _overlap(first: shapely.Polygon, second: shapely.Polygon) -> float:
    """Returns intersection over union."""
    shared = first.intersection(second).area
    return float(shared / (first.area + second.area - shared))


def main_direction(polygon: shapely.Polygon) -> float:
    """Returns the angle of a polygon's first axis, radians; the second axis is perpendicular to it."""
    steps = np.concatenate([np.diff(np.asarray(ring.coords), axis=0) for ring in _rings(polygon)])
    numbers = steps[:, 0] + 1j * steps[:, 1]
    lengths = np.maximum(np.abs(numbers), 1e-12)
    return cmath.phase(complex((lengths * (numbers / lengths) ** 4).sum())) / 4


def squared_ring(ring: shapely.LinearRing, direction: float, shortest_m: float) -> NDArray[np.float64] | None:
    """Returns the corners of a squared ring, (n, 2), without the closing one; None if the ring cannot be squared.

    Args:
        ring: in metres.
        direction: of the first axis, radians.
        shortest_m: shorter edges are ignored: their neighbours meet instead.
    """
    walls = _walls(np.asarray(ring.coords), direction, shortest_m)
    corners = [before.meets(wall) for before, wall in zip(walls[-1:] + walls[:-1], walls, strict=True)]
    if len(corners) < 4 or None in corners:
        return None
    return np.array(corners, np.float64)


def _walls(corners: NDArray[np.float64], direction: float, shortest_m: float) -> list[Wall]:
    """Returns the lines that replace the edges of a closed ring of corners, (n, 2)."""
    walls: list[Wall] = []
    for (x, y), (x_to, y_to) in pairwise(corners):
        length = math.hypot(x_to - x, y_to - y)
        if length <= max(shortest_m, 1e-9):
            continue
        angle = math.atan2(y_to - y, x_to - x)
        quarter = round((angle - direction) / (math.pi / 2))
        aligned = direction + quarter * math.pi / 2
        line, axis = (angle, 2) if abs(angle - aligned) > OBLIQUE else (aligned, quarter % 2)
        wall = Wall((x + x_to) / 2, (y + y_to) / 2, line, length, axis)
        if walls and walls[-1].follows(wall):
            walls[-1] = walls[-1].merged(wall)
        else:
            walls.append(wall)
    if len(walls) > 1 and walls[-1].follows(walls[0]):
        walls[0] = walls[0].merged(walls.pop())
    around = zip(walls[-1:] + walls[:-1], walls, walls[1:] + walls[:1], strict=True)
    return [wall for before, wall, after in around if not wall.cuts_corner(before, after)]
