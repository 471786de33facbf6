"""Chips that lay side by side are found and put together, and no others."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from deploy_fakes import noise, write_tiff
from mosaic_fakes import Cut, cut, draw_mosaic, found_joins

from kit.data.rasters import read_image
from kit.data.sources.chips import Chip, find_chips
from kit.deploy.mosaics import find
from kit.deploy.mosaics.find import find_mosaics, known_mosaics
from kit.deploy.mosaics.layout import Layout, lay_out
from kit.deploy.mosaics.matching import Joiner, Matches, best_by_chance
from kit.deploy.mosaics.mosaic import Mosaic, read_mosaics, table_of
from kit.deploy.mosaics.sides import BOTTOM, RIGHT, ChipSides, sides_of
from kit.errors import DataError, KitError, RasterError
from kit.paths import Paths
from kit.system.workers import on_cluster

MINI = Path(__file__).parents[4] / "shared" / "open_cities_mini"
SIDE_PX = 160


def found_in(folder: Path) -> list[Mosaic]:
    return find_mosaics(find_chips(folder), processes=1)


def merged(*cuts: Cut) -> Cut:
    return Cut({k: v for c in cuts for k, v in c.places.items()}, {k: v for c in cuts for k, v in c.images.items()})


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cut]:
    """Four mosaics of different ground resolution, two with alpha and two with black collars, two JPEG qualities."""
    folder = tmp_path_factory.mktemp("mosaics") / "test"
    fine = {"a": draw_mosaic("kum", 0.06, 9, 10, SIDE_PX, 1), "b": draw_mosaic("nbo", 0.1, 7, 9, SIDE_PX, 2)}
    coarse = {"c": draw_mosaic("lus", 0.075, 9, 9, SIDE_PX, 3), "d": draw_mosaic("kum", 0.12, 7, 8, SIDE_PX, 4)}
    return folder, merged(cut(folder, fine, SIDE_PX, 75), cut(folder, coarse, SIDE_PX, 90, alpha=False, seed=1))


@pytest.fixture(scope="module")
def mosaics(mixed: tuple[Path, Cut]) -> list[Mosaic]:
    return found_in(mixed[0])


def test_neighbours_are_found_and_no_others(mixed: tuple[Path, Cut], mosaics: list[Mosaic]):
    _, chips = mixed
    able, found = chips.joins(able=True), found_joins(mosaics)
    assert len(able) >= 500
    assert found <= chips.joins()  # precision 1.00
    assert len(found & able) >= 0.99 * len(able)


def test_each_chip_has_one_place(mixed: tuple[Path, Cut], mosaics: list[Mosaic]):
    _, chips = mixed
    placed = [placed for mosaic in mosaics for placed in mosaic.placed]
    assert Counter(p.chip.id for p in placed) == dict.fromkeys(chips.places, 1)
    for mosaic in mosaics:
        assert len(mosaic.at) == len(mosaic.placed)
        names = {chips.places[p.chip.id][0] for p in mosaic.placed}
        shifts = {(p.row - chips.places[p.chip.id][1], p.col - chips.places[p.chip.id][2]) for p in mosaic.placed}
        assert len(names) == len(shifts) == 1
        assert min(p.row for p in mosaic.placed) == min(p.col for p in mosaic.placed) == 0
    assert [m.name for m in mosaics] == [f"m{n:03d}" for n in range(len(mosaics))]
    assert [len(m.placed) for m in mosaics] == sorted((len(m.placed) for m in mosaics), reverse=True)


def test_confidence_is_high_where_borders_tell(mosaics: list[Mosaic]):
    joins = [join for mosaic in mosaics for join in mosaic.joins]
    assert all(0 <= join.confidence <= 1 for join in joins)
    assert np.mean([join.confidence > 0.9 for join in joins]) > 0.9
    assert {mosaic.confidence for mosaic in mosaics if len(mosaic.placed) == 1} <= {1.0}


def test_half_of_the_chips_are_missing(mixed: tuple[Path, Cut]):
    """Then many sides have no neighbour, and must find none."""
    folder, chips = mixed
    kept = [chip for chip in find_chips(folder) if int(chip.id) % 2]
    rest = Cut({chip.id: chips.places[chip.id] for chip in kept}, chips.images)
    found = found_joins(find_mosaics(kept, processes=1))
    assert found <= rest.joins()
    assert len(found & rest.joins(able=True)) >= 0.95 * len(rest.joins(able=True))


def test_chips_that_belong_to_nothing_stay_alone(tmp_path: Path):
    for number in range(5):
        write_tiff(tmp_path / f"{number}.tif", draw_mosaic("kum", 0.075, 1, 1, 128, number))
        write_tiff(tmp_path / f"n{number}.tif", noise(128, 128, 3, number))
    write_tiff(tmp_path / "flat.tif", np.full((128, 128, 3), 90, np.uint8))
    write_tiff(tmp_path / "flat2.tif", np.full((128, 128, 3), 90, np.uint8))
    write_tiff(tmp_path / "black.tif", np.zeros((128, 128, 3), np.uint8))
    write_tiff(tmp_path / "tiny.tif", noise(20, 30))
    found = found_in(tmp_path)
    assert [len(mosaic.placed) for mosaic in found] == [1] * 14
    assert not found_joins(found)
    assert all(mosaic.placed[0].confidence == 1 for mosaic in found)


@pytest.mark.parametrize("overlap_px", [0, 1])
def test_two_chips_are_enough(tmp_path: Path, overlap_px: int):
    image = draw_mosaic("nbo", 0.075, 1, 2, 256, 5, border=False)
    write_tiff(tmp_path / "b.tif", image[:, : 256 + overlap_px])
    write_tiff(tmp_path / "a.tif", image[:, 256:])
    (mosaic,) = found_in(tmp_path)
    assert [(p.chip.id, p.row, p.col) for p in mosaic.placed] == [("b", 0, 0), ("a", 0, 1)]
    assert (mosaic.rows, mosaic.cols) == (1, 2)
    assert mosaic.lefts_px == [0, 256 + overlap_px, 512 + overlap_px]


def test_the_last_row_and_column_may_be_narrower(tmp_path: Path):
    image = draw_mosaic("kum", 0.075, 3, 3, 128, 6, border=False)[:350, :370]
    for row, col in np.ndindex(3, 3):
        write_tiff(
            tmp_path / f"{8 - 3 * row - col}.tif",
            image[row * 128 : row * 128 + 128, col * 128 : col * 128 + 128],
        )
    (mosaic,) = found_in(tmp_path)
    assert [p.chip.id for p in mosaic.placed] == list("876543210")
    assert mosaic.tops_px == [0, 128, 256, 350]
    assert mosaic.lefts_px == [0, 128, 256, 370]


def test_a_chip_that_stands_twice_is_joined_to_nothing_by_chance(tmp_path: Path):
    """Which of two equal chips is the neighbour cannot be told."""
    image = draw_mosaic("kum", 0.075, 1, 2, 256, 7, border=False)
    for name, part in (("a", image[:, :256]), ("b", image[:, 256:]), ("c", image[:, 256:])):
        write_tiff(tmp_path / f"{name}.tif", part)
    assert not found_joins(found_in(tmp_path))


def test_a_broken_chip_is_named(tmp_path: Path):
    write_tiff(tmp_path / "a.tif", noise(64, 64))
    (tmp_path / "b.tif").write_bytes(b"no image")
    with pytest.raises(RasterError, match=r"b\.tif"):
        found_in(tmp_path)


def test_processes_find_the_same(tmp_path: Path):
    cut(tmp_path, {"a": draw_mosaic("kum", 0.075, 3, 3, 128, 8)}, 128)
    one, two = (find.assemble(chips := find_chips(tmp_path), find.read_all(chips, count)) for count in (1, 2))
    assert one == two


@pytest.mark.slow
def test_a_cluster_finds_the_same(tmp_path: Path):
    cut(tmp_path, {"a": draw_mosaic("kum", 0.075, 3, 3, 128, 8)}, 128)
    alone = found_in(tmp_path)
    with on_cluster("local:2"):
        assert found_in(tmp_path) == alone


def killed(chip: Chip) -> None:
    os._exit(9)  # as the system does when memory is short


def test_a_process_that_is_killed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cut(tmp_path, {"a": draw_mosaic("kum", 0.075, 2, 2, 128, 8)}, 128)
    monkeypatch.setattr(find, "read_sides", killed)
    with pytest.raises(KitError, match="a process reading chips was killed"):
        find_mosaics(find_chips(tmp_path), processes=2)


def test_submit_reads_the_table_of_kit_mosaic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli):
    cut(tmp_path / "test", {"a": draw_mosaic("kum", 0.075, 2, 2, 128, 8)}, 128)
    assert cli("mosaic", tmp_path / "test", "--root", tmp_path, "--workers", 1)[0] == 0
    searched: list[int] = []
    monkeypatch.setattr(find, "read_all", lambda chips, n, read=find.read_all: searched.append(n) or read(chips, n))
    chips, table = find_chips(tmp_path / "test"), table_of(tmp_path / "test", Paths(tmp_path))
    (mosaic,) = known_mosaics(chips, table)
    assert not searched
    (found,) = find_mosaics(chips, 1)
    assert [replace(p, confidence=0) for p in mosaic.placed] == [replace(p, confidence=0) for p in found.placed]
    before = table.read_bytes()
    write_tiff(mosaic.placed[0].chip.path, noise(128, 128))
    assert len(known_mosaics(chips, table)) == 2
    assert len(searched) == 2
    assert table.read_bytes() == before  # it is the user's
    mosaic.placed[0].chip.path.unlink()
    with pytest.raises(RasterError):
        known_mosaics(chips, table)


def test_a_missing_table_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cut(tmp_path / "test", {"a": draw_mosaic("kum", 0.075, 2, 2, 128, 8)}, 128)
    chips, table = find_chips(tmp_path / "test"), tmp_path / "mosaics" / "test" / "mosaics.csv"
    first = known_mosaics(chips, table)
    monkeypatch.delattr(find, "read_all")
    again = known_mosaics(chips, table)
    assert [[place.chip.id for place in m.placed] for m in again] == [[p.chip.id for p in m.placed] for m in first]


@pytest.mark.parametrize(
    "change", [("m000,0,1,", "m000,0,0,"), ("m000,0,1,", "m000,0,3,"), ("m000,0,1,128", "m000,0,1,99"),
               ("m000,0,0,", "m000,-1,0,")],
)  # fmt: skip
def test_a_damaged_table_is_named(tmp_path: Path, change: tuple[str, str]):
    cut(tmp_path / "test", {"a": draw_mosaic("kum", 0.075, 2, 2, 128, 8)}, 128)
    chips, table = find_chips(tmp_path / "test"), tmp_path / "m" / "mosaics.csv"
    known_mosaics(chips, table)
    text = table.read_text()
    assert change[0] in text
    table.write_text(text.replace(*change))
    with pytest.raises(DataError, match="is damaged"):
        known_mosaics(chips, table)


def test_a_table_of_an_earlier_version_is_searched_again(tmp_path: Path):
    cut(tmp_path / "test", {"a": draw_mosaic("kum", 0.075, 2, 2, 128, 8)}, 128)
    chips, table = find_chips(tmp_path / "test"), tmp_path / "m" / "mosaics.csv"
    known_mosaics(chips, table)
    table.write_text("".join(f"{line.rpartition(',')[0]}\n" for line in table.read_text().splitlines()))
    assert read_mosaics(table, chips) is None


def test_nodata_is_not_compared():
    """A dark shadow is imagery; a black collar is none, nor what JPEG makes of pixels beside it."""
    image = np.full((100, 100, 3), 120, np.uint8)
    image[40:46, -2:] = 0
    assert sides_of(image).sides[RIGHT].valid_px == 100
    image[:30, -2:] = 4
    assert sides_of(image).sides[RIGHT].valid_px == 66
    clear = np.dstack([np.full((100, 100, 3), 120, np.uint8), np.full((100, 100), 255, np.uint8)])
    clear[-1, :50, 3] = 0
    assert sides_of(clear).sides[BOTTOM].valid_px == 46


def laid_out(scores: dict[tuple[int, int, int], float], chips: int) -> Layout:
    """Lays out chips of which some pairs fit by `scores`, and none else."""

    class FixedScores(Joiner):
        def __init__(self) -> None:
            self.sides = [ChipSides(64, 64, (None,) * 4)] * chips  # type: ignore[arg-type]

        def score(self, direction: int, first: int, second: int) -> float:
            return scores.get((direction, first, second), 0.0)

    joiner = FixedScores()
    matches = {}
    for direction in (RIGHT, BOTTOM):
        pairs = [(first, second, score) for (d, first, second), score in scores.items() if d == direction]
        first, second, score = (np.array(column) for column in zip(*pairs, strict=True)) if pairs else [np.empty(0)] * 3
        matches[direction] = Matches(first, second, score, score - 4.5)
    return lay_out(joiner, matches)


def test_a_pair_that_contradicts_others_is_not_joined():
    """0 1 over 2 3 stands; 4 fits below 2 by chance, but 5, its sure neighbour, does not fit below 3."""
    sure = {(RIGHT, 0, 1): 9.0, (RIGHT, 2, 3): 9.0, (BOTTOM, 0, 2): 9.0, (BOTTOM, 1, 3): 9.0, (RIGHT, 4, 5): 9.0}
    layout = laid_out(sure | {(BOTTOM, 2, 4): 6.0}, 6)
    assert sorted(sorted(group.cells.values()) for group in layout.groups.values()) == [[0, 1, 2, 3], [4, 5]]


def test_no_place_is_given_twice():
    """0 1 2 in a row, 3 above 0, and a sure pair that would lay 4 where 3 is."""
    sure = {(RIGHT, 0, 1): 9.0, (RIGHT, 1, 2): 9.0, (BOTTOM, 3, 0): 9.0, (BOTTOM, 4, 0): 8.0}
    layout = laid_out(sure, 5)
    assert sorted(sorted(group.cells.values()) for group in layout.groups.values()) == [[0, 1, 2, 3], [4]]


def test_two_neighbours_vouch_for_a_chip():
    """3 is sure of neither 1 above it nor 2 to its left, but of both together."""
    sure = {(RIGHT, 0, 1): 9.0, (BOTTOM, 0, 2): 9.0}
    unsure = {(BOTTOM, 1, 3): 4.6, (RIGHT, 2, 3): 4.6}
    assert [len(group.cells) for group in laid_out(sure | unsure, 4).groups.values()] == [4]
    assert len(laid_out(sure | {(BOTTOM, 1, 3): 4.6}, 4).groups) == 2


def test_among_more_pairs_chance_reaches_more():
    assert best_by_chance(2) == 4.5
    assert 5 < best_by_chance(350_000) < 6 < best_by_chance(11_481**2) < 7


@pytest.mark.skipif(not MINI.is_dir(), reason="open_cities_mini does not lie beside the project")
def test_real_scenes_are_put_together(tmp_path: Path):
    scenes = {}
    for path in sorted((MINI / "train_tier_1").glob("*/*/*.tif")):
        image = read_image(path)[:, :3072]
        opaque = np.full(image.shape[:2], 255, np.uint8)
        scenes[path.stem] = np.dstack([image[..., :3], image[..., 3] if image.shape[2] == 4 else opaque])
    chips = cut(tmp_path, scenes, 512, 80)
    found = found_joins(found_in(tmp_path))
    able = chips.joins(able=True)
    assert found <= chips.joins()
    assert len(found & able) >= 0.99 * len(able)


@pytest.mark.skipif(not MINI.is_dir(), reason="open_cities_mini does not lie beside the project")
def test_real_test_chips_are_one_mosaic_and_one_chip():
    found = found_in(MINI / "test")
    assert [(len(m.placed), m.rows, m.cols, len(m.joins)) for m in found] == [(14, 2, 7, 19), (1, 1, 1, 0)]
    assert found[1].placed[0].chip.id == "d33adc"
    assert isinstance(found[1].placed[0].chip, Chip)
