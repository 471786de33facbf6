"""What is wrong with a solution and its data, before anything is trained."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from kit.data.dataset import Fold
from kit.data.folds.assign import fold_numbers
from kit.data.index import read_index
from kit.data.joined_sets import join_sets
from kit.data.sources.chips import Chip, find_chips
from kit.deploy.weights.card import CLASSES
from kit.deploy.weights.load import named_weights, read_card
from kit.errors import CatalogError, DataError, KitError, RecipeError, WeightsError, nearest
from kit.paths import Paths
from kit.solutions.estimates import DataSize, RecipeFigures, costs, figures_of
from kit.solutions.rounds import Round, Solution, Training
from kit.solutions.stages import Planner, SolutionInputs, named, read_records
from kit.system.files import sha256_of
from kit.training.fit import Setup
from kit.training.recipe import Recipe, load_recipe

LEDGER = "pseudo.csv"  # in data sets that kit pseudo made


def recipes_of(solution: Solution, paths: Paths) -> dict[str, Recipe]:
    """Returns the recipes of all rounds, by the name that the trainings give."""
    recipes: dict[str, Recipe] = {}
    for round_ in solution.rounds:
        for training in round_.trainings:
            if training.recipe not in recipes:
                recipes[training.recipe] = load_recipe(training.recipe, paths)
    return recipes


def data_name(paths: Paths, name: str) -> str:
    """Returns the name of the data set with the true labels: the only one that `kit pseudo` did not make, by default.

    Raises:
        DataError: there is none of that name, none, or several.
    """
    known = [each for each in paths.data_names() if not (paths.data(each) / LEDGER).is_file()]
    if name and name not in paths.data_names():
        raise DataError(f"no data set {name!r} below {paths.data_folder}", f"{nearest(name, known)}; or kit prepare")
    if not name and len(known) != 1:
        raise DataError(
            f"several data sets are prepared: {', '.join(known)}" if known else "no data set is prepared here",
            "choose one with --data NAME" if known else "kit prepare CATALOG",
        )
    return name or known[0]


def chips_of(solution: Solution, paths: Paths, test: Path | None) -> list[Chip]:
    """Returns the test chips.

    Raises:
        CatalogError: there are none.
    """
    if test is None and not solution.sample:
        raise CatalogError("no unlabelled chips", "name the test set: --test FOLDER")
    return find_chips(test or paths.sample / "test")


def find_inputs(
    solution: Solution, paths: Paths, recipes: Mapping[str, Recipe], data: str, test: Path | None, setup: Setup
) -> SolutionInputs:
    """Returns what the stages of a solution depend on from outside, as far as it is there."""
    folds: tuple[int, ...] = ()
    try:
        data = data_name(paths, data)
        folds = tuple(fold_numbers(read_index(paths, data)[1]))
    except DataError:
        data = ""
    sets = [data, *(each.name for round_ in solution.rounds for each in round_.added)]
    files = {f"data {name}": paths.data(name) / "index.csv" for name in sets if name}
    rounds = {each.name for each in solution.rounds}
    for name in {name for round_ in solution.rounds for name in _weights_of(round_)} - rounds:
        files[f"weights {name}"] = named_weights(name, paths.weights)
    checksums = {f"recipe {name}": recipe.sha256 for name, recipe in recipes.items()}
    checksums |= {name: sha256_of(file) for name, file in files.items() if file.is_file()}
    with suppress(CatalogError):  # sizes, not times: a copy of the test set is the same
        text = " ".join(f"{chip.id} {chip.path.stat().st_size}" for chip in chips_of(solution, paths, test))
        checksums["chips"] = hashlib.sha256(text.encode()).hexdigest()
    source = setup.source
    return SolutionInputs(
        data, folds, checksums, {"precision": setup.precision, "encoder": str(source.file or source.pretrained)}
    )


def _weights_of(round_: Round) -> list[str]:
    """Returns the rounds or weights that a round learns from."""
    return [*(each.of for each in round_.pseudo), *([round_.teacher] if round_.teacher else [])]


def check_solution(planner: Planner, recipes: Mapping[str, Recipe], data: str, test: Path | None) -> None:
    """Checks a solution against data, recipes, weights and disk, before any training.

    Args:
        planner: of the solution.
        recipes: of its trainings, see `recipes_of`.
        data: name of the data set, as the user gave it.
        test: the chips, likewise.

    Raises:
        KitError: something is missing or does not fit; the message names round and stage.
    """
    check_rounds(planner, recipes)
    paths, chips, index = planner.paths, 0, pd.DataFrame()
    added: dict[str, int] = {}
    for stage in planner.stages:
        round_ = planner.solution.round(stage.round)
        with named(stage):
            if isinstance(stage.source, Training):
                name, index = read_index(paths, data_name(paths, data))
                joined, _ = join_sets(paths, name, index, round_.added)
                added |= joined["data"].value_counts().drop(name).to_dict()
                _check_data(recipes[stage.source.recipe], stage.source, round_, joined)
            elif stage.kind in ("label", "submit"):
                chips = len(chips_of(planner.solution, paths, test))
    _check_disk(planner, recipes, DataSize(len(index), len(fold_numbers(index)), added, chips))


def check_rounds(planner: Planner, recipes: Mapping[str, Recipe]) -> None:
    """Checks what needs no data: teachers, other weights, and whether losses take soft labels.

    Raises:
        KitError: see `check_solution`.
    """
    rounds = [each.name for each in planner.solution.rounds]
    for stage in planner.stages:
        round_ = planner.solution.round(stage.round)
        with named(stage):
            if isinstance(stage.source, Training):
                _check_recipe(stage.source, round_, figures_of(recipes[stage.source.recipe]))
            source = round_.teacher if stage.kind == "train" else getattr(stage.source, "of", "")
            if source and source not in rounds:
                _check_weights(source, planner.paths, rounds)


def _check_weights(name: str, paths: Paths, rounds: Sequence[str]) -> None:
    """Checks weights that no round makes."""
    file = named_weights(name, paths.weights)
    if not file.is_file():
        raise WeightsError(f"{name!r} is neither a round nor weights in {paths.weights}", nearest(name, rounds))
    card = read_card(file)
    if tuple(card.classes) != CLASSES:
        raise WeightsError(
            f"{file} was trained on the classes {', '.join(card.classes)}, expected {', '.join(CLASSES)}",
            "choose other weights: kit weights lists what is here",
        )


def _check_recipe(training: Training, round_: Round, figures: RecipeFigures) -> None:
    if figures.distils and not round_.teacher:
        raise RecipeError(
            f"{training.recipe} learns from a teacher, and the round has none", "give the Round a teacher"
        )
    if round_.teacher and not figures.distils:
        raise RecipeError(
            f"{training.recipe} learns from no teacher, and the round has {round_.teacher}",
            "move the training to another round, or add Distillation() to its callbacks",
        )
    if training.epochs and training.epochs < figures.fits:
        raise RecipeError(f"{training.epochs} epochs: {training.recipe} trains in {figures.fits} fits", "give more")
    if figures.refuses_soft and any(each.soft for each in round_.pseudo):
        raise RecipeError(figures.refuses_soft, "leave soft=True out, or train another recipe")


def _check_data(recipe: Recipe, training: Training, round_: Round, index: pd.DataFrame) -> None:
    """Checks that the folds of a training exist, and that its recipe can read all data sets."""
    known = fold_numbers(index)
    if missing := [fold for fold in training.folds if fold != "all" and fold not in known]:
        raise DataError(f"no fold {missing[0]} among {known}", "make as many folds: kit folds NAME -k 5")
    if not known and not training.folds:
        raise DataError("no tile of the data set belongs to a fold", "make folds: kit folds NAME")
    if len(known) == 1 and "all" not in training.folds:
        raise DataError(f"fold {known[0]} is the only one: nothing is left to train on", "make more: kit folds NAME")
    if not len(index[index["fold"] >= 0]) and "all" not in training.folds:
        raise DataError("nothing to train on", "prepare more scenes")
    dls: Any = recipe.data(Fold("all", index, index.iloc[:0], workers=0))  # layers that are missing are an error here
    if getattr(dls.train.dataset, "layers", False) and round_.pseudo:
        raise RecipeError(
            f"{recipe.name} needs the layers of masks, which pseudo-labels do not have",
            "train a recipe of footprints on them",
        )


def _check_disk(planner: Planner, recipes: Mapping[str, Recipe], size: DataSize) -> None:
    """Checks that what is left to do fits on the disk."""
    root = planner.paths.root.resolve()
    folder = next(each for each in (root, *root.parents) if each.is_dir())
    free_gb, needed_gb = shutil.disk_usage(folder).free / 1e9, 0.0
    states = planner.states(read_records(planner.paths.solution(planner.solution.name)))
    for stage, state, cost in zip(planner.stages, states, costs(planner.stages, recipes, size), strict=True):
        needed_gb += 0.0 if state == "done" else cost.disk_gb
        if needed_gb > free_gb:
            with named(stage):
                raise KitError(
                    f"the disk of {folder} has {free_gb:.1f} GB free, and about {needed_gb:.1f} GB are written up to "
                    "this stage",
                    "free some space, or choose another --root",
                )
