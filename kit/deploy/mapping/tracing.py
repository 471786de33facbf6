"""Buildings of a mask as polygons, band by band: pieces that touch across bands are one."""

from collections.abc import Iterable
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
    """Pixels of a building that hang together by their sides.

    Args:
        polygons: they are made of, in pixels of the map.
        levels: sum of their probability, 0 to 255 each.
        pixels: how many.
        joined: the piece that this one has become a part of.
    """

    polygons: list[shapely.Polygon] = field(default_factory=list)
    levels: int = 0
    pixels: int = 0
    joined: "Piece | None" = None

    def whole(self) -> "Piece":
        """Returns the piece that this one belongs to by now."""
        piece = self
        while piece.joined is not None:
            piece = piece.joined
        return piece

    def join(self, other: "Piece") -> None:
        """Takes another piece in, with all that it has become part of."""
        piece, other = self.whole(), other.whole()
        if piece is not other:
            piece.polygons += other.polygons
            piece.levels, piece.pixels = piece.levels + other.levels, piece.pixels + other.pixels
            other.joined = piece


class Tracer:
    """Traces a mask that comes band by band, from top to bottom.

    Args:
        smallest_px: pieces of fewer pixels are left out.
    """

    def __init__(self, smallest_px: float) -> None:
        self.smallest_px = smallest_px
        self.open: list[Piece] = []  # that touch the last row
        self.last: NDArray[np.int64] | None = None  # of each pixel there: its piece's place in `open`; -1 background

    def add(self, level: NDArray[np.uint8], mask: NDArray[np.bool_], top: int) -> list[Piece]:
        """Returns the pieces that no later band can add to.

        Args:
            level: probability, 0 to 255, (h, W).
            mask: buildings, (h, W).
            top: the band's first row.
        """
        count, labels = _labelled(mask)
        fresh = self._pieces(level, mask, labels, count, top)
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
        return self._kept(piece for piece in candidates if piece not in places)

    def close(self) -> list[Piece]:
        """Returns the pieces that reach the end."""
        last, self.open, self.last = self.open, [], None
        return self._kept(last)

    def _kept(self, pieces: Iterable[Piece]) -> list[Piece]:
        return [piece for piece in pieces if piece.pixels >= self.smallest_px]

    def _pieces(
        self, level: NDArray[np.uint8], mask: NDArray[np.bool_], labels: NDArray[np.int32], count: int, top: int
    ) -> dict[int, Piece]:
        """Returns the pieces of a band by their label; small ones that touch neither of its ends are left out."""
        inside = labels[mask]
        pixels = np.bincount(inside, minlength=count)
        levels = np.bincount(inside, weights=level[mask], minlength=count)
        kept = pixels >= self.smallest_px
        kept[labels[0]] = kept[labels[-1]] = True
        kept[0] = False
        found = {int(label): Piece([], int(levels[label]), int(pixels[label])) for label in np.flatnonzero(kept)}
        outlines = shapes(labels, mask=kept[labels], connectivity=4, transform=Affine.translation(0, top))
        for outline, label in outlines:
            found[int(label)].polygons.append(shape(outline))
        return found


def _labelled(mask: NDArray[np.bool_]) -> tuple[int, NDArray[np.int32]]:
    """Returns how many labels there are, and that of each pixel, (h, W): 0 background, else its piece."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    return count, np.asarray(labels, np.int32)
