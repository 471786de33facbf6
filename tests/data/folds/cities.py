"""Indices of tiles on the ground, without images, and slow but plain ways to look at them."""

import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyproj
import shapely
from factories import LATITUDE, LONGITUDE, MERCATOR, UTM
from hypothesis import strategies as st
from numpy.typing import NDArray

SIDES = {UTM: 100.0, MERCATOR: 40075016.685578488 / 2**19}  # of a tile, in units of the CRS
COLUMNS = ["tile", "area", "scene", "crs", "left", "bottom", "right", "top", "valid_fraction", "building_fraction"]


def scene(
    name: str,
    columns: int,
    rows: int,
    x: float = 0.0,
    y: float = 0.0,
    crs: str = UTM,
    step: float = 1.0,
    side: float = 0.0,
    at: tuple[float, float] = (LONGITUDE, LATITUDE),
    valid: Iterable[float] = (1.0,),
) -> pd.DataFrame:
    """Returns the index of scene `area/name`: tiles `step` sides apart, the first (x, y) sides from the place `at`."""
    area, _, short = name.partition("/")
    side = side or SIDES.get(crs, 100.0)
    left, top = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(*at)
    left, top = left + x * side, top + y * side
    fractions = itertools.cycle(valid)
    made = []
    for row, column in np.ndindex(rows, columns):
        west, north = left + column * step * side, top - row * step * side
        square = (west, north - side, west + side, north)
        made.append((f"{area}_{short}_r{row}_c{column}", area, short, crs, *square, next(fractions), 0.2))
    return pd.DataFrame(made, columns=COLUMNS)


def city(*scenes: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(scenes, ignore_index=True)


@st.composite
def cities(draw: st.DrawFn) -> pd.DataFrame:
    """Scenes of two CRSs and three areas, on one grid or off it, beside and on each other."""
    scenes = []
    for number in range(draw(st.integers(2, 5))):
        offset = st.one_of(st.integers(-6, 6).map(float), st.floats(-6, 6))
        scenes.append(
            scene(
                f"area{draw(st.integers(0, 2))}/s{number}",
                *(draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(offset), draw(offset)),
                crs=draw(st.sampled_from([UTM, MERCATOR])),
                step=draw(st.sampled_from([1.0, 0.75, 0.5])),
                valid=draw(st.lists(st.sampled_from([1.0, 0.6, 0.02]), min_size=1, max_size=7)),
            )
        )
    return city(*scenes)


def in_utm(index: pd.DataFrame) -> NDArray[np.object_]:
    """Returns the tiles' outlines in UTM, densified: straight lines of one system are bent in another."""
    outlines = shapely.segmentize(shapely.box(*index[["left", "bottom", "right", "top"]].to_numpy().T), 20.0)
    for crs in set(index["crs"]):
        change = pyproj.Transformer.from_crs(crs, UTM, always_xy=True).transform
        rows = np.flatnonzero(index["crs"] == crs)
        outlines[rows] = shapely.transform(outlines[rows], change, interleaved=False)
    return outlines


def overlaps(index: pd.DataFrame, share: float) -> set[tuple[int, int]]:
    """Returns the pairs of rows that share more than a part of the smaller tile: each is held against each."""
    tiles = in_utm(index)
    areas = shapely.area(tiles)
    shared = shapely.area(shapely.intersection(tiles[:, None], tiles[None]))
    return _pairs(shared > share * np.minimum(areas[:, None], areas[None]))


def nearer(index: pd.DataFrame, gap_m: float) -> set[tuple[int, int]]:
    """Returns the pairs of rows whose tiles are nearer than a gap: likewise."""
    tiles = in_utm(index)
    return _pairs(shapely.distance(tiles[:, None], tiles[None]) < gap_m)


def _pairs(table: NDArray[np.bool_]) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for i, j in np.argwhere(np.triu(table, 1))}
