"""Keeps the buildings of a map apart: simplified and squared outlines may reach into each other."""

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from kit.deploy.mapping.longitudes import POLYGON
from kit.deploy.mapping.polygons import Buildings
from kit.deploy.mapping.tracing import Piece

MARGIN_PX = 256  # a finished outline moves by less: it keeps 90 % of its area in common with the traced one
GAP_M = 0.005  # between a building and what was cut away from its neighbour: more than coordinates are rounded by
LEAST_GAP_PX = 0.01


class Apart:
    """Cuts buildings that overlap, while a map is traced band by band.

    Of two that overlap, the larger one loses what they share. Buildings are held back until no later one can reach
    them, and come out in the order in which they came in.

    Args:
        gsd_m: ground resolution of the map, m per pixel.
    """

    def __init__(self, gsd_m: float) -> None:
        self.gap_px = max(LEAST_GAP_PX, GAP_M / gsd_m)
        self.held = Buildings.joined([])

    def add(self, buildings: Buildings, row: int, open_: Sequence[Piece]) -> Buildings:
        """Takes buildings, and returns those that are settled by now.

        Args:
            buildings: in pixels of the map.
            row: the first that is not traced yet.
            open_: pieces of the mask that go on there.
        """
        first = len(self.held)
        self.held = Buildings.joined([self.held, buildings])
        self._cut(first)
        bounds = shapely.bounds(self.held.polygons)  # NaN for what vanished
        waits = bounds[:, 3] > row - MARGIN_PX
        if open_:
            boxes = [shapely.total_bounds(piece.polygons) for piece in open_ if piece.polygons]
            around = shapely.buffer(shapely.box(*np.transpose(boxes)), MARGIN_PX, join_style="mitre")
            waits[shapely.STRtree(self.held.polygons).query(around)[1]] = True
        settled = int(waits.argmax()) if waits.any() else len(waits)
        return self._released(settled)

    def last(self, buildings: Buildings) -> Buildings:
        """Takes the last buildings, and returns all that are held back."""
        first = len(self.held)
        self.held = Buildings.joined([self.held, buildings])
        self._cut(first)
        return self._released(len(self.held))

    def separated(self, buildings: Buildings) -> NDArray[np.object_]:
        """Returns the polygons of all buildings, (n,), none overlapping; None for one of which nothing is left."""
        self.held = Buildings.joined([buildings])
        self._cut(0)
        return self.held.polygons

    def _released(self, number: int) -> Buildings:
        settled, self.held = self.held[:number], self.held[number:]
        return settled[~shapely.is_missing(settled.polygons)]

    def _cut(self, first: int) -> None:
        """Cuts what overlaps among the buildings held back, of which those from `first` on are new."""
        polygons = self.held.polygons
        new, other = shapely.STRtree(polygons).query(polygons[first:], predicate="intersects")
        new += first
        once = other < new
        pairs = np.stack([new[once], other[once]], axis=1)
        shared = shapely.area(shapely.intersection(polygons[pairs[:, 0]], polygons[pairs[:, 1]]))
        areas = shapely.area(polygons)
        for pair in pairs[shared > 0]:
            small, large = sorted(pair.tolist(), key=lambda place: (areas[place], place))
            polygons[large] = self._without(polygons[large], polygons[small])

    def _without(self, large: shapely.Polygon | None, small: shapely.Polygon | None) -> shapely.Polygon | None:
        """Returns the largest part of a polygon outside of another; None where nothing is left."""
        if large is None or small is None:
            return large
        left = shapely.difference(large, shapely.buffer(small, self.gap_px, join_style="mitre"))
        parts = [part for part in shapely.get_parts(left) if shapely.get_type_id(part) == POLYGON and not part.is_empty]
        return max(parts, key=shapely.area, default=None)
