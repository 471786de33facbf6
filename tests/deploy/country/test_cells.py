"""Cells, windows and the Hilbert curve: every pixel has one cell, neighbours share windows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.deploy.country.cells import Cell, Lattice, SceneTree, at_seam, lattice_of, zone_of, zones_of
from kit.deploy.country.collection import PlacedScene
from kit.deploy.country.hilbert import distance
from kit.errors import KitError

LATTICE = Lattice(0.1, 1024, 896, 8)


def scene(west: float, south: float, east: float, north: float) -> PlacedScene:
    return PlacedScene("s", "s.tif", "1", "", 0.1, ((west, north), (east, north), (east, south), (west, south)))


def test_the_lattice_follows_the_weights():
    assert lattice_of(0.1, 1024, 128, 32) == LATTICE
    assert lattice_of(0.5, 1024, 128, 32).windows == 2
    assert lattice_of(0.03, 1024, 128, 32).windows == 8  # a cell fits into memory
    with pytest.raises(KitError, match="the network needs multiples of 128"):
        lattice_of(0.1, 64, 16, 128)


@given(st.integers(-50, 50), st.integers(0, 100), st.integers(0, 2))
def test_a_cell_sees_itself_and_a_halo(row: int, column: int, grown: int):
    cell = Cell(36, row, column)
    core, seen, read = LATTICE.core(cell), LATTICE.seen(cell, grown), LATTICE.read(cell, grown)
    halo = LATTICE.step_px - LATTICE.overlap_px + grown * LATTICE.step_px
    assert all(inner - outer >= halo for inner, outer in zip(core[:2], seen[:2], strict=True))
    assert all(outer - inner >= halo for inner, outer in zip(core[2:], seen[2:], strict=True))
    assert (seen[0] - read[0], read[2] - seen[2]) == (LATTICE.overlap_px, LATTICE.overlap_px)
    assert core[2] == LATTICE.core(Cell(36, row, column + 1))[0]
    assert core[3] == LATTICE.core(Cell(36, row + 1, column))[1]


def test_zones_at_their_meridians_and_across_the_date_line():
    assert (zone_of(-180), zone_of(29.999), zone_of(30), zone_of(179.999), zone_of(180)) == (1, 35, 36, 60, 1)
    assert zones_of(scene(29.9, 0, 29.99, 0.1)) == [35]
    assert zones_of(scene(29.9, 0, 30.1, 0.1)) == [35, 36]
    assert zones_of(scene(179.9, 0, 180.1, 0.1)) == [1, 60]


def test_cells_of_a_scene_cover_it_on_both_sides_of_the_date_line():
    tree = SceneTree([scene(179.99, -17.01, 180.01, -17.0)])
    cells = tree.cells(LATTICE)
    assert {cell.zone for cell in cells} == {1, 60}
    assert all(tree.near(LATTICE, cell) for cell in cells)
    assert len({cell.name for cell in cells}) == len(cells)


def test_what_lies_at_a_meridian():
    (cell,) = SceneTree([scene(32.9999, 0.3, 32.99991, 0.30001)]).cells(LATTICE)[:1]
    left, top, _, _ = LATTICE.core(cell)
    assert not at_seam(cell, LATTICE, (left, top, left + 10, top + 10))
    edge = SceneTree([scene(30.0, 0.3, 30.00001, 0.30001)])
    east = next(cell for cell in edge.cells(LATTICE) if cell.zone == 36)
    x = 166_021.4 / LATTICE.gsd_m  # easting of a zone's western meridian at the equator
    assert at_seam(east, LATTICE, (x, 0, x + 5, 5))


def test_neighbours_on_the_curve_are_neighbours_on_the_ground():
    bits = 4
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(1 << bits), np.arange(1 << bits)))
    keys = distance(x, y, bits)
    assert sorted(keys.tolist()) == list(range(4**bits))
    order = np.argsort(keys)
    steps = np.abs(np.diff(x[order])) + np.abs(np.diff(y[order]))
    assert (steps == 1).all()
