"""`kit compare`: differences that can be worked out by hand, intervals that cover what they should, and refusals."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories import write_run

from kit.errors import RunError
from kit.measures.object_counts import ObjectCounts
from kit.paths import Paths
from kit.pipeline.compare_runs import RunComparison, compare

Cli = Callable[..., tuple[int, str, str]]
Tile = tuple[str, str, int, int, int]  # tile, area/scene, tp, fp, fn


def write_tiles(root: Path, run: str, tiles: Sequence[Tile]) -> None:
    """Writes a finished run whose held-out tiles have these counts."""
    folder = root / "runs" / run
    scenes = {scene: (1, 0, 0) for _, scene, *_ in tiles} or {"kam/a": (1, 0, 0)}
    write_run(folder, scenes)
    rows = [(tile, *scene.split("/"), tp, fp, fn) for tile, scene, tp, fp, fn in tiles]
    pd.DataFrame(rows, columns=["tile", "area", "scene", "tp", "fp", "fn"]).to_csv(folder / "oof.csv", index=False)


def one_scene(counts: Sequence[tuple[int, int, int]], scene: str = "kam/a") -> list[Tile]:
    return [(f"{scene.replace('/', '_')}_{i:04}", scene, *map(int, pixels)) for i, pixels in enumerate(counts)]


def compared(root: Path, first: Sequence[Tile], second: Sequence[Tile]) -> RunComparison:
    write_tiles(root, "one/fold0", first)
    write_tiles(root, "two/fold0", second)
    return compare("one/fold0", "two/fold0", Paths(root))


def simulated(random: np.random.Generator, tiles: int, gain: float) -> tuple[list[Tile], list[Tile]]:
    """Draws two models' counts on the same tiles: each finds a share of the tile's building, the second `gain` more."""
    building = random.integers(100, 2000, tiles)
    share = random.uniform(0.3, 0.9, tiles)  # a hard tile is hard for both
    sides = []
    for more in (0.0, gain):
        found = np.rint(building * (share + more + random.uniform(-0.05, 0.05, tiles))).astype(int)
        sides.append(one_scene(list(zip(found, building // 10, building - found, strict=True))))
    return sides[0], sides[1]


def test_two_tiles_by_hand(tmp_path: Path):
    """Two tiles are drawn as one twice (1/4), both (1/2), the other twice (1/4): the ends are the tiles' own."""
    made = compared(tmp_path, one_scene([(50, 0, 50), (20, 80, 0)]), one_scene([(60, 0, 40), (20, 30, 0)]))
    (scene,) = made.scenes
    assert (scene.scene, scene.tiles) == ("kam/a", 2)
    assert (scene.first, scene.second) == (70 / 200, 80 / 150)
    assert scene.difference == 80 / 150 - 70 / 200
    assert (scene.low, scene.high) == pytest.approx((0.6 - 0.5, 0.4 - 0.2))
    assert made.pooled.low == scene.low


def test_sides_of_a_tile_are_drawn_together(tmp_path: Path):
    """Very different tiles, of each the same gain: apart, the sides would differ by far more than by the gain."""
    first = [(tp, 0, 100 - tp) for tp in range(0, 90, 5)]
    second = [(tp + 10, 0, 90 - tp) for tp, *_ in first]
    made = compared(tmp_path, one_scene(first), one_scene(second))
    assert (made.pooled.low, made.pooled.high) == pytest.approx((0.1, 0.1))


def test_the_pooled_row_draws_within_scenes(tmp_path: Path):
    """Scenes that differ from each other and not inside: only draws across scenes would vary."""
    first = [*one_scene([(50, 0, 50)] * 6), *one_scene([(50, 0, 50)] * 3, "znz/b")]
    second = [*one_scene([(90, 0, 10)] * 6), *one_scene([(20, 0, 80)] * 3, "znz/b")]
    made = compared(tmp_path, first, second)
    assert [(row.scene, row.tiles, row.low, row.high) for row in made.scenes] == [
        ("kam/a", 6, pytest.approx(0.4), pytest.approx(0.4)),
        ("znz/b", 3, pytest.approx(-0.3), pytest.approx(-0.3)),
    ]
    expected = (6 * 90 + 3 * 20) / 900 - 0.5
    assert (made.pooled.low, made.pooled.difference, made.pooled.high) == pytest.approx((expected,) * 3)


def test_a_run_equals_itself(tmp_path: Path):
    first, _ = simulated(np.random.default_rng(3), 20, 0.0)
    made = compared(tmp_path, first, first)
    assert (made.pooled.difference, made.pooled.low, made.pooled.high) == (0.0, 0.0, 0.0)
    assert made.verdict() == "no significant difference: 0.0000 [0.0000, 0.0000]"
    itself = compare("one/fold0", "one/fold0", Paths(tmp_path))
    assert itself.pooled == made.pooled


