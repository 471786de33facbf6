"""Mosaics of several ground resolutions, predicted at the one that the weights know."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploy_fakes import noise, write_tiff

from kit.data.sources.chips import Chip
from kit.deploy.mosaics import resolution
from kit.deploy.mosaics.mosaic import RESOLUTIONS, Mosaic, PlacedChip
from kit.deploy.mosaics.resolution import Resolution, ResolutionRow, find_resolutions
from kit.deploy.submission import submit as room
from kit.deploy.submission.mask_tiff import decode_mask
from kit.deploy.weights.load import load_weights
from kit.errors import DataError, KitError
from kit.pipeline.export import Exported

SIDE = 48


@pytest.fixture
def mosaics(tmp_path: Path) -> list[Mosaic]:
    """Two mosaics of two chips, and one chip alone."""
    made = []
    for name, ids in (("m000", "ab"), ("m001", "cd"), ("m002", "e")):
        paths = [write_tiff(tmp_path / f"chips/{id_}.tif", noise(SIDE, SIDE, 3, ord(id_))) for id_ in ids]
        placed = tuple(PlacedChip(Chip(path.stem, path), 0, col, SIDE, SIDE, 1.0) for col, path in enumerate(paths))
        made.append(Mosaic(name, placed, ()))
    return made


@pytest.fixture
def estimated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the mosaics that are estimated from here on: m000 is coarse, m001 shows nothing."""
    names: list[str] = []

    def estimate(_: Any, mosaic: Mosaic) -> Resolution:
        names.append(mosaic.name)
        if mosaic.name == "m001":
            raise DataError("no buildings", "none")
        return Resolution(0.3, 0.25, 0.36, ())

    monkeypatch.setattr(resolution, "estimate_gsd", estimate)
    return names


def test_they_are_estimated_once(mosaics: list[Mosaic], tiny_weights: Exported, tmp_path: Path, estimated: list[str]):
    weights, table = load_weights(tiny_weights.path), tmp_path / "found.csv"
    first = find_resolutions(weights, mosaics, table)
    assert [(row.mosaic, row.chips, row.gsd_m, row.low_m, row.high_m) for row in first] == [
        ("m000", 2, 0.3, 0.25, 0.36), ("m001", 2, None, None, None),
    ]  # fmt: skip
    assert find_resolutions(weights, mosaics, table) == first
    assert estimated == ["m000", "m001"]
    write_tiff(mosaics[0].placed[0].chip.path, noise(SIDE, SIDE, 3, 9))
    find_resolutions(weights, mosaics, table)
    assert estimated == ["m000", "m001", "m000"]


HEAD = "mosaic,chips,gsd_m,low_m,high_m,made_from\n"


@pytest.mark.parametrize("text", ["", "mosaic,chips\nm000,2\n", "\x00", f"{HEAD}m,x,,,,\n"])
def test_a_damaged_table_is_made_again(
    mosaics: list[Mosaic], tiny_weights: Exported, tmp_path: Path, estimated: list[str], text: str
):
    (tmp_path / "found.csv").write_text(text)
    assert len(find_resolutions(load_weights(tiny_weights.path), mosaics, tmp_path / "found.csv")) == 2
    assert estimated == ["m000", "m001"]


@pytest.mark.parametrize(("gsd_m", "factor"), [(0.3, 2.0), (0.075, 0.5), (0.16, 1.0), (0.14, 1.0), (None, 1.0)])
def test_what_is_much_the_same_is_left_as_it_is(gsd_m: float | None, factor: float):
    assert ResolutionRow("m", 2, gsd_m, gsd_m, gsd_m, "").factor(0.15) == pytest.approx(factor)


@pytest.mark.parametrize(("low_m", "high_m", "factor"), [(0.1, 0.31, 1.0), (0.16, 0.31, 2.0), (0.15, 0.31, 1.0)])
def test_what_may_be_the_same_is_left_as_it_is(low_m: float, high_m: float, factor: float):
    assert ResolutionRow("m", 2, 0.3, low_m, high_m, "").factor(0.15) == pytest.approx(factor)


def test_a_submission_sees_each_mosaic_at_its_size(
    mosaics: list[Mosaic], tiny_weights: Exported, tmp_path: Path, estimated: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The weights know 0.15 m: m000 of 0.3 m is seen twice as large, as if --gsd had told it."""
    monkeypatch.setattr(room, "known_mosaics", lambda *_: mosaics)

    def masks(name: str, scale: bool = False, gsd_m: float | None = None) -> dict[str, np.ndarray]:
        options = room.SubmitOptions(room.EngineOptions(tuning=False), scale=scale, gsd_m=gsd_m)
        room.submit(tmp_path / "chips", tiny_weights.path, tmp_path / name, options)
        return {id_: decode_mask((tmp_path / name / f"{id_}.tif").read_bytes(), id_) for id_ in "abcde"}

    plain, given, found = masks("plain"), masks("told", gsd_m=0.3), masks("found", True)
    for id_ in "abcde":
        assert found[id_].shape == (SIDE, SIDE)
        assert (found[id_] == (given if id_ in "ab" else plain)[id_]).all()
        assert (plain[id_] != given[id_]).any()
    assert (tmp_path / "found" / RESOLUTIONS).is_file()
    before = (tmp_path / "found.tgz").read_bytes()
    masks("found", True)
    assert (tmp_path / "found.tgz").read_bytes() == before
    assert estimated == ["m000", "m001"]
    assert (masks("found")["a"] == plain["a"]).all()


@pytest.mark.parametrize("gsd_m", [0.03, 0.7])
def test_a_resolution_far_off_is_refused(chips: Path, tiny_weights: Exported, tmp_path: Path, gsd_m: float):
    with pytest.raises(KitError, match=r"trained at 0\.15 m per pixel") as given:
        room.submit(
            chips,
            tiny_weights.path,
            tmp_path / "out",
            room.SubmitOptions(room.EngineOptions(tuning=False), gsd_m=gsd_m),
        )
    assert given.value.hint == "give metres per pixel from 0.0375 to 0.6"


def test_the_command_takes_one_of_both(
    chips: Path, tiny_weights: Exported, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
):
    common = ("submit", chips, "--weights", tiny_weights.path, "--no-tune", "--root", tmp_path)
    assert cli(*common, "--scale", "--gsd", 0.3)[0] == 2
    assert cli(*common, "--gsd", 0.3)[0] == 0
