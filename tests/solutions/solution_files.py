"""Solution files of tests."""

from pathlib import Path

from kit.paths import Paths
from kit.solutions.rounds import Solution, load_solution

HEAD = '"""A solution for tests."""\nfrom kit.solutions.rounds import AddedSet, Pseudo, Round, Training\n'
THREE = """ROUNDS = [
    Round("one", [Training("tiny", folds=(0,))]),
    Round("two", [Training("tiny", folds=(0, 1))], learns=[Pseudo("one", ignore=None)]),
    Round("three", [Training("tiny", ("all",)), Training("tiny", seed=1)], learns=[Pseudo("two", ignore=None)]),
]
"""


def write_solution(root: Path, rounds: str, name: str = "plan") -> Solution:
    """Returns a solution of these lines; recipes and solutions lie below the root."""
    (root / "recipes").mkdir(parents=True, exist_ok=True)
    (root / "recipes" / f"{name}.py").write_text(HEAD + rounds)
    return load_solution(name, Paths(root))