def test_the_order_of_sides_and_rows_does_not_matter(tmp_path: Path):
    first, second = simulated(np.random.default_rng(4), 25, 0.02)
    there = compared(tmp_path, first, second).pooled
    back = compared(tmp_path / "back", second[::-1], first[::-1]).pooled
    assert there.low is not None
    assert there.low < there.difference < there.high
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))


def test_more_tiles_narrow_the_interval(tmp_path: Path):
    widths = []
    for tiles in (30, 480):
        made = compared(tmp_path / str(tiles), *simulated(np.random.default_rng(5), tiles, 0.02))
        widths.append(made.pooled.high - made.pooled.low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.35)  # the square root of 16


def test_intervals_cover_the_true_difference_and_are_no_wider_than_need_be(tmp_path: Path):
    random = np.random.default_rng(6)
    totals = [np.sum([tile[2:] for tile in side], axis=0) for side in simulated(random, 50_000, 0.03)]
    truth = totals[1][0] / totals[1].sum() - totals[0][0] / totals[0].sum()
    made = [compared(tmp_path / str(i), *simulated(random, 60, 0.03)).pooled for i in range(100)]
    assert 89 <= sum(row.low <= truth <= row.high for row in made) <= 99  # 95 expected, minus what few tiles cost
    needed = 2 * 1.96 * np.std([row.difference for row in made])
    assert np.mean([row.high - row.low for row in made]) == pytest.approx(needed, rel=0.2)


def test_lone_tiles_have_no_interval(tmp_path: Path):
    lone = [("b", "znz/b", 5, 0, 5)]
    first = [*one_scene([(50, 0, 50), (20, 80, 0)]), *lone]
    made = compared(tmp_path, first, first)
    assert [(row.scene, row.low) for row in made.scenes] == [("kam/a", 0.0), ("znz/b", None)]
    assert made.pooled.low == 0.0
    alone = compared(tmp_path / "alone", lone, [("b", "znz/b", 6, 0, 4)])
    assert (alone.pooled.low, alone.pooled.high) == (None, None)
    assert alone.verdict() == "difference 0.1000, and no interval: every scene has one tile"


def test_nothing_to_find_and_nothing_found_is_one(tmp_path: Path):
    made = compared(tmp_path, one_scene([(0, 0, 0)] * 2), one_scene([(0, 0, 0), (0, 10, 0)]))
    assert (made.pooled.first, made.pooled.second) == (1.0, 0.0)
    assert (made.pooled.low, made.pooled.high) == (-1.0, 0.0)


def test_recipes_pool_their_finished_folds(tmp_path: Path, cli: Cli):
    for fold, scene in enumerate(("kam/a", "kam/b", "znz/c")):
        write_tiles(tmp_path, f"one/fold{fold}", one_scene([(50, 0, 50), (40, 0, 60)], scene))
        if fold < 2:
            write_tiles(tmp_path, f"two/fold{fold}", one_scene([(80, 0, 20), (70, 0, 30)], scene))
    write_run(tmp_path / "runs/two/fold2", None)
    write_run(tmp_path / "runs/two/foldall", {})
    code, out, err = cli("compare", "one", "two/", "--root", tmp_path)
    assert code == 0
    assert out.splitlines() == [
        "scene   tiles  one     two     difference  low     high",
        "kam/a   2      0.4500  0.7500  0.3000      0.3000  0.3000",
        "kam/b   2      0.4500  0.7500  0.3000      0.3000  0.3000",
        "pooled  4      0.4500  0.7500  0.3000      0.3000  0.3000",
    ]
    assert err.splitlines() == [
        "left out, unfinished or unreadable: two/fold2",
        "4 validation tiles in common (6 of one, 4 of two)",
        "two is better by 0.3000 [0.3000, 0.3000]",
    ]
    back = cli("compare", "two", "one/fold1", "--root", tmp_path)[2]
    assert "2 validation tiles in common (4 of two, 2 of one/fold1)" in back
    assert "two is better by 0.3000 [0.3000, 0.3000]" in back


