"""What a solution costs, and its plan."""

from collections.abc import Callable
from pathlib import Path

import pytest
from factories import TINY_RECIPE
from solution_files import THREE, write_solution

from kit.paths import Paths
from kit.pipeline.cost import cost_of
from kit.solutions.estimates import DataSize, costs, figures_of
from kit.solutions.stages import Planner, SolutionInputs
from kit.training.recipe import load_recipe

Cli = Callable[..., tuple[int, str, str]]


def test_figures_are_the_recipes(tmp_path: Path):
    figures = figures_of(load_recipe("open_cities".replace("open_cities", "lite0"), Paths(tmp_path)))
    assert (figures.epochs, figures.fits, figures.crop_px, figures.batch, figures.crops_per_tile) == (12, 1, 512, 8, 8)
    assert not figures.distils
    assert not figures.refuses_soft


def test_costs_add_up(tmp_path: Path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.py").write_text(TINY_RECIPE)
    solution, paths = write_solution(tmp_path, THREE), Paths(tmp_path)
    recipe = load_recipe("tiny", paths)
    size = DataSize(tiles=100, folds=2, added={}, chips=10)
    stages = Planner(solution, paths, SolutionInputs(folds=(0, 1))).stages
    by_name = dict(zip(map(str, stages), costs(stages, {"tiny": recipe}, size), strict=True))
    forward = cost_of(recipe).gflop_512
    crop = forward * 3 * (64 / 512) ** 2
    one = 2 * 50 * 0.75 * crop + 3 * 50 * 4 * forward  # 2 epochs, and 3 predictions of the held-out tiles
    assert by_name["train plan-one-tiny"].gflop == pytest.approx(one)
    two = 2 * (2 * 60 * 0.75 * crop + 3 * 50 * 4 * forward)  # two folds, with pseudo-labels
    assert by_name["train plan-two-tiny"].gflop == pytest.approx(two)
    assert by_name["train plan-three-tiny"].gflop == pytest.approx(2 * 110 * 0.75 * crop)  # on all tiles
    assert by_name["label plan-three-from-two"].gflop == pytest.approx(10 * 2 * 4 * 4 * forward)
    assert by_name["submit plan"].gflop == pytest.approx(10 * 3 * 4 * 4 * forward)  # networks, views, 1024 px
    assert by_name["label plan-three-from-two"].disk_gb > by_name["submit plan"].disk_gb > 0


@pytest.mark.parametrize("name", ["open_cities", "open_cities_first_place", "mini", "nano"])
def test_the_plan_needs_no_data(name: str, tmp_path: Path, cli: Cli):
    code, out, err = cli("run", name, "--plan", "--root", tmp_path)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["round", "stage", "makes", "state", "PFLOP", "T4", "h", "V100", "h", "A100", "h",
                                "H100", "h", "GB"]  # fmt: skip
    assert all("missing" in line for line in lines[1:-1])
    assert "left to do" in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_plan_of_a_wrong_solution(tmp_path: Path, cli: Cli):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "wrong.py").write_text(
        "from kit.solutions.rounds import *\nROUNDS = [Round('a', [Training('lite0')], teacher='big')]\n"
    )
    code, _, err = cli("run", "wrong", "--plan", "--root", tmp_path)
    assert code == 1
    assert "round a, train wrong-a-lite0: lite0 learns from no teacher" in err
