"""From a recipe to weights: data, folds, out-of-fold score, export."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.console import say, table
from kit.data.dataset import read_tile, split_fold
from kit.data.folds.assign import fold_numbers
from kit.data.index import read_index
from kit.data.masks import Counts, pool
from kit.data.tiles.prepare import prepare
from kit.deploy.weights.card import Member
from kit.deploy.weights.load import load_weights, read_card
from kit.errors import DataError, RunError, WeightsError
from kit.models.pretrained import Source
from kit.paths import Paths
from kit.pipeline.export import Exported, check_free, export_ensemble
from kit.pipeline.learn_bounds import learn_bounds
from kit.pipeline.parallel import side_by_side
from kit.pipeline.postprocess import Choice, choose
from kit.sample.sample import draw_sample
from kit.system.files import sha256_of
from kit.system.processes import joined
from kit.system.ranks import rank, wait_for_all
from kit.training.fit import Setup, fit_fold, load_best, rebuild
from kit.training.oof import best_threshold, read_levels
from kit.training.recipe import Recipe, load_recipe
from kit.training.result import BEST, Result, read_result, read_settings

PARITY_TILES = 2  # each is predicted twice by every member and view


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
    return export([f"{recipe.name}/fold{fold}" for fold in folds], recipe.name, paths, plan.views)


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


def start_file(name: str, fold: int | str, paths: Paths) -> Path | None:
    """Returns the safetensors that a fit of `fold` begins with.

    Args:
        name: a safetensors file; or a run, `<recipe>/fold<k>`; or a recipe, or exported weights: then it is the run of
            the same fold, which has not seen what this fold holds out. Empty for none.
        fold: that is to be trained.
        paths: of the working root.

    Raises:
        RunError: there is no such run, or it is not the one that was exported.
        WeightsError: the weights cannot be read.
    """
    if not name:
        return None
    if name.endswith(".safetensors"):
        if not Path(name).is_file():
            raise RunError(f"no file {name}", "give best.safetensors of a run, a run, or exported weights")
        return Path(name)
    sha256 = ""
    if name.endswith(".pt"):
        members = [member for member in load_weights(Path(name)).card.members if member.fold == fold]
        if len(members) != 1:
            raise RunError(
                f"{name} has {len(members)} members of fold {fold}, expected one", "name a run: <recipe>/fold<k>"
            )
        name, sha256 = f"{members[0].recipe}/fold{fold}", members[0].sha256
    file = _run_folder(name if "/" in name else f"{name}/fold{fold}", paths) / BEST
    if not file.is_file() or (sha256 and sha256_of(file) != sha256):
        wrong = "is not the run that was exported" if file.is_file() else "does not exist"
        raise RunError(f"{file} {wrong}: nothing to start from", "name a run <recipe>/fold<k>, or a safetensors file")
    return file


def find_data(recipe: Recipe, paths: Paths, name: str) -> None:
    """Makes sure that there is a data set: a recipe with SAMPLE = True draws the sample city where there is none."""
    if not name and not paths.data_names() and recipe.option("SAMPLE", False):
        if not (paths.sample / "train_tier_1" / "catalog.json").exists():  # one of another seed or scale will do
            say(f"no data set here: drawing the sample city into {paths.sample}")
            draw_sample(paths.sample)
        prepare(paths.sample / "train_tier_1", paths, name="sample", by="scene", k=2)


def folds_of(plan: Plan, index: pd.DataFrame) -> tuple[int | str, ...]:
    """Returns the folds that are wanted."""
    return plan.folds or tuple(fold_numbers(index))


def show_scores(results: Sequence[Result], folders: Sequence[Path]) -> None:
    """Prints the out-of-fold Jaccard per scene, per fold, per area and pooled, and tells the best threshold.

    Args:
        results: of the folds.
        folders: of their runs.
    """
    held_out = [result for result in results if result.scenes]
    if not held_out:
        say("nothing was held out: no out-of-fold score")
        return
    rows: list[tuple[object, ...]] = []
    areas: dict[str, list[Counts]] = {}
    for result in held_out:
        for scene, counts in sorted(result.scenes.items()):
            rows.append((f"fold {result.fold}", scene, counts.jaccard))
            areas.setdefault(scene.partition("/")[0], []).append(counts)
    rows.extend(("all", area, pool(counts).jaccard) for area, counts in sorted(areas.items()))
    pooled = pooled_score(held_out)
    assert pooled is not None
    rows.append(("all", "pooled", pooled))
    table(("out of", "scene", "jaccard"), rows)
    levels = [found for folder in folders if (found := read_levels(folder)) is not None]
    if levels:
        threshold, score = best_threshold(np.sum(levels, axis=0))
        say(f"a threshold of {threshold:.2f} would have scored {score:.4f}, {score - pooled:+.4f} beside argmax")


def pooled_score(results: Sequence[Result]) -> float | None:
    """Returns the Jaccard index over all held-out pixels of all folds; None where nothing was held out."""
    counts = [counts for result in results for counts in result.scenes.values()]
    return pool(counts).jaccard if counts else None


def export(
    runs: Sequence[str],
    name: str,
    paths: Paths,
    views: str = "flips",
    others: Sequence[str] = (),
    adaptive: bool = False,
) -> Exported:
    """Freezes finished runs into `weights/NAME.pt` with its card, and tells the parity with the eager networks.

    Args:
        runs: `<recipe>/fold<k>`, of any recipes.
        name: of the weights.
        paths: of the working root.
        views: `none`, `flips` or `d4`.
        others: formats to write beside TorchScript, see `kit.deploy.freeze.formats.chosen`.
        adaptive: learns when a vote may end, see `kit.deploy.adaptive`.

    Raises:
        RunError: a run is missing or unfinished.
        WeightsError: the frozen file differs from the networks, or another format from it.
    """
    check_free(paths.weights, name)
    before = _runs_in(paths.weights / f"{name}.pt")
    models, records, results, settings = [], [], [], []
    for run_name in runs:
        folder = _run_folder(run_name, paths)
        result = read_result(folder)
        if result is None:
            raise RunError(f"{run_name} is not finished", f"run it again: kit run {run_name.split('/')[0]}")
        found = read_settings(folder)
        recipe = load_recipe(_recipe_of(found, paths), paths)
        model = rebuild(recipe).model
        load_best(model, folder)
        models.append(model)
        results.append(result)
        settings.append(found)
        records.append(Member(result.recipe, result.fold, found["seed"], sha256_of(folder / BEST), result.score))
    recipes = sorted({record.recipe for record in records})
    choice = _choice(runs, paths)
    pad_multiple = math.lcm(*(int(model.pad_multiple) for model in models))
    folders = [_run_folder(run_name, paths) for run_name in runs]
    bounds = learn_bounds(models, folders, views, pad_multiple, paths) if adaptive else None
    exported = export_ensemble(
        paths.weights,
        name,
        models,
        records,
        views,
        "+".join(recipes),
        pooled_score(results),
        settings[0]["gsd_m"],
        _parity_tiles(settings[0]["data"], paths),
        others=others,
        postprocess=choice.best if choice else None,
        adaptive=bounds,
    )
    card = exported.card
    say(
        f"members {len(models)}, views {views}: the frozen file and the eager networks differ by at most "
        f"{card.parity_max_abs:.1e} in probability, {card.parity_equal_masks:.4%} of mask pixels are equal"
    )
    wanted = [f"{record.recipe}/fold{record.fold}" for record in records]
    if gone := [run_name for run_name in before if run_name not in wanted]:
        say(
            f"{name}.pt was made of {', '.join(gone)}, too, and no longer is; of all of them: "
            f"kit export {' '.join(dict.fromkeys([*before, *wanted]))} --name {name}"
        )
    for file, difference in exported.others.items():
        say(f"{file}: read back, {difference:.1e} from the frozen file at most")
    if choice:
        say(str(choice))
    if bounds:
        say(
            f"adaptive: {bounds.cost:.0%} of the time by count, Jaccard {bounds.score_full:.4f} -> {bounds.score:.4f} "
            "on held-out tiles (kit submit --adaptive)"
        )
    return exported


def _runs_in(weights: Path) -> list[str]:
    """Returns the runs that a weights file is made of; none where there is no file, or an unreadable one."""
    try:
        return [f"{member.recipe}/fold{member.fold}" for member in read_card(weights).members]
    except (OSError, WeightsError):
        return []


def _choice(runs: Sequence[str], paths: Paths) -> Choice | None:
    """Returns how masks are best cut; None where that cannot be told, which keeps no weights from being exported."""
    try:
        return choose([_run_folder(run, paths) for run in runs], paths)
    except (DataError, RunError) as cause:
        say(f"no cleaning of masks is chosen: {cause.message}")
        return None


def _run_folder(run_name: str, paths: Paths) -> Path:
    recipe, _, fold = run_name.strip("/").partition("/")
    if not fold.startswith("fold"):
        raise RunError(f"{run_name!r} names no run", "expected <recipe>/fold<k>, for example lite0/fold0")
    return paths.run(recipe, fold.removeprefix("fold"))


def _recipe_of(settings: dict[str, Any], paths: Paths) -> str:
    """Returns the recipe's path as trained, or its name where the file has moved."""
    path = str(settings["recipe_path"])
    return path if Path(path).is_file() else str(settings["recipe"])


def _parity_tiles(data: str, paths: Paths) -> list[Any]:
    try:
        _, index = read_index(paths, data)
    except DataError:
        return []  # the data set has gone; parity is then measured on noise alone
    rows = index.sort_values("building_fraction", ascending=False).head(PARITY_TILES)
    return [read_tile(row.image, row.mask)[0][:512, :512] for row in rows.itertuples()]
