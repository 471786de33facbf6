"""What a solution file holds: `ROUNDS`, a sequence of rounds, in plain Python."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.data.added import AddedSet
from kit.deploy.freeze.ensemble import view_codes
from kit.errors import KitError, RecipeError, nearest
from kit.outputs import check_name
from kit.paths import Paths
from kit.pipeline.pseudo_labels import PseudoOptions
from kit.training.recipe import find_recipe, known_recipes, load_module

__all__ = ["AddedSet", "Pseudo", "Round", "Solution", "Training", "load_solution"]


@dataclass(frozen=True)
class Training:
    """A recipe that is trained in a round, on one or several folds."""

    recipe: str  # a name, or a path
    # held out, one network each; empty: every fold there is; `("all",)`: one network that trains on all tiles
    folds: Sequence[int | str] = ()
    epochs: int = 0  # 0 for the recipe's
    steps: int = 0  # over all epochs; 0 for the recipe's
    seed: int = 0  # random seed

    def __str__(self) -> str:
        return Path(self.recipe).stem + (f"-seed{self.seed}" if self.seed else "")


@dataclass(frozen=True)
class Pseudo:
    """Pseudo-labels of the test chips, made with the weights of an earlier round."""

    of: str  # the round; or the name of weights that are here already
    weight: float = 1.0  # as of an `AddedSet`
    ignore: tuple[float, float] | None = (0.35, 0.65)  # see `kit.pipeline.pseudo_labels.PseudoOptions`, as the others
    soft: bool = False  # trains on probabilities
    min_confidence: float = 0.0  # of a chip
    drop_empty: bool = False  # leaves chips without building out

    def options(self, **others: Any) -> PseudoOptions:
        """Returns the options of `kit pseudo`."""
        return PseudoOptions(
            ignore=self.ignore, soft=self.soft, min_confidence=self.min_confidence, drop_empty=self.drop_empty, **others
        )


@dataclass(frozen=True)
class Round:
    """Trainings that learn from the same data; their networks are exported as one ensemble."""

    name: str  # of the round
    trainings: Sequence[Training]  # at least one
    learns: Sequence[Pseudo | AddedSet] = ()  # what they learn from beside the true labels
    teacher: str = ""  # a round or the name of weights, for recipes with `Distillation`
    views: str = "flips"  # of the ensemble: `none`, `flips` or `d4`

    @property
    def pseudo(self) -> list[Pseudo]:
        """What it learns from that an earlier round predicts."""
        return [source for source in self.learns if isinstance(source, Pseudo)]

    @property
    def added(self) -> list[AddedSet]:
        """The other data sets."""
        return [source for source in self.learns if isinstance(source, AddedSet)]


@dataclass(frozen=True)
class Solution:
    """A loaded solution file."""

    name: str  # the file's stem
    path: Path  # the file
    rounds: Sequence[Round]  # in the order in which they are trained
    sample: bool = field(default=False)  # whether the sample city is drawn where there is no data set
    purpose: str = ""  # first line of the docstring

    def round(self, name: str) -> Round:
        """Returns the round of that name."""
        return next(each for each in self.rounds if each.name == name)

    def weights(self, round_: Round) -> str:
        """Returns the name of a round's weights: the last ones have the solution's name."""
        return self.name if round_ is self.rounds[-1] else f"{self.name}-{round_.name}"

    def run(self, round_: Round, training: Training) -> str:
        """Returns the name of a training's runs."""
        return f"{self.name}-{round_.name}-{training}"

    def labels(self, round_: Round, pseudo: Pseudo) -> str:
        """Returns the name of the data set of pseudo-labels."""
        return f"{self.name}-{round_.name}-from-{Path(pseudo.of).stem}"


def titled(name: str) -> str:
    """Returns how messages call a round: `round first`, but `round1`."""
    return name if name.startswith("round") else f"round {name}"


