"""Chips predicted with what lies around them."""

import os
from pathlib import Path

import numpy as np
import pytest
from deploy_fakes import noise, write_tiff

from kit.data.sources.chips import Chip
from kit.deploy.engine.predict import predict_image
from kit.deploy.mosaics.mosaic import Mosaic, PlacedChip
from kit.deploy.mosaics.wide import WideReader
from kit.deploy.submission import submit as room
from kit.deploy.submission.mask_tiff import decode_mask
from kit.deploy.weights.load import load_weights
from kit.pipeline.export import Exported

WHOLE = noise(96, 144)
SIDE = 48


@pytest.fixture
def mosaic(tmp_path: Path) -> Mosaic:
    """Two rows of three chips, named by row and column; the last one is missing."""
    placed = []
    for row, col in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
        path = tmp_path / f"chips/c{row}{col}.tif"
        write_tiff(path, WHOLE[row * SIDE : (row + 1) * SIDE, col * SIDE : (col + 1) * SIDE])
        placed.append(PlacedChip(Chip(path.stem, path), row, col, SIDE, SIDE, 1.0))
    return Mosaic("m000", tuple(placed), ())


def chip(mosaic: Mosaic, name: str) -> Chip:
    return mosaic.by_id[name].chip


def test_a_margin_is_read_where_there_are_neighbours(mosaic: Mosaic):
    seen = WideReader([mosaic], 16).read(chip(mosaic, "c01"))
    assert (seen.top, seen.left, seen.wide.shape) == (0, 16, (SIDE + 16, SIDE + 32, 4))
    np.testing.assert_array_equal(seen.image[..., :3], WHOLE[:SIDE, SIDE : 2 * SIDE])
    np.testing.assert_array_equal(seen.wide[: SIDE + 16, : SIDE + 16, :3], WHOLE[: SIDE + 16, 32 : 2 * SIDE])
    missing = seen.wide[SIDE:, SIDE + 16 :]
    assert not missing[..., 3].any()
    assert seen.wide[:SIDE, :, 3].all()
    level = np.arange(seen.wide.shape[0] * seen.wide.shape[1], dtype=np.float32).reshape(seen.wide.shape[:2])
    np.testing.assert_array_equal(seen.middle(level), level[:SIDE, 16 : 16 + SIDE])


def test_a_chip_alone_is_read_as_it_is(mosaic: Mosaic):
    for surroundings in (WideReader(), WideReader([Mosaic("m000", mosaic.placed[:1], ())])):
        seen = surroundings.read(chip(mosaic, "c00"))
        assert seen.wide is seen.image
        assert seen.image.shape == (SIDE, SIDE, 3)


def test_a_chip_is_seen_enlarged_and_cut_at_its_own_size(mosaic: Mosaic):
    """A margin covers as much of what the network sees, and a map of it comes back where it was."""
    seen = WideReader([mosaic], 16, {"c01": 2.0}).read(chip(mosaic, "c01"))
    assert (seen.top, seen.left, seen.size, seen.factor) == (0, 8, (SIDE + 8, SIDE + 16), 2.0)
    assert seen.wide.shape == (2 * SIDE + 16, 2 * SIDE + 32, 4)
    np.testing.assert_array_equal(seen.image[..., :3], WHOLE[:SIDE, SIDE : 2 * SIDE])
    ramp = np.repeat(np.arange(2 * SIDE + 32, dtype=np.float32)[None], 2 * SIDE + 16, axis=0)
    expected = 2 * (8 + np.arange(SIDE)) + 0.5  # pixel x lies over 2 x and 2 x + 1
    np.testing.assert_allclose(seen.middle(ramp), np.broadcast_to(expected, (SIDE, SIDE)))


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.7, 2.0])
def test_enlarging_moves_nothing(tmp_path: Path, factor: float):
    image = np.zeros((120, 90, 3), np.uint8)
    image[40:80, 30:60] = 255
    seen = WideReader((), 0, {"a": factor}).read(Chip("a", write_tiff(tmp_path / "a.tif", image)))
    back = seen.middle(seen.wide[..., 0].astype(np.float32) / 255)
    assert back.shape == (120, 90)
    rows, columns = np.nonzero(back > 0.5)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 79, 30, 59)


def test_without_a_margin_neighbours_do_not_count(mosaic: Mosaic):
    surroundings = WideReader([mosaic], 0, {"c01": 2.0})
    before = surroundings.version(chip(mosaic, "c01"))
    os.utime(chip(mosaic, "c00").path, ns=(1, 1))
    assert surroundings.version(chip(mosaic, "c01")) == before
    assert surroundings.read(chip(mosaic, "c01")).size == (SIDE, SIDE)
    assert WideReader([mosaic], 0).version(chip(mosaic, "c01")) != before


def test_chips_come_row_by_row(mosaic: Mosaic):
    surroundings = WideReader([Mosaic("m000", mosaic.placed[::-1], ())])
    chips = [placed.chip for placed in mosaic.placed]
    assert [one.id for one in surroundings.in_order(chips)] == ["c11", "c10", "c02", "c01", "c00"]
    assert WideReader().in_order(chips) == chips


def test_a_neighbour_that_is_written_again_counts(mosaic: Mosaic):
    surroundings = WideReader([mosaic])
    before = {placed.chip.id: surroundings.version(placed.chip) for placed in mosaic.placed}
    os.utime(chip(mosaic, "c10").path, ns=(1, 1))
    after = {placed.chip.id: surroundings.version(placed.chip) for placed in mosaic.placed}
    assert {name for name in before if before[name] != after[name]} == {"c00", "c01", "c10", "c11"}


def test_masks_continue_across_seams(
    mosaic: Mosaic, tiny_weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With the margin of the network's sight a chip amid others is cut from the prediction of the whole."""
    whole = predict_image(load_weights(tiny_weights.path), WHOLE) > 0.5
    found = {}
    for kind, mosaics in (("alone", []), ("joined", [mosaic])):
        monkeypatch.setattr(room, "known_mosaics", lambda *_, mosaics=mosaics: mosaics)
        options = room.SubmitOptions(room.EngineOptions(tuning=False), mosaic=True)
        room.submit(tmp_path / "chips", tiny_weights.path, tmp_path / kind, options)
        found[kind] = decode_mask((tmp_path / kind / "c01.tif").read_bytes(), "c01")
    expected = whole[:SIDE, SIDE : 2 * SIDE]
    assert (found["joined"] == expected)[:, : SIDE - 24].all()  # to the right and below a chip is missing
    assert not (found["alone"] == expected)[:, : SIDE - 24].all()
