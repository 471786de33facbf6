"""The ground plan of a scene: streets, houses, yards, fields, trees. `kit.sample.drawing` paints it.

Coordinates are pixels of the scene, x to the right and y down. The pixel in row r and column c has its centre at
(c + 0.5, r + 0.5).
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import shapely
from shapely import LineString, Polygon
from shapely.affinity import rotate, translate
from shapely.geometry import box

GSD_M = 0.075  # metres per pixel, close to that of z19 tiles of 1024 px
M = 1 / GSD_M  # pixels per metre

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Look:
    """The appearance of an area."""

    earth: tuple[Colour, ...]  # colours (RGB, 0-255) of bare ground, blended by noise
    grass: tuple[Colour, ...]  # colours (RGB) of grass and crops, blended by noise
    # roof material (a key of `paint.MATERIALS`) -> weight; yards and plots draw from the same ones
    materials: dict[str, float]
    green: float  # share of the open ground that is grassy, 0..1
    gap_m: tuple[float, float]  # smallest and largest gap between neighbouring houses in a row, metres
    open_blocks: float  # share of street blocks without houses, 0..1
    trees: float  # trees per hectare
    asphalt: float  # share of streets that are asphalted, 0..1


@dataclass(frozen=True)
class Wing:
    """A rectangle of a roof, px. The ridge runs along `length`, at `angle` radians from the x axis."""

    x: float
    y: float
    angle: float
    length: float
    width: float

    def outline(self) -> Polygon:
        """The rectangle as a polygon, px."""
        flat = box(-self.length / 2, -self.width / 2, self.length / 2, self.width / 2)
        return translate(rotate(flat, self.angle, origin=(0, 0), use_radians=True), self.x, self.y)


@dataclass(frozen=True)
class House:
    """A roof of one or two wings."""

    wings: tuple[Wing, ...]  # the main wing first
    roof: str  # `gable`, `hip`, `lean` (one slope) or `flat`
    height_m: float  # sets the length of the shadow
    outline: Polygon  # the union of the wings, px: the footprint


@dataclass(frozen=True)
class Street:
    """A street's centre line, px, its width, px, and whether it is asphalted."""

    line: LineString
    width: float
    asphalt: bool


@dataclass
class CityPlan:
    """The ground plan of a scene."""

    streets: list[Street] = field(default_factory=list)  # the grid, with crossings
    houses: list[House] = field(default_factory=list)  # at least `CLEAR_M` apart and off the streets
    yards: list[Wing] = field(default_factory=list)  # the ground around houses
    fields: list[Wing] = field(default_factory=list)  # the plots of blocks without houses
    # (N, 3) float: x, y, crown radius, px
    trees: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 3)))


CLEAR_M = 1.2  # smallest distance between two roofs, and between a roof and a street
TRIES = 4  # houses tried at one place before it stays empty
BLOCK_DEPTH_M = 34.0  # two rows of houses, back to back


def plan_scene(rng: np.random.Generator, look: Look, height: int, width: int) -> CityPlan:
    """Returns the ground plan of a scene of `height` x `width` px."""
    turn = rng.uniform(0, np.pi / 2)
    plan = CityPlan()
    reach = np.hypot(height, width) / 2 + 5 * M
    across = _stations(rng, reach, BLOCK_DEPTH_M + 5, BLOCK_DEPTH_M + 10)
    along = _stations(rng, reach, 55, 85)
    middle = np.array([width / 2, height / 2])
    for v in across:
        plan.streets.append(_street(rng, look, middle, turn, float(v), reach))
    for u in along:
        plan.streets.append(_street(rng, look, middle, turn + np.pi / 2, -float(u), reach))
    lanes = shapely.union_all([street.line.buffer(street.width / 2) for street in plan.streets])
    shapely.prepare(lanes)
    frame = box(0, 0, width, height)
    for v0, v1 in pairwise(across):
        for u0, u1 in pairwise(along):
            block = _Block(middle, turn, float(u0), float(u1), float(v0), float(v1))
            if not block.outline().intersects(frame):
                continue
            if rng.random() < look.open_blocks:
                plan.fields.extend(_open_plots(rng, block))
            else:
                _settle(rng, look, block, plan, lanes, frame)
    plan.trees = _trees(rng, look, plan, lanes, height, width)
    return plan


