"""The place of tiles on the ground: overlaps, distances, blocks.

Tiles of all scenes are compared in one frame, EPSG:3857, whatever CRS they were cut in: a tile keeps straight sides
there, and a metre of the frame times the cosine of the latitude is a metre on the ground, to within 0.7 %. Where tiles
lie on both sides of 180 degrees, the western half is shifted by 360 degrees.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import CRSError, ProjError

from kit.errors import DataError

FRAME = "EPSG:3857"
EARTH_M = 6378137.0  # radius of its sphere
WORLD_M = 2 * np.pi * EARTH_M  # width of the frame
NEAR_180_M = 100_000.0  # of the frame: tiles this near to 180 degrees, on both sides, are neighbours
SQUARE = ["left", "bottom", "right", "top"]  # of a tile, in the index; in units of its `crs`
TOUCHING = 1e-6  # of a tile's area: neighbours overlap by rounding errors
STRETCH = 0.01  # of a distance: the frame is true to 0.7 %, UTM's metres to 0.1 %

Pairs = NDArray[np.int64]  # (P, 2), rows of the index


@dataclass(frozen=True)
class Ground:
    """The tiles of an index on the ground, one row per tile; lengths in metres of EPSG:3857 unless noted."""

    squares: NDArray[np.object_]  # outlines, None for a tile without georeference; (n,)
    centres: NDArray[np.float64]  # x and y, NaN without georeference; (n, 2)
    sides_m: NDArray[np.float64]  # the shorter side, metres on the ground; NaN without georeference; (n,)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether it is known where a tile lies; (n,)."""
        return np.isfinite(self.sides_m)

    def overlapping(self, labels: NDArray[np.int64]) -> Pairs:
        """Returns the pairs of tiles of different labels that overlap; negative labels are ignored."""
        pairs = self._candidates(labels, np.zeros(len(labels)))
        first, second = self.squares[pairs.T]
        areas = shapely.area(self.squares)
        shared: NDArray[np.float64] = shapely.area(shapely.intersection(first, second))
        return pairs[np.flatnonzero(shared > TOUCHING * areas[pairs].min(axis=1))]

    def near(self, labels: NDArray[np.int64], gap_m: NDArray[np.float64]) -> Pairs:
        """Returns the pairs of tiles of different labels that are nearer than the larger of their gaps.

        Args:
            labels: negative ones are ignored; (n,).
            gap_m: of each tile, metres on the ground, with a tolerance of a hundredth; (n,).
        """
        gap = gap_m * _stretch(self.centres[:, 1])
        pairs = self._candidates(labels, gap)
        first, second = self.squares[pairs.T]
        apart: NDArray[np.float64] = shapely.distance(first, second)
        return pairs[np.flatnonzero(apart < (1 - STRETCH) * gap[pairs].max(axis=1))]

    def _candidates(self, labels: NDArray[np.int64], reach: NDArray[np.float64]) -> Pairs:
        """Returns the pairs of different labels whose bounding boxes meet when one is widened by its reach."""
        rows = np.flatnonzero(self.known & (labels >= 0))
        left, bottom, right, top = shapely.bounds(self.squares[rows]).T
        wide = shapely.box(left - reach[rows], bottom - reach[rows], right + reach[rows], top + reach[rows])
        pairs = rows[shapely.STRtree(self.squares[rows]).query(wide)]  # (2, P), most pairs twice
        pairs = np.sort(pairs[:, labels[pairs[0]] != labels[pairs[1]]], axis=0)
        once = np.unique(pairs[0] * len(labels) + pairs[1])
        return np.stack(np.divmod(once, len(labels)), axis=1)

    def blocks(self, side_m: float) -> NDArray[np.int64]:
        """Returns the row and column (n, 2) of the block that holds each tile's centre.

        Blocks depend only on their side: rows are counted from the equator, columns from Greenwich. Columns are
        `side_m` wide on the ground in the middle of their row, so that rows are offset like bricks.
        """
        x, y = self.centres.T
        row = np.floor(_latitude(y) * EARTH_M / side_m)
        column = np.floor(x * np.cos((row + 0.5) * side_m / EARTH_M) / side_m)
        return np.stack([row, column], axis=1).astype(np.int64)


def lay_out(index: pd.DataFrame) -> Ground:
    """Returns where the tiles of an index lie: those without `crs left bottom right top` have no place.

    Raises:
        DataError: a coordinate system is unknown, or a tile lies outside of it or near a pole.
    """
    corners = np.full((len(index), 4, 2), np.nan)
    if {"crs", *SQUARE} <= set(index.columns):
        names = np.where(index["crs"].isna(), "", index["crs"].astype(str))
        bounds = index[SQUARE].to_numpy(float)
        there = (names != "") & np.isfinite(bounds).all(axis=1)
        for name in np.unique(names[there]):
            rows = np.flatnonzero(there & (names == name))
            left, bottom, right, top = bounds[rows].T
            x, y = np.stack([left, right, right, left]), np.stack([bottom, bottom, top, top])
            corners[rows] = np.stack(_to_frame(name, x, y)).transpose(2, 1, 0)
            lost = ~np.isfinite(corners[rows]).all(axis=(1, 2))
            if lost.any():
                tile = index["tile"].iloc[rows[lost][0]]
                raise DataError(f"tile {tile} lies nowhere on the ground in {name}", "check its scene's georeference")
    known = np.isfinite(corners).all(axis=(1, 2))
    corners[known] = _joined_at_180(corners[known])
    squares = np.full(len(index), None, object)
    squares[known] = shapely.polygons(corners[known])
    centres = corners.mean(axis=1)
    edges = np.linalg.norm(corners[:, 1:3] - corners[:, 0:2], axis=2)  # (n, 2)
    return Ground(squares, centres, edges.min(axis=1) / _stretch(centres[:, 1]))


def _to_frame(crs: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Returns x and y in the frame, infinite where they have no place there."""
    try:
        change = pyproj.Transformer.from_crs(crs, FRAME, always_xy=True)
        return tuple(np.reshape(part, x.shape) for part in change.transform(x.ravel(), y.ravel()))
    except (CRSError, ProjError) as cause:
        raise DataError(
            f"tiles are in {crs}, which has no place on the earth: {cause}", "reproject the scene"
        ) from cause


def _joined_at_180(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns corners, (n, 4, 2), such that tiles on both sides of 180 degrees are neighbours."""
    x = corners[..., 0].copy()
    torn = np.ptp(x, axis=1) > WORLD_M / 2
    x[torn[:, None] & (x < 0)] += WORLD_M
    centres = x.mean(axis=1)
    edge = WORLD_M / 2 - NEAR_180_M
    if torn.any() or ((centres > edge).any() and (centres < -edge).any()):
        x[centres < -WORLD_M / 4] += WORLD_M
    return np.stack([x, corners[..., 1]], axis=2)


def _latitude(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the latitude of a y of the frame, radians."""
    return np.arctan(np.sinh(y / EARTH_M))


def _stretch(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns how many metres of the frame a metre on the ground is: 1 / cos(latitude)."""
    return np.cosh(y / EARTH_M)
