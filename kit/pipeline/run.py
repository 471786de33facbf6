"""Trains the folds of a recipe, scores them, exports the ensemble (`kit run`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from kit.console import say
from kit.data.added import AddedSet
from kit.data.dataset import split_fold
from kit.data.folds.assign import fold_numbers
from kit.data.index import read_index
from kit.data.joined_sets import join_sets, report_unknown_ground
from kit.data.tiles.options import PrepareOptions
from kit.data.tiles.prepare import prepare
from kit.deploy.weights.load import load_weights
from kit.deploy.weights.store import check_free
from kit.errors import DataError, RunError
from kit.paths import Paths
from kit.pipeline.export import Exported
from kit.pipeline.export_runs import export_runs
from kit.pipeline.parallel import side_by_side
from kit.pipeline.pseudo_set import labelled_by
from kit.pipeline.scores import show_scores
from kit.pipeline.start_from import start_file
from kit.sample.sample import draw_sample
from kit.system.files import sha256_of
from kit.system.processes import joined
from kit.system.ranks import rank, wait_for_all
from kit.training.fit import Setup, fit_fold
from kit.training.recipe import load_recipe


@dataclass(frozen=True)
class RunOptions:
    """The options of `kit run`."""

    data: str = ""  # name of the data set; empty for the only one. Folds and validation come from it
    added: tuple[AddedSet, ...] = ()  # data sets that train beside it, in every fold
    folds: tuple[int | str, ...] = ()  # numbers, or `("all",)`; empty: every fold
    seed: int = 0  # random seed
    device: str = ""  # empty: a GPU if there is one
    workers: int | None = None  # loader processes; None: as many as suit the machine
    # how each fold is trained; `teacher`, `start_from` and `added` below replace its fields
    setup: Setup = field(default_factory=Setup)
    teacher: Path | None = None  # an exported weights file, for recipes that learn from one
    start_from: str = ""  # weights to start from, see `start_file`
    views: str = "flips"  # of the exported ensemble
    export: bool = True  # whether to export the ensemble at the end
    name: str = ""  # of the runs and of the weights; empty for the recipe's


def run(name: str, paths: Paths, options: RunOptions) -> Exported | None:
    """Trains the folds of a recipe, shows the out-of-fold scores and exports the ensemble.

    Several ranks train each fold together. Only rank 0 scores and exports; the others return None, as does rank 0
    without an export.
    """
    with joined(options.device) as device:
        recipe = load_recipe(name, paths)
        runs = options.name or recipe.name
        if rank() == 0:
            if options.export:
                check_free(paths.weights, runs)
            find_data(recipe.option("SAMPLE", False), paths, options.data)
        wait_for_all()
        data, index = read_index(paths, options.data)
        folds, count = folds_of(options, index), len(index)
        index, added = join_sets(paths, data, index, options.added)
        if folds != ("all",):
            report_unknown_ground(index)
            _report_labels_of_validation(added, folds, paths)
        loading = {"seed": options.seed, "device": device, "workers": options.workers}
        splits = [split_fold(index, fold, **loading) for fold in folds]  # wrong folds fail before training
        index_sha256 = sha256_of(paths.data(data) / "index.csv")
        more = f" and {len(index) - count} of {', '.join(each.name for each in added)}" if added else ""
        say(f"{recipe.name} on {data}: {count} tiles{more}, folds {', '.join(map(str, folds))}, {device}")
        setup = replace(_setup(options, str(device)), added=added)
        starts = [start_file(options.start_from, fold, paths) for fold in folds]
        for start, fold in zip(starts, folds, strict=True):
            if start and start.parent.resolve() == paths.run(runs, fold).resolve():
                raise RunError(
                    f"--start-from {start} is written by this run", "name another run, or copy the file first"
                )
        results = []
        for split, start in zip(splits, starts, strict=True):
            folder = paths.run(runs, split.number)
            results.append(fit_fold(recipe, split, folder, data, index_sha256, replace(setup, start_from=start)))
        first = rank() == 0
    if not first:
        return None
    show_scores(results, [paths.run(runs, fold) for fold in folds])
    if not options.export:
        return None
    return export_runs([f"{runs}/fold{fold}" for fold in folds], runs, paths, options.views, recipe=recipe)


def run_side_by_side(
    name: str, paths: Paths, options: RunOptions, arguments: Sequence[str], at_once: int, nproc: int = 1
) -> Exported | None:
    """Trains several folds in parallel, then scores and exports like `run`.

    Args:
        name: of the recipe.
        paths: of the working root.
        options: of the command.
        arguments: the same, as the user typed it.
        at_once: folds in parallel.
        nproc: processes per fold.
    """
    recipe = load_recipe(name, paths)
    find_data(recipe.option("SAMPLE", False), paths, options.data)
    data, index = read_index(paths, options.data)
    folds = folds_of(options, index)
    join_sets(paths, data, index, options.added)  # errors are printed once, not by each fold
    side_by_side(arguments, folds, min(at_once, len(folds)), nproc)
    setup = replace(options.setup, restart=False, resume=False)
    return run(name, paths, replace(options, setup=setup))


def _setup(options: RunOptions, device: str) -> Setup:
    """Returns the setup with the teacher loaded."""
    setup = options.setup
    if options.teacher is None:
        return setup
    teacher = load_weights(options.teacher, device)
    say(f"teacher {options.teacher.name}: {len(teacher.card.members)} members, views {teacher.card.views}")
    return replace(
        setup, teacher=teacher.module.members, teacher_sha256=teacher.sha256, teacher_weights=teacher.card.weights
    )


def _report_labels_of_validation(added: Sequence[AddedSet], folds: Sequence[int | str], paths: Paths) -> None:
    """Says on stderr which pseudo-labels come from networks that did not hold these folds out."""
    for each in added:
        card = labelled_by(paths.data(each.name))
        members = card.members if card else ()
        known = [str(fold) for fold in folds if any(member.fold != fold for member in members)]
        if known:
            say(
                f"{each.name} was labelled by networks that may have been trained on the validation tiles of "
                f"{'fold' if len(known) == 1 else 'folds'} {', '.join(known)}: scores may be a little too high"
            )


def find_data(sample: bool, paths: Paths, name: str) -> None:
    """Draws and prepares the sample city where there is no data set, for recipes with SAMPLE = True."""
    if sample and not name and not paths.data_names():
        if not (paths.sample / "train_tier_1" / "catalog.json").exists():  # any seed and scale will do
            say(f"no data set here: drawing the sample city into {paths.sample}")
            draw_sample(paths.sample)
        prepare(paths.sample / "train_tier_1", paths, PrepareOptions(name="sample", by="scene", k=2))


def folds_of(options: RunOptions, index: pd.DataFrame) -> tuple[int | str, ...]:
    """Returns the folds to train: those of the options, else all of the index.

    Raises:
        DataError: the options name none, and no tile belongs to a fold.
    """
    if not (folds := options.folds or tuple(fold_numbers(index))):
        raise DataError(
            "no tile of the data set belongs to a fold", "assign folds: kit folds NAME; or train with --all"
        )
    return folds
