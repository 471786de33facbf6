"""From a recipe to weights: data, folds, out-of-fold score, export."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

from kit.console import say, table
from kit.data.dataset import read_tile, split_fold
from kit.data.masks import pool
from kit.data.prepare import prepare, read_index
from kit.data.sample import draw_sample
from kit.deploy.card import Member, sha256_of
from kit.deploy.export import Exported, export_ensemble
from kit.deploy.predict import load_weights
from kit.errors import DataError, RunError
from kit.models.devices import pick_device
from kit.models.pretrained import Source
from kit.paths import Paths
from kit.training.fit import BEST, Result, Setup, fit_fold, load_best, read_result, read_settings, rebuild
from kit.training.recipe import Recipe, load_recipe

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
        source: where the encoder's weights come from.
        views: of the exported ensemble.
        restart: forgets earlier runs of these folds.
        compiled: see `Setup`.
        teacher: an exported weights file, for recipes that learn from one.
    """

    data: str = ""
    folds: tuple[int | str, ...] = ()
    minutes: float = 0.0
    seed: int = 0
    device: str = ""
    source: Source = field(default_factory=Source)
    views: str = "flips"
    restart: bool = False
    compiled: bool = False
    teacher: Path | None = None


def run(name: str, paths: Paths, plan: Plan) -> Exported:
    """Trains the folds of a recipe, shows the out-of-fold scores and exports the ensemble under the recipe's name.

    Raises:
        KitError: see the stages.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunError("kit run was started as several processes, which it cannot do yet", "start it once")
    recipe = load_recipe(name, paths)
    data, index = _data(recipe, paths, plan.data)
    folds = plan.folds or tuple(sorted({int(fold) for fold in index["fold"]}))
    device = pick_device(plan.device)
    splits = [split_fold(index, fold, seed=plan.seed, device=device) for fold in folds]  # a wrong fold fails at once
    index_sha256 = sha256_of(paths.data(data) / "index.csv")
    say(f"{recipe.name} on {data}: {len(index)} tiles, folds {', '.join(map(str, folds))}, {device}")
    setup = _setup(plan, str(device))
    results = []
    for split in splits:
        folder = paths.run(recipe.name, split.number)
        if plan.restart and folder.is_dir():
            rmtree(folder)
        results.append(fit_fold(recipe, split, folder, data, index_sha256, setup))
    show_scores(results)
    return export([f"{recipe.name}/fold{fold}" for fold in folds], recipe.name, paths, plan.views)


def _setup(plan: Plan, device: str) -> Setup:
    """Returns how the fits are done, the teacher loaded."""
    if plan.teacher is None:
        return Setup(plan.minutes, plan.source, plan.compiled)
    teacher = load_weights(plan.teacher, device)
    say(f"teacher {plan.teacher.name}: {len(teacher.card.members)} members, views {teacher.card.views}")
    return Setup(plan.minutes, plan.source, plan.compiled, teacher.module.members, teacher.sha256)


def _data(recipe: Recipe, paths: Paths, name: str) -> tuple[str, Any]:
    """Returns the data set's name and index. A recipe with SAMPLE = True draws the sample city where there is none."""
    if not name and not paths.data_names() and recipe.option("SAMPLE", False):
        say(f"no data set here: drawing the sample city into {paths.sample}")
        draw_sample(paths.sample)
        prepared = prepare(paths.sample / "train_tier_1", paths, name="sample", by="scene", k=2)
        return read_index(paths, prepared.name)
    return read_index(paths, name)


def show_scores(results: Sequence[Result]) -> None:
    """Prints the out-of-fold Jaccard per scene, per fold and pooled."""
    held_out = [result for result in results if result.scenes]
    if not held_out:
        say("nothing was held out: no out-of-fold score")
        return
    rows: list[tuple[object, ...]] = []
    for result in held_out:
        rows.extend((f"fold {result.fold}", scene, counts.jaccard) for scene, counts in sorted(result.scenes.items()))
    pooled = pooled_score(held_out)
    rows.append(("all", "pooled", pooled if pooled is not None else float("nan")))
    table(("out of", "scene", "jaccard"), rows)


def pooled_score(results: Sequence[Result]) -> float | None:
    """Returns the Jaccard index over all held-out pixels of all folds; None where nothing was held out."""
    counts = [counts for result in results for counts in result.scenes.values()]
    return pool(counts).jaccard if counts else None


def export(runs: Sequence[str], name: str, paths: Paths, views: str = "flips") -> Exported:
    """Freezes finished runs into `weights/NAME.pt` with its card, and tells the parity with the eager networks.

    Args:
        runs: `<recipe>/fold<k>`, of any recipes.
        name: of the weights.
        paths: of the working root.
        views: `none`, `flips` or `d4`.

    Raises:
        RunError: a run is missing or unfinished.
        WeightsError: the frozen file differs from the networks.
    """
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
    )
    card = exported.card
    say(
        f"members {len(models)}, views {views}: the frozen file and the eager networks differ by at most "
        f"{card.parity_max_abs:.1e} in probability, {card.parity_equal_masks:.4%} of mask pixels are equal"
    )
    return exported


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
