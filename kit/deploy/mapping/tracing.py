"""Traces a mask band by band: components that touch across bands become one piece."""

from dataclasses import dataclass, field

import cv2
import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import shapes
from shapely.geometry import shape


@dataclass(eq=False)
class Piece:
    """A connected component of a mask: pixels that touch by their sides."""

    # the parts of its outline, one or more for each band, in pixels of the map
    polygons: list[shapely.Polygon] = field(default_factory=list)
    levels: int = 0  # sum of the probability over its pixels, each 0 to 255
    pixels: int = 0  # their number
    joined: "Piece | None" = None  # the piece that this one has been joined to

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
            piece.polygons += other.polygons
            piece.levels, piece.pixels = piece.levels + other.levels, piece.pixels + other.pixels
            other.joined = piece


class Tracer:
    """Traces a mask that comes in bands, from top to bottom."""

    def __init__(self) -> None:
        self.open: list[Piece] = []  # pieces that reach the last row
        self.last: NDArray[np.int64] | None = None  # for each pixel of that row: its piece's place in `open`, or -1

    def add(self, level: NDArray[np.uint8], mask: NDArray[np.bool_], top: int) -> list[Piece]:
        """Returns the pieces that no later band can add to.

        Args:
            level: probability, 0 to 255, (h, W).
            mask: buildings, (h, W).
            top: first row of the band.
        """
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
        fresh = _pieces(level, mask, np.asarray(labels, np.int32), count, top)
        if self.last is not None:
            touching = np.flatnonzero((self.last >= 0) & (labels[0] > 0))
            pairs = np.unique(np.stack([self.last[touching], labels[0, touching]]), axis=1)
            for above, below in pairs.T:
                self.open[above].join(fresh[below])
        ends = [label for label in np.unique(labels[-1]) if label > 0]
        alive = list(dict.fromkeys(fresh[label].whole() for label in ends))
        candidates = dict.fromkeys(piece.whole() for piece in [*self.open, *fresh.values()])
        places = {piece: place for place, piece in enumerate(alive)}
        lookup = np.full(count, -1, np.int64)
        lookup[ends] = [places[fresh[label].whole()] for label in ends]
        self.open, self.last = alive, lookup[labels[-1]]
        return [piece for piece in candidates if piece not in places]

    def close(self) -> list[Piece]:
        """Returns the pieces that reach the end."""
        last, self.open, self.last = self.open, [], None
        return last


def _pieces(
    level: NDArray[np.uint8], mask: NDArray[np.bool_], labels: NDArray[np.int32], count: int, top: int
) -> dict[int, Piece]:
    """Returns the pieces of a band by their label."""
    inside = labels[mask]
    pixels = np.bincount(inside, minlength=count)
    levels = np.bincount(inside, weights=level[mask], minlength=count)
    pieces = {label: Piece([], int(levels[label]), int(pixels[label])) for label in range(1, count)}
    for outline, label in shapes(labels, mask=mask, connectivity=4, transform=Affine.translation(0, top)):
        pieces[int(label)].polygons.append(shape(outline))
    return pieces