@dataclass(frozen=True)
class _Block:
    """The ground between four streets, in the rotated frame of the street grid (u along, v across), px."""

    middle: npt.NDArray[np.float64]
    turn: float
    u0: float
    u1: float
    v0: float
    v1: float

    def at(self, u: float, v: float) -> tuple[float, float]:
        """Returns the scene's x, y."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return float(self.middle[0] + u * cos - v * sin), float(self.middle[1] + u * sin + v * cos)

    def wing(self, u: float, v: float, turn: float, length: float, width: float) -> Wing:
        """Returns a rectangle at u, v, rotated by `turn` against the street grid."""
        return Wing(*self.at(u, v), self.turn + turn, length, width)

    def outline(self) -> Polygon:
        """The block as a polygon, px."""
        corners = ((self.u0, self.v0), (self.u1, self.v0), (self.u1, self.v1), (self.u0, self.v1))
        return Polygon([self.at(u, v) for u, v in corners])


def _stations(rng: np.random.Generator, reach: float, least_m: float, most_m: float) -> npt.NDArray[np.float64]:
    """Returns offsets of parallel streets from -reach to reach, px."""
    steps = rng.uniform(least_m, most_m, int(2 * reach / (least_m * M)) + 2) * M
    return -reach - rng.uniform(0, least_m) * M + np.cumsum(steps)


def _street(
    rng: np.random.Generator, look: Look, middle: npt.NDArray[np.float64], turn: float, offset: float, reach: float
) -> Street:
    s = np.linspace(-1.1 * reach, 1.1 * reach, 60)
    sway = rng.uniform(0.3, 1.2) * M * np.sin(s / (rng.uniform(15, 35) * M) + rng.uniform(0, 6.3))
    x = middle[0] + s * np.cos(turn) - (offset + sway) * np.sin(turn)
    y = middle[1] + s * np.sin(turn) + (offset + sway) * np.cos(turn)
    return Street(LineString(np.column_stack([x, y])), rng.uniform(3.5, 7.0) * M, bool(rng.random() < look.asphalt))


def _open_plots(rng: np.random.Generator, block: _Block) -> list[Wing]:
    """Returns the fields and courts that fill a block without houses."""
    plots = []
    u = block.u0 + 4 * M
    while u < block.u1 - 10 * M:
        length = min(rng.uniform(14, 40) * M, block.u1 - 3 * M - u)
        parts = 1 if rng.random() < 0.4 else 2
        depth = (block.v1 - block.v0 - 8 * M) / parts
        for part in range(parts):
            v = block.v0 + 4 * M + (part + 0.5) * depth
            plots.append(
                block.wing(u + length / 2, v, rng.normal(0, 0.04), length * 1.02, depth * rng.uniform(0.8, 1.0))
            )
        u += length + rng.uniform(0, 2) * M
    return plots


def _settle(
    rng: np.random.Generator, look: Look, block: _Block, plan: CityPlan, lanes: shapely.Geometry, frame: Polygon
) -> None:
    """Adds two rows of houses with yards to the plan."""
    row_depth = (block.v1 - block.v0) / 2
    for row in (0, 1):
        v = block.v0 + (0.55 if row == 0 else 1.45) * row_depth
        u = block.u0 + rng.uniform(3, 6) * M
        while u < block.u1 - 7 * M:
            tries = (_house(rng, block, u, v) for _ in range(TRIES))
            house = next((house for house in tries if _fits(house.outline, plan.houses, lanes)), None)
            step = house.wings[0].length if house else 5 * M
            if rng.random() < 0.8:
                yard = block.wing(
                    u + step / 2 + rng.normal(0, 1.5) * M, v + rng.normal(0, 1.5) * M, rng.normal(0, 0.05),
                    step * rng.uniform(1.1, 1.5), row_depth * rng.uniform(0.75, 1.0),
                )  # fmt: skip
                plan.yards.append(yard)
            if house and house.outline.intersects(frame):
                plan.houses.append(house)
            u += step + rng.uniform(*look.gap_m) * M


def _house(rng: np.random.Generator, block: _Block, u: float, v: float) -> House:
    """Returns a house whose main wing starts at u, in row v."""
    shed = rng.random() < 0.08
    length = (rng.uniform(4.5, 6.5) if shed else rng.uniform(9, 20)) * M
    width = (rng.uniform(4, 5) if shed else min(rng.uniform(7, 11), length / M)) * M
    turn = rng.normal(0, 0.05) + (np.pi if rng.random() < 0.5 else 0)
    main = block.wing(u + length / 2, v + rng.normal(0, 1.0) * M, turn, length, width)
    wings = (main, _side_wing(rng, main)) if not shed and length > 11 * M and rng.random() < 0.45 else (main,)
    roof = str(rng.choice(["gable", "hip", "lean", "flat"], p=[0.48, 0.30, 0.08, 0.14])) if not shed else "lean"
    roof = "gable" if roof == "lean" and len(wings) == 2 else roof
    height_m = rng.uniform(2.6, 3.2) if shed else rng.uniform(3.2, 4.6) + (1.5 if roof == "flat" else 0)
    return House(wings, roof, height_m, shapely.union_all([wing.outline() for wing in wings]))


def _side_wing(rng: np.random.Generator, main: Wing) -> Wing:
    """Returns a wing at a right angle to the main one, flush with one of its ends: the roof becomes L-shaped."""
    width = min(rng.uniform(0.75, 1.0) * main.width, main.length * 0.55)
    out = main.width / 2 + rng.uniform(3, 6) * M  # from the main ridge to the wing's gable
    side = 1 if rng.random() < 0.5 else -1
    a, b = main.length / 2 - width / 2, side * out / 2
    cos, sin = np.cos(main.angle), np.sin(main.angle)
    x, y = float(main.x + a * cos - b * sin), float(main.y + a * sin + b * cos)
    return Wing(x, y, main.angle + np.pi / 2, out, width)


def _fits(outline: Polygon, houses: list[House], lanes: shapely.Geometry) -> bool:
    """Returns whether a roof is at least `CLEAR_M` from streets and other roofs."""
    if lanes.intersects(outline.buffer(CLEAR_M * M)):
        return False
    return not houses or float(shapely.distance([house.outline for house in houses], outline).min()) > CLEAR_M * M


def _trees(
    rng: np.random.Generator, look: Look, plan: CityPlan, lanes: shapely.Geometry, height: int, width: int
) -> npt.NDArray[np.float64]:
    """Returns x, y and radius of trees, px, (N, 3); at most a fifth of a crown's radius covers a street or roof."""
    n = int(look.trees * height * width * GSD_M**2 / 1e4)
    trees = np.column_stack([rng.uniform(0, width, n), rng.uniform(0, height, n), rng.uniform(1.2, 4.2, n) * M])
    blocked = shapely.union_all([lanes, *(house.outline for house in plan.houses)])
    clear = shapely.distance(shapely.points(trees[:, :2]), blocked)
    kept: npt.NDArray[np.float64] = trees[clear > 0.8 * trees[:, 2]]
    return kept
