"""Right angles: walls turned into the two directions that most of a building's outline follows.

Own method, after the usual steps of building regularisation: a dominant direction from the angles of the edges, modulo
90 degrees and weighted by their length; edges near one of its two axes are laid on lines along it, others keep theirs;
corners are where neighbouring lines meet.
"""

import cmath
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely
from numpy.typing import NDArray

SLANTED = math.radians(25)  # an edge that is further from both axes is meant to be oblique
SHORTEST = (6.0, 3.0, 1.0, 0.0)  # edges that are no walls, in tolerances of the simplification: the most that holds
CHAMFER = 1 / 3  # an oblique edge that is shorter than this share of both its neighbours is a corner, cut off
ALIKE = 0.9  # intersection over union with the outline that came in: below, the squared one is not taken


@dataclass(frozen=True)
class Wall:
    """A line that edges of an outline lie on.

    Args:
        x: of a point on it, m.
        y: likewise.
        angle: of its direction, radians.
        length: of the edges together, m.
        axis: 0 or 1 for a line along the first or second axis, 2 for others.
    """

    x: float
    y: float
    angle: float
    length: float
    axis: int

    def follows(self, other: "Wall") -> bool:
        """Whether both lie along one axis, and lead the same way."""
        return self.axis == other.axis < 2 and math.cos(self.angle - other.angle) > 0

    def cuts_corner(self, before: "Wall", after: "Wall") -> bool:
        """Whether this is a short oblique edge between long ones along both axes."""
        short = self.length < CHAMFER * min(before.length, after.length)
        return self.axis == 2 and {before.axis, after.axis} == {0, 1} and short

    def with_(self, other: "Wall") -> "Wall":
        """Returns the line between both, nearer to the longer one."""
        length = self.length + other.length
        x, y = ((self.length * a + other.length * b) / length for a, b in ((self.x, other.x), (self.y, other.y)))
        return Wall(x, y, self.angle, length, self.axis)

    def meets(self, other: "Wall") -> tuple[float, float] | None:
        """Returns where both lines cross; None where they are nearly parallel."""
        turn = math.sin(other.angle - self.angle)
        if abs(turn) < math.sin(SLANTED) / 2:
            return None
        along = ((other.x - self.x) * math.sin(other.angle) - (other.y - self.y) * math.cos(other.angle)) / turn
        return self.x + along * math.cos(self.angle), self.y + along * math.sin(self.angle)


def square(polygon: shapely.Polygon, tolerance_m: float) -> shapely.Polygon:
    """Returns a polygon with right angles where its outline allows; as it is, where that would change its shape.

    Args:
        polygon: in metres, simplified.
        tolerance_m: that it was simplified with.
    """
    direction = main_direction(polygon)
    for shortest in SHORTEST:
        rings = [squared_ring(ring, direction, shortest * tolerance_m) for ring in _rings(polygon)]
        if rings[0] is None:
            continue
        olds = zip(rings[1:], polygon.interiors, strict=True)
        holes = [np.asarray(old.coords) if new is None else new for new, old in olds]
        made = shapely.Polygon(rings[0], holes)
        if made.is_valid and not made.is_empty and _alike(made, polygon) >= ALIKE:
            return made
    return polygon


def _rings(polygon: shapely.Polygon) -> list[shapely.LinearRing]:
    return [polygon.exterior, *polygon.interiors]


def _alike(first: shapely.Polygon, second: shapely.Polygon) -> float:
    """Returns intersection over union."""
    shared = first.intersection(second).area
    return float(shared / (first.area + second.area - shared))


def main_direction(polygon: shapely.Polygon) -> float:
    """Returns the angle of a polygon's first axis, radians; the second one is at right angles to it."""
    steps = np.concatenate([np.diff(np.asarray(ring.coords), axis=0) for ring in _rings(polygon)])
    numbers = steps[:, 0] + 1j * steps[:, 1]
    lengths = np.maximum(np.abs(numbers), 1e-12)
    return cmath.phase(complex((lengths * (numbers / lengths) ** 4).sum())) / 4


def squared_ring(ring: shapely.LinearRing, direction: float, shortest_m: float) -> NDArray[np.float64] | None:
    """Returns the corners of a squared ring, (n, 2), not closed; None where it has none.

    Args:
        ring: in metres.
        direction: of the first axis, radians.
        shortest_m: edges below are passed over, and their neighbours meet.
    """
    walls = _walls(np.asarray(ring.coords), direction, shortest_m)
    corners = [before.meets(wall) for before, wall in zip(walls[-1:] + walls[:-1], walls, strict=True)]
    if len(corners) < 4 or None in corners:
        return None
    return np.array(corners, np.float64)


def _walls(corners: NDArray[np.float64], direction: float, shortest_m: float) -> list[Wall]:
    """Returns the lines around a closed ring of corners, (n, 2)."""
    walls: list[Wall] = []
    for (x, y), (x_to, y_to) in pairwise(corners):
        length = math.hypot(x_to - x, y_to - y)
        if length <= max(shortest_m, 1e-9):
            continue
        angle = math.atan2(y_to - y, x_to - x)
        quarter = round((angle - direction) / (math.pi / 2))
        upright = direction + quarter * math.pi / 2
        slanted = abs(angle - upright) > SLANTED
        lies, axis = (angle, 2) if slanted else (upright, quarter % 2)
        wall = Wall((x + x_to) / 2, (y + y_to) / 2, lies, length, axis)
        if walls and walls[-1].follows(wall):
            walls[-1] = walls[-1].with_(wall)
        else:
            walls.append(wall)
    if len(walls) > 1 and walls[-1].follows(walls[0]):
        walls[0] = walls[0].with_(walls.pop())
    around = zip(walls[-1:] + walls[:-1], walls, walls[1:] + walls[:1], strict=True)
    return [wall for before, wall, after in around if not wall.cuts_corner(before, after)]