def test_json(tmp_path: Path, cli: Cli):
    write_tiles(tmp_path, "one/fold0", [("a", "kam/a", 50, 0, 50), ("b", "kam/b", 5, 5, 0)])
    write_tiles(tmp_path, "two/fold0", [("a", "kam/a", 25, 0, 75)])
    code, out, _ = cli("compare", "one", "two", "--json", "--root", tmp_path)
    assert code == 0
    row = {"tiles": 1, "first": 0.5, "second": 0.25, "difference": -0.25, "low": None, "high": None}
    assert json.loads(out) == {
        "first": "one", "second": "two", "first_tiles": 2, "second_tiles": 1, "left_out": [],
        "scenes": [{"scene": "kam/a", **row}], "pooled": {"scene": "pooled", **row},
    }  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Runs that cannot be compared with `one/fold0`, each for its reason."""
    tiles = one_scene([(50, 0, 50), (20, 80, 0)])
    write_tiles(tmp_path, "one/fold0", tiles)
    write_tiles(tmp_path, "elsewhere/fold1", one_scene([(50, 0, 50)], "znz/b"))
    write_tiles(tmp_path, "relabelled/fold0", [tiles[0], (*tiles[1][:2], 21, 80, 0)])
    for fold in range(2):
        write_tiles(tmp_path, f"refolded/fold{fold}", tiles)
    write_run(tmp_path / "runs/older/fold4", {"kam/a": (1, 0, 0)})
    write_run(tmp_path / "runs/whole/foldall", {})
    write_run(tmp_path / "runs/begun/fold0", None)
    write_run(tmp_path / "runs/begun/foldall", None)
    for name, file in (("cut", "oof.csv"), ("torn", "result.json")):
        write_tiles(tmp_path, f"{name}/fold0", tiles)
        (tmp_path / f"runs/{name}/fold0/{file}").write_text("tile,area,sce")
    write_tiles(tmp_path, "words/fold0", tiles)
    (tmp_path / "runs/words/fold0/oof.csv").write_text("tile,area,scene,tp,fp,fn\na,kam,a,1,many,0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("run", "error", "hint"),
    [
        ("oen/fold0", "no run 'oen/fold0' here", "did you mean 'one/fold0'?; kit runs lists them"),
        ("one/fold7", "no run 'one/fold7' here", "did you mean 'one/fold0'?"),
        ("elsewhere", "one/fold0 and elsewhere have no validation tile in common", "the same --data and --fold"),
        ("relabelled", "1 of 2 tiles have other masks in one/fold0 than in relabelled, first kam_a_0001", "--restart"),
        ("refolded", "2 of 4 validation tiles of refolded occur more than once, first kam_a_0000", "compare one fold"),
        ("older/fold4", "older/fold4 has no oof.csv", "kit run older --fold 4 --restart"),
        ("older", "older/fold4 has no oof.csv", "kit run older --fold 4 --restart"),
        ("whole", "whole has no finished fold", "kit run whole"),
        ("whole/foldall", "whole/foldall held nothing out", "--fold 0"),
        ("begun", "begun has no finished fold", "kit run begun"),
        ("begun/fold0", "begun/fold0 is not finished", "kit run begun --fold 0"),
        ("begun/foldall", "begun/foldall is not finished", "kit run begun --all"),
        ("torn/fold0", "result.json is ", "kit run torn --fold 0 --restart"),
        ("cut/fold0", "oof.csv is damaged: ", "kit run cut --fold 0 --restart"),
        ("words/fold0", "oof.csv is damaged: invalid literal", "kit run words --fold 0 --restart"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_told_with_the_remedy(root: Path, run: str, error: str, hint: str):
    with pytest.raises(RunError, match=error) as caught:
        compare("one/fold0", run, Paths(root))
    assert hint in caught.value.hint
    with pytest.raises(RunError):
        compare(run, "one/fold0", Paths(root))


def test_no_run_at_all_is_an_error_of_the_command(tmp_path: Path, cli: Cli):
    code, out, err = cli("compare", "lite0", "dpn92", "--root", tmp_path)
    assert (code, out) == (1, "")
    assert "error: no run 'lite0' here" in err
    assert "hint:  there are none yet" in err


def test_buildings_are_compared_too(tmp_path: Path, cli: Cli):
    """F1 of 2 x 3 / 8 against 2 x 4 / 8; without the counts of one run there is no table."""
    tiles = one_scene([(50, 0, 50), (50, 0, 50)])
    for name, matches in (("one", (1, 2)), ("two", (1, 3))):
        write_tiles(tmp_path, f"{name}/fold0", tiles)
        counts = [ObjectCounts(true=2, predicted=2, matched=(n,) + (0,) * 9, iou_sum=0.8 * n) for n in matches]
        rows = [{"tile": tile, **each.row()} for (tile, *_), each in zip(tiles, counts, strict=True)]
        pd.DataFrame(rows).to_csv(tmp_path / "runs" / name / "fold0/objects.csv", index=False)
    compared = compare("one", "two", Paths(tmp_path))
    (scene, pooled) = compared.objects
    assert (scene.scene, pooled.scene, scene.tiles) == ("kam/a", "pooled", 2)
    assert (pooled.first, pooled.second) == (0.75, 1.0)
    assert (pooled.low, pooled.high) == (0.0, 0.5)
    _, out, _ = cli("compare", "one", "two", "--root", tmp_path)
    assert [line.split()[0] for line in out.splitlines()] == ["scene", "kam/a", "pooled", "F1", "kam/a", "pooled"]
    (tmp_path / "runs/two/fold0/objects.csv").write_text("tile,true\nkam_a_0000,many\n")
    with pytest.raises(RunError, match=r"objects\.csv is damaged"):
        compare("one", "two", Paths(tmp_path))
    (tmp_path / "runs/two/fold0/objects.csv").unlink()
    without = compare("one", "two", Paths(tmp_path))
    assert without.objects == ()
    assert without.scenes == compared.scenes
