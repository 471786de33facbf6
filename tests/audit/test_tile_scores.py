"""The score of a tile, its verdict, and the page that describes both."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from kit.audit.audit_tables import GEOJSONS, worst_first
from kit.audit.tile_scores import LEAST_SCORE, UNCALIBRATED, Agreement, score_tiles, tile_jaccard
from kit.data.audits import BlockShift, BuildingFinding, TileFinding
from kit.data.masks import Counts

PAGE = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
RIGHT = [0.7 + 0.003 * number for number in range(100)]  # 0.7 to 0.997
TILE = Agreement("t", "a", "s", 0.75, 0.9, 0.0)


def judged(tile: Agreement, calibration: list[float]) -> TileFinding:
    (found,) = score_tiles([tile], calibration)
    return found


def test_right_labels_score_as_the_calibration_tiles_do():
    scores = [judged(replace(TILE, jaccard=jaccard), RIGHT).score for jaccard in RIGHT]
    assert scores == pytest.approx([(number + 1) / 100 for number in range(100)])


@pytest.mark.parametrize(
    ("tile", "verdict"),
    [(TILE, "train"),
     (replace(TILE, jaccard=0.3), "repair"),
     (replace(TILE, jaccard=0.3, repaired=0.5), "repair"),  # less than twice the disagreement of the worst right tiles
     (replace(TILE, jaccard=0.3, repaired=0.35), "leave_out"),
     (replace(TILE, jaccard=0.3, ignored=0.6), "leave_out"),
     (replace(TILE, jaccard=0.3, repaired=None), "leave_out")],
)  # fmt: skip
def test_verdicts(tile: Agreement, verdict: str):
    assert judged(tile, RIGHT).verdict == verdict
    assert judged(tile, []).verdict == verdict  # 0.75 is above the fixed limit
    assert bool(judged(tile, RIGHT).reason) == (verdict != "train")


def test_without_calibration_the_score_is_the_index():
    assert judged(TILE, []).score == 0.75


def test_a_few_square_metres_are_no_great_part_of_an_empty_tile():
    assert tile_jaccard(Counts(), 0.1) == 1.0
    assert tile_jaccard(Counts(fp=2000), 0.1) == pytest.approx(0.5)  # 20 m2
    assert tile_jaccard(Counts(fp=2000), 0.0) == pytest.approx(0.5)  # of unknown resolution
    assert tile_jaccard(Counts(tp=90_000, fn=10_000), 0.1) == pytest.approx(0.9, abs=0.01)


def test_the_worst_tiles_come_first():
    tiles = list(
        score_tiles([replace(TILE, tile=f"t{n}", jaccard=jaccard) for n, jaccard in enumerate((0.9, 0.2, 0.1))], RIGHT)
    )
    assert [tile.tile for tile in worst_first(tiles, 5)] == ["t2", "t1"]
    assert len(list(worst_first(tiles, 1))) == 1


@pytest.mark.parametrize(
    ("table", "kind"), [("blocks", BlockShift), ("buildings", BuildingFinding), ("tiles", TileFinding)]
)
def test_the_page_describes_every_column(table: str, kind: type):
    rows = re.search(rf"\| column of `{table}.csv` .*?\n\n", PAGE, re.S)
    assert rows
    cells = [line.split("|")[1] for line in rows[0].splitlines()[2:] if line]
    assert [name for cell in cells for name in re.findall(r"`(\w+)`", cell)] == [field.name for field in fields(kind)]


def test_the_page_names_the_files_and_the_limits():
    assert all(f"`{name}`" in PAGE for name in GEOJSONS)
    assert f"a score of at least {LEAST_SCORE:g}, or a Jaccard index of {UNCALIBRATED:g}" in PAGE
