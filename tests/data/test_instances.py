"""Which pixels belong to which building: kept by `kit prepare`, read back, and drawn as walls."""

from pathlib import Path

import albumentations as A
import numpy as np
import pytest
from factories import prepare

from kit.data.dataset import TileDataset, read_tile
from kit.data.index import read_index
from kit.data.instances import Walls, ids_file, pack_ids, read_ids
from kit.data.masks import BUILDING, IGNORE
from kit.measures.object_masks import components
from kit.paths import Paths


def two_houses(gap: int = 0, first: int = 300):
    """Two houses of 20 x 20 px side by side: mask, ids."""
    ids = np.zeros((30, 60), np.uint16)
    ids[5:25, 5:25], ids[5:25, 25 + gap : 45 + gap] = first, first + 1
    return (ids > 0).astype(np.uint8), ids


def test_houses_that_touch_have_a_wall_each():
    mask, ids = two_houses()
    footprint, boundary, contact = Walls(boundary_px=5, contact_px=7).draw(pack_ids(mask, ids))
    assert np.array_equal(footprint, mask)
    assert boundary[15, 20:30].tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]
    assert boundary[15, 5:9].tolist() == [1, 1, 0, 0]
    assert not contact[15].any()
    assert components(footprint > boundary).max() == 2


def test_the_ground_between_close_houses_is_contact():
    mask, ids = two_houses(gap=4)
    _, _, contact = Walls(contact_px=7).draw(pack_ids(mask, ids))
    assert contact[15, 25:29].tolist() == [0, 1, 1, 0]  # 3 px to both
    assert not (contact & mask).any()
    _, _, contact = Walls(contact_px=3).draw(pack_ids(mask, ids))
    assert not contact.any()


def test_pixels_without_data_stay_so():
    mask, ids = two_houses()
    mask[:, :10] = IGNORE
    layers = Walls().draw(pack_ids(mask, ids))
    assert np.array_equal(layers == IGNORE, np.stack([mask == IGNORE] * 3))


def test_prepare_keeps_the_ids(tmp_path: Path, catalog: Path):
    prepare(catalog, Paths(tmp_path), name="city", grid="native", side_px=64, by="scene", k=2)
    _, index = read_index(Paths(tmp_path), "city")
    several = 0
    for row in index.itertuples():
        mask = read_tile(row.image, row.mask)[1]
        assert ids_file(row.mask).is_file()
        ids = read_ids(row.mask, mask)
        assert np.array_equal(ids > 0, mask == BUILDING)
        several += len(np.unique(ids)) > 2
    assert several
    layered = TileDataset(index, A.Compose([A.RandomCrop(32, 32)]), layers=Walls())
    assert {tuple(layered[place][1].shape) for place in range(3)} == {(3, 32, 32)}
    first = TileDataset(index)[0][1]
    assert np.array_equal(TileDataset(index, layers=Walls())[0][1][0], first)


@pytest.mark.parametrize("stale", [True, False])
def test_without_fitting_ids_they_are_the_components(tmp_path: Path, catalog: Path, stale: bool):
    prepare(catalog, Paths(tmp_path), name="city", grid="native", side_px=64, by="scene", k=2)
    _, index = read_index(Paths(tmp_path), "city")
    row = index.loc[index["building_fraction"].idxmax()]
    mask = read_tile(row.image, row["mask"])[1]
    if stale:
        mask[:] = 0
        mask[3:6, 3:6] = mask[10:12, 10:20] = BUILDING
    else:
        ids_file(row["mask"]).unlink()
    assert np.array_equal(read_ids(row["mask"], mask), components(mask == BUILDING))
