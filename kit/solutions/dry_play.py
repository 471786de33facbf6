"""A solution played with random weights and tiny crops, in a folder that is removed in the end (`--dry-run`)."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kit.console import say
from kit.data.tiles.options import PrepareOptions, Style
from kit.data.tiles.prepare import prepare
from kit.deploy.weights.load import named_weights
from kit.models.pretrained import Source
from kit.paths import Paths
from kit.sample.sample import draw_sample
from kit.solutions.estimates import figures_of
from kit.solutions.play import SolutionOptions, play
from kit.solutions.preflight import recipes_of
from kit.solutions.rounds import Pseudo, Round, Solution
from kit.training.fit import Setup
from kit.training.recipe import Recipe

SHRINK, SIDE_PX = 8, 128  # sides of the drawn scenes are divided by it; of a tile and a chip
DATA = "drawn"


def dry_play(solution: Solution, paths: Paths, device: str = "") -> None:
    """Plays all rounds and stages: one step of each training, on one of its folds; nothing is kept.

    Args:
        solution: whose.
        paths: of the working root, for recipes and weights that are here already.
        device: empty for the best there is.

    Raises:
        KitError: of a stage.
    """
    recipes = recipes_of(solution, paths)
    names = [each.name for each in solution.rounds]
    rounds = [_short(round_, recipes, names, paths) for round_ in solution.rounds]
    folds = {fold for round_ in rounds for training in round_.trainings for fold in training.folds}
    count = 1 + max((fold for fold in folds if isinstance(fold, int)), default=1)
    with TemporaryDirectory() as folder:
        root = Paths(Path(folder))
        train = draw_sample(root.sample, shrink=SHRINK) / "train_tier_1"
        style = Style(grid="native", side_px=SIDE_PX, layers=True)
        for name in [DATA, *{each.name for round_ in rounds for each in round_.added}]:
            prepare(train, root, PrepareOptions(name=name, by="tile", k=max(count, 2), style=style))
        setup = Setup(source=Source(pretrained=False), checkpoint_minutes=0, tiny=True)
        play(
            replace(solution, rounds=rounds, sample=False), root,
            SolutionOptions(DATA, root.sample / "test", device=device, workers=0, setup=setup),
        )  # fmt: skip
    say(f"{solution.name}: all {len(rounds)} rounds can be played")


def _short(round_: Round, recipes: Mapping[str, Recipe], names: Collection[str], paths: Paths) -> Round:
    """Returns a round of one step a training; recipes, and weights that no round makes, are named by their paths."""

    def located(name: str) -> str:
        return name if name in names or not name else str(named_weights(name, paths.weights).resolve())

    trainings = []
    for each in round_.trainings:
        recipe = recipes[each.recipe]
        fits, folds = figures_of(recipe).fits, tuple(each.folds[:1]) or (0,)
        trainings.append(replace(each, recipe=str(recipe.path), folds=folds, epochs=fits, steps=fits))
    # random weights are certain of nothing
    every_chip: dict[str, Any] = {"ignore": None, "min_confidence": 0.0, "drop_empty": False}
    learns = [
        replace(each, of=located(each.of), **every_chip) if isinstance(each, Pseudo) else each for each in round_.learns
    ]
    return replace(round_, trainings=trainings, learns=learns, teacher=located(round_.teacher))