def load_solution(name: str, paths: Paths) -> Solution:
    """Returns the solution of a path or a name, checked as far as it can be without data.

    Raises:
        RecipeError: there is none, it cannot be imported, or a round is wrong; the message names the round.
    """
    path = find_recipe(name, paths)
    module, _ = load_module(path)
    rounds = getattr(module, "ROUNDS", None)
    if not isinstance(rounds, Sequence) or not rounds or not all(isinstance(each, Round) for each in rounds):
        raise RecipeError(
            f"{path.name}: ROUNDS is not a list of rounds", 'expected: ROUNDS = [Round("first", [...]), ...]'
        )
    purpose = (module.__doc__ or "").strip().split("\n")[0].rstrip(".")
    solution = Solution(path.stem, path, tuple(rounds), bool(getattr(module, "SAMPLE", False)), purpose)
    for place, round_ in enumerate(solution.rounds):
        for problem in _problems(solution, place, paths):
            raise RecipeError(f"{path.name}, {titled(round_.name)}: {problem.message}", problem.hint)
    return solution


def _problems(solution: Solution, place: int, paths: Paths) -> Iterator[KitError]:
    """Yields what is wrong with a round."""
    round_ = solution.rounds[place]
    names = [each.name for each in solution.rounds]
    if names.index(round_.name) != place:
        yield KitError("an earlier round has the same name", "give each round a name of its own")
    if not isinstance(round_.trainings, Sequence) or not all(isinstance(each, Training) for each in round_.trainings):
        yield KitError("its trainings are not a list of Training", 'expected: Round("first", [Training("lite0")])')
        return
    if not round_.trainings:
        yield KitError("it has no trainings", "add a Training")
    for source in round_.learns:
        if not isinstance(source, Pseudo | AddedSet):
            yield KitError(f"it learns from {source!r}", 'expected Pseudo("round") or AddedSet("data set")')
    try:
        for name in (round_.name, solution.weights(round_), *(solution.run(round_, each) for each in round_.trainings)):
            check_name(name, "name")
        view_codes(round_.views)
        for pseudo in round_.pseudo:
            pseudo.options().check()
    except KitError as cause:
        yield cause
    twice = [str(each) for each in round_.trainings]
    for name in {name for name in twice if twice.count(name) > 1}:
        yield KitError(f"it trains {name} twice", "give several folds in one Training, or another seed")
    sources = [str(getattr(each, "of", getattr(each, "name", ""))) for each in round_.learns]
    for name in {name for name in sources if sources.count(name) > 1}:
        yield KitError(f"it learns from {name} twice", "leave one out; a weight lets it count more")
    for source in round_.learns:
        if not isinstance(source.weight, int | float) or not 0 < source.weight < float("inf"):
            yield KitError(f"a weight of {source.weight!r}", "expected a number above 0")
    known = known_recipes(paths)
    for training in round_.trainings:
        yield from _of_training(training, known)
    for what, name in [*(("pseudo-labels", each.of) for each in round_.pseudo), ("the teacher", round_.teacher)]:
        later = names[place:]
        if name in later:
            own = "itself" if name == round_.name else f"the later {titled(name)}"
            yield KitError(f"{what} come from {own}".replace("teacher come", "teacher comes"), "name an earlier round")


def _of_training(training: Training, known: dict[str, Path]) -> Iterator[KitError]:
    if not isinstance(training.recipe, str) or not (
        training.recipe in known or (training.recipe.endswith(".py") and Path(training.recipe).is_file())
    ):
        yield KitError(f"no recipe {training.recipe!r}", nearest(Path(str(training.recipe)).stem, known))
    folds = training.folds
    if not isinstance(folds, list | tuple) or ("all" in folds and len(folds) > 1) or len(set(folds)) < len(folds):
        yield KitError(
            f"{training}: folds {folds!r}", 'expected numbers such as (0, 1), ("all",), or () for every fold'
        )
    elif wrong := [fold for fold in folds if fold != "all" and not (isinstance(fold, int) and fold >= 0)]:
        yield KitError(f"{training}: fold {wrong[0]!r}", "expected a number from 0, or all")
    for key in ("epochs", "steps", "seed"):
        number = getattr(training, key)
        if not isinstance(number, int) or not 0 <= number < 2**32:
            yield KitError(f"{training}: {key} {number!r}", "expected an integer of at least 0")
