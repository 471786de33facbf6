"""Solution files: what they say, and what is refused without data."""

from pathlib import Path

import pytest
from factories import TINY_RECIPE
from solution_files import THREE, write_solution

from kit.errors import KitError, RecipeError
from kit.paths import Paths
from kit.solutions.rounds import load_solution
from kit.training.recipe import installed_recipes, is_solution, known_recipes, known_solutions, load_recipe


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.py").write_text(TINY_RECIPE)
    return tmp_path


def test_names_of_what_a_solution_makes(root: Path):
    solution = write_solution(root, THREE)
    first, second, last = solution.rounds
    assert (solution.weights(first), solution.weights(last)) == ("plan-one", "plan")
    assert [solution.run(last, each) for each in last.trainings] == ["plan-three-tiny", "plan-three-tiny-seed1"]
    assert solution.labels(second, second.pseudo[0]) == "plan-two-from-one"


def test_recipes_and_solutions_are_told_apart(root: Path):
    write_solution(root, THREE)
    paths = Paths(root)
    assert {"tiny", "lite0"} <= set(known_recipes(paths))
    assert {"plan", "open_cities", "open_cities_first_place", "mini", "nano"} <= set(known_solutions(paths))
    assert not set(known_recipes(paths)) & set(known_solutions(paths))
    with pytest.raises(RecipeError, match=r"plan.py is a solution of several rounds, expected a recipe"):
        load_recipe("plan", paths)
    assert not is_solution(root / "missing.py")


@pytest.mark.parametrize("name", [p.stem for p in installed_recipes().glob("*.py") if is_solution(p)])
def test_kits_own_solutions_fit_on_a_screen(name: str, tmp_path: Path):
    solution = load_solution(name, Paths(tmp_path))
    assert len(solution.path.read_text().splitlines()) <= 50
    assert solution.purpose


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ("ROUNDS = []", "plan.py: ROUNDS is not a list of rounds"),
        ("ROUNDS = [Training('tiny')]", "plan.py: ROUNDS is not a list of rounds"),
        ("ROUNDS = [Round('a', [])]", "plan.py, round a: it has no trainings"),
        ("ROUNDS = [Round('a', ['tiny'])]", "round a: its trainings are not a list of Training"),
        ("ROUNDS = [Round('a', [Training('tony')])]", "round a: no recipe 'tony'"),
        ("ROUNDS = [Round('a', [Training('plan')])]", "round a: no recipe 'plan'"),
        ("ROUNDS = [Round('a', [Training('tiny')]), Round('a', [Training('tiny')])]", "round a: an earlier round has"),
        ("ROUNDS = [Round('a', [Training('tiny')], [Pseudo('a')])]", "round a: pseudo-labels come from itself"),
        (
            "ROUNDS = [Round('a', [Training('tiny')], [Pseudo('b')]), Round('b', [Training('tiny')])]",
            "round a: pseudo-labels come from the later round b",
        ),
        ("ROUNDS = [Round('a', [Training('tiny')], teacher='a')]", "round a: the teacher comes from itself"),
        ("ROUNDS = [Round('a', [Training('tiny'), Training('tiny', (0,))])]", "round a: it trains tiny twice"),
        ("ROUNDS = [Round('a', [Training('tiny')], ['tier2'])]", "round a: it learns from 'tier2'"),
        ("ROUNDS = [Round('a', [Training('tiny')], [AddedSet('b', 0)])]", "round a: a weight of 0"),
        ("ROUNDS = [Round('a', [Training('tiny')], 2 * [AddedSet('b')])]", "round a: it learns from b twice"),
        ("ROUNDS = [Round('a', [Training('tiny', 'all')])]", "round a: tiny: folds 'all'"),
        ("ROUNDS = [Round('a', [Training('tiny', ('all', 0))])]", r"round a: tiny: folds \('all', 0\)"),
        ("ROUNDS = [Round('a', [Training('tiny', (-1,))])]", "round a: tiny: fold -1"),
        ("ROUNDS = [Round('a', [Training('tiny', steps=-3)])]", "round a: tiny: steps -3"),
        ("ROUNDS = [Round('a', [Training('tiny')], views='some')]", "round a: no views 'some'"),
        ("ROUNDS = [Round('a/b', [Training('tiny')])]", "round a/b: name 'a/b' cannot name a file"),
        (
            "ROUNDS = [Round('a', [Training('tiny')]), Round('b', [Training('tiny')], [Pseudo('a', ignore=(1, 0))])]",
            "round b: --ignore 1,0 is not a range",
        ),
    ],
)
def test_a_wrong_round_is_named(root: Path, rounds: str, message: str):
    with pytest.raises(RecipeError, match=message) as error:
        write_solution(root, rounds)
    assert error.value.hint


def test_an_unknown_solution(root: Path):
    with pytest.raises(KitError, match="no recipe 'open_city'") as error:
        load_solution("open_city", Paths(root))
    assert "open_cities" in error.value.hint
