"""From a recipe to weights: data, folds, out-of-fold score, export."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from kit.console import say
from kit.data.dataset import split_fold
from kit.data.folds.assign import fold_numbers
from kit.data.index import read_index
from kit.data.tiles.options import PrepareOptions
from kit.data.tiles.prepare import prepare
from kit.deploy.weights.load import load_weights
from kit.deploy.weights.store import check_free
from kit.errors import RunError
from kit.models.pretrained import Source
from kit.paths import Paths
from kit.pipeline.export import Exported
from kit.pipeline.export_runs import export_runs
from kit.pipeline.parallel import side_by_side
from kit.pipeline.scores import show_scores
from kit.pipeline.start_from import start_file
from kit.sample.sample import draw_sample
from kit.system.files import sha256_of
from kit.system.processes import joined
from kit.system.ranks import rank, wait_for_all
from kit.training.fit import Setup, fit_fold
from kit.training.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Plan:
    """What `kit run` was asked for.

    Args:
        data: name of the data set; empty for the only one.
        folds: numbers, or `("all",)`; empty for every fold there is.
        minutes: wall time per fold; 0 lets the recipe decide.
        seed: of every random choice.
        device: empty for the best there is.
        workers: loader processes; -1 chooses for the machine.
        source: where the encoder's weights come from.
        views: of the exported ensemble.
        teacher: an exported weights file, for recipes that learn from one.
        start_from: weights to begin with, see `start_file`.
        export: freezes the ensemble in the end.
        compiled, checkpoint_minutes, tensorboard, resume, restart: see `Setup`.
    """

    data: str = ""
    folds: tuple[int | str, ...] = ()
    minutes: float = 0.0
    seed: int = 0
    device: str = ""
    workers: int = -1
    source: Source = field(default_factory=Source)
    views: str = "flips"
    teacher: Path | None = None
    start_from: str = ""
    export: bool = True
    compiled: bool = False
    checkpoint_minutes: float = 10.0
    tensorboard: bool = False
    resume: bool = False
    restart: bool = False


def run(name: str, paths: Paths, plan: Plan) -> Exported | None:
    """Trains the folds of a recipe, shows the out-of-fold scores and exports the ensemble under the recipe's name.

    Where a launcher started several processes, all of them train each fold together; the first one alone scores and
    exports, and the others return None, as all do where no export is wanted.

    Raises:
        KitError: see the stages.
    """
    with joined(plan.device) as device:
        recipe = load_recipe(name, paths)
        if rank() == 0:
            if plan.export:
                check_free(paths.weights, recipe.name)
            find_data(recipe, paths, plan.data)
        wait_for_all()
        data, index = read_index(paths, plan.data)
        folds = folds_of(plan, index)
        options = {"seed": plan.seed, "device": device, "workers": plan.workers}
        splits = [split_fold(index, fold, **options) for fold in folds]  # a wrong one fails at once
        index_sha256 = sha256_of(paths.data(data) / "index.csv")
        say(f"{recipe.name} on {data}: {len(index)} tiles, folds {', '.join(map(str, folds))}, {device}")
        setup = _setup(plan, str(device))
        starts = [start_file(plan.start_from, fold, paths) for fold in folds]
        for start, fold in zip(starts, folds, strict=True):
            if start and start.parent.resolve() == paths.run(recipe.name, fold).resolve():
                raise RunError(f"{start} is what this run writes", "name another run, or copy the file elsewhere first")
        results = []
        for split, start in zip(splits, starts, strict=True):
            folder = paths.run(recipe.name, split.number)
            results.append(fit_fold(recipe, split, folder, data, index_sha256, replace(setup, start_from=start)))
        first = rank() == 0
    if not first:
        return None
    show_scores(results, [paths.run(recipe.name, fold) for fold in folds])
    if not plan.export:
        return None
    return export_runs([f"{recipe.name}/fold{fold}" for fold in folds], recipe.name, paths, plan.views, recipe=recipe)


def run_side_by_side(
    name: str, paths: Paths, plan: Plan, arguments: Sequence[str], at_once: int, nproc: int = 1
) -> Exported | None:
    """Trains several folds at once, in processes of their own, then does as `run`.

    Args:
        name: of the recipe.
        paths: of the working root.
        plan: what was asked for.
        arguments: the same, as the user typed it.
        at_once: folds side by side.
        nproc: processes of each fold.
    """
    recipe = load_recipe(name, paths)
    find_data(recipe, paths, plan.data)
    folds = folds_of(plan, read_index(paths, plan.data)[1])
    side_by_side(arguments, folds, min(at_once, len(folds)), nproc)
    return run(name, paths, replace(plan, restart=False, resume=False))


def _setup(plan: Plan, device: str) -> Setup:
    """Returns how the fits are done, the teacher loaded."""
    setup = Setup(
        plan.minutes, plan.source, plan.compiled, checkpoint_minutes=plan.checkpoint_minutes,
        tensorboard=plan.tensorboard, resume=plan.resume, restart=plan.restart,
    )  # fmt: skip
    if plan.teacher is None:
        return setup
    teacher = load_weights(plan.teacher, device)
    say(f"teacher {plan.teacher.name}: {len(teacher.card.members)} members, views {teacher.card.views}")
    return replace(setup, teacher=teacher.module.members, teacher_sha256=teacher.sha256)


def find_data(recipe: Recipe, paths: Paths, name: str) -> None:
    """Makes sure that there is a data set: a recipe with SAMPLE = True draws the sample city where there is none."""
    if not name and not paths.data_names() and recipe.option("SAMPLE", False):
        if not (paths.sample / "train_tier_1" / "catalog.json").exists():  # one of another seed or scale will do
            say(f"no data set here: drawing the sample city into {paths.sample}")
            draw_sample(paths.sample)
        prepare(paths.sample / "train_tier_1", paths, PrepareOptions(name="sample", by="scene", k=2))


def folds_of(plan: Plan, index: pd.DataFrame) -> tuple[int | str, ...]:
    """Returns the folds that are wanted."""
    return plan.folds or tuple(fold_numbers(index))
