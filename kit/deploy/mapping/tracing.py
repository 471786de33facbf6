"""Traces buildings band by band: those that touch across bands become one piece, with a part for each building."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import shapes
from shapely.geometry import shape

WHOLE = 0  # number of the only building of a piece, where buildings are not told apart
COARSEST = 16  # the anchor is looked for on grids of 2**16 px and finer
Anchor = tuple[int, int, int]  # how many times 2 divides row and column, then -row and -column: the largest wins


@dataclass(eq=False)
class Footprint:
    """The pixels of one building."""

    # the parts of its outline, one or more for each band, in pixels of the map
    polygons: list[shapely.Polygon] = field(default_factory=list)
    levels: int = 0  # sum of the probability over its pixels, each 0 to 255
    pixels: int = 0  # their number
    # the pixel that stands for the building: the first one on the coarsest grid of 2**k px that it covers, so that a
    # few other pixels along its outline seldom change it
    anchor: Anchor = (-1, 0, 0)

    def add(self, other: "Footprint") -> None:
        """Adds the pixels of another band."""
        self.polygons += other.polygons
        self.levels, self.pixels = self.levels + other.levels, self.pixels + other.pixels
        self.anchor = max(self.anchor, other.anchor)


@dataclass(eq=False)
class Piece:
    """A connected component of a mask, pixels that touch by their sides: one building, or several that touch."""

    buildings: dict[int, Footprint] = field(default_factory=dict)  # by their number
    joined: "Piece | None" = None  # the piece that this one has been joined to

    @property
    def polygons(self) -> list[shapely.Polygon]:
        """The parts of all outlines."""
        return [polygon for building in self.buildings.values() for polygon in building.polygons]

    def whole(self) -> "Piece":
        """Returns the piece that this one is part of by now."""
        piece = self
        while piece.joined is not None:
            piece = piece.joined
        return piece

    def join(self, other: "Piece") -> None:
        """Joins another piece, with all that it is part of, to this one."""
        piece, other = self.whole(), other.whole()
        if piece is not other:
            for number, building in other.buildings.items():
                piece.buildings.setdefault(number, Footprint()).add(building)
            other.joined = piece


class Tracer:
    """Traces a mask, or the buildings in it, that come in bands from top to bottom."""

    def __init__(self) -> None:
        self.open: list[Piece] = []  # pieces that reach the last row
        self.last: NDArray[np.int64] | None = None  # for each pixel of that row: its piece's place in `open`, or -1

    def add(self, level: NDArray[np.uint8], buildings: NDArray[np.bool_] | NDArray[np.int32], top: int) -> list[Piece]:
        """Returns the pieces that no later band can add to.

        Args:
            level: probability, 0 to 255, (h, W).
            buildings: a mask, (h, W) bool: each connected component is one building. Or the number of the building
                of each pixel, (h, W) int32, 0 outside: unique in the scene, equal in all bands that a building crosses.
            top: first row of the band.
        """
        count, labels = cv2.connectedComponents((buildings != 0).astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
        labels = np.asarray(labels, np.int32)
        fresh = [Piece() for _ in range(count)]
        if buildings.dtype == np.bool_:
            for label, building in footprints(level, labels, top):
                fresh[label].buildings[WHOLE] = building
        else:
            piece_of = np.zeros(int(buildings.max(initial=0)) + 1, np.int32)
            piece_of[buildings] = labels
            for number, building in footprints(level, np.asarray(buildings, np.int32), top):
                fresh[piece_of[number]].buildings[number] = building
        if self.last is not None:
            touching = np.flatnonzero((self.last >= 0) & (labels[0] > 0))
            pairs = np.unique(np.stack([self.last[touching], labels[0, touching]]), axis=1)
            for above, below in pairs.T:
                self.open[above].join(fresh[below])
        ends = [label for label in np.unique(labels[-1]) if label > 0]
        alive = list(dict.fromkeys(fresh[label].whole() for label in ends))
        candidates = dict.fromkeys(piece.whole() for piece in [*self.open, *fresh[1:]])
        places = {piece: place for place, piece in enumerate(alive)}
        lookup = np.full(count, -1, np.int64)
        lookup[ends] = [places[fresh[label].whole()] for label in ends]
        self.open, self.last = alive, lookup[labels[-1]]
        return [piece for piece in candidates if piece not in places]

    def close(self) -> list[Piece]:
        """Returns the pieces that reach the end."""
        last, self.open, self.last = self.open, [], None
        return last


def footprints(
    level: NDArray[np.uint8], labels: NDArray[np.int32], top: int, left: int = 0
) -> Iterator[tuple[int, Footprint]]:
    """Yields the label and the pixels of each building in a part of a map.

    Args:
        level: probability, 0 to 255, (h, w).
        labels: the building of each pixel, (h, w), 0 outside.
        top: row of the map at which the part begins.
        left: its column.
    """
    mask = labels > 0
    inside = labels[mask]
    pixels = np.bincount(inside, minlength=1)
    levels = np.bincount(inside, weights=level[mask], minlength=1)
    anchors = _anchors(labels, (top, left), pixels)
    found = {int(label): Footprint([], int(levels[label]), int(pixels[label])) for label in np.flatnonzero(pixels)}
    for outline, label in shapes(labels, mask=mask, connectivity=4, transform=Affine.translation(left, top)):
        found[int(label)].polygons.append(shape(outline))
    for label, building in found.items():
        building.anchor = anchors[label]
        yield label, building


def _anchors(labels: NDArray[np.int32], corner: tuple[int, int], pixels: NDArray[np.int64]) -> dict[int, Anchor]:
    """Returns the anchor of each label in a part of a map, given the number of pixels of each."""
    anchors: dict[int, Anchor] = {}
    missing = pixels > 0
    for power in range(COARSEST, -1, -1):
        step = 1 << power
        first_row, first_column = (-start % step for start in corner)
        grid = labels[first_row::step, first_column::step]
        width, grid = grid.shape[1], grid.ravel()
        places = np.flatnonzero(missing[grid])
        found, first = np.unique(grid[places], return_index=True)
        for label, place in zip(found.tolist(), places[first].tolist(), strict=True):
            row, column = divmod(place, width)
            anchors[label] = power, -(corner[0] + first_row + row * step), -(corner[1] + first_column + column * step)
        missing[found] = False
        if not missing.any():
            break
    return anchors
