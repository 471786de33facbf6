"""Finished runs to one weights file (`kit export`, and the end of `kit run`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kit.console import say
from kit.data.dataset import read_tile
from kit.data.index import read_index
from kit.deploy.proof.images import Case
from kit.deploy.weights.card import About, Member
from kit.deploy.weights.load import read_card
from kit.deploy.weights.store import check_free
from kit.errors import DataError, RunError, WeightsError, nearest
from kit.paths import Paths
from kit.pipeline.export import Exported, ExportRequest, export_ensemble, vote_weights
from kit.pipeline.postprocess import Choice, choose
from kit.pipeline.provenance import provenance_of
from kit.pipeline.runs import run_folder, tile_weights
from kit.pipeline.scores import pooled_score
from kit.training.fit import load_best, rebuild
from kit.training.recipe import Recipe, known_recipes, load_recipe
from kit.training.run_files import RunSettings, check_best, read_result, read_settings

PARITY_TILES = 2  # each is predicted twice by every member and view


@dataclass(frozen=True)
class FileOptions:
    """How weights are written and compared with their networks."""

    formats: Sequence[str] = ()  # to write beside TorchScript, see `kit.deploy.freeze.formats.chosen`
    storage: Literal["float32", "float16"] = "float32"  # of the weights in the file; `float16` halves it
    cases: Sequence[Case] = ()  # drawn images to compare on; all by default
    about: About = field(default_factory=About)  # for the card: sources, licences, limits


def export_runs(
    runs: Sequence[str],
    name: str,
    paths: Paths,
    views: str = "flips",
    files: FileOptions = FileOptions(),
    recipe: Recipe | None = None,
    weights: Sequence[float] = (),
) -> Exported:
    """Freezes finished runs into `weights/NAME.pt` with its card, and reports the parity with the trained networks.

    Args:
        runs: `<recipe>/fold<k>`, of any recipes.
        name: of the weights.
        paths: of the working root.
        views: `none`, `flips` or `d4`.
        files: how they are written and compared.
        recipe: one that is loaded already, and may lie anywhere.
        weights: of the runs' votes, one each, of any sum; empty where all count the same.

    Raises:
        RunError: a run is missing, unfinished or damaged, or its recipe has changed since.
        WeightsError: the frozen file differs from the networks, or another format from it.
        OutputError: the weights cannot be written.
    """
    check_free(paths.weights, name)
    weights = vote_weights(weights, len(runs))
    before = _runs_in(paths.weights / f"{name}.pt")
    folders = [run_folder(run, paths) for run in runs]
    models, members, results, settings = [], [], [], []
    for run, folder in zip(runs, folders, strict=True):
        if not folder.is_dir():
            known = (f"{other.parent.name}/{other.name}" for other in paths.run_folders())
            raise RunError(f"{run} is not finished: there is no such run", nearest(run, known))
        result = read_result(folder)
        if result is None:
            raise RunError(f"{run} is not finished", f"run it again: kit run {run.split('/')[0]}")
        options = read_settings(folder, ("recipe", "seed", "gsd_m", "data"))
        model = rebuild(recipe_of(run, options, paths, recipe)).model
        sha256 = check_best(folder, result)
        load_best(model, folder)
        models.append(model)
        results.append(result)
        settings.append(options)
        moved = "" if folder.name == f"fold{result.fold}" else f"{folder.parent.name}/{folder.name}"
        members.append(Member(result.recipe, result.fold, options.seed or 0, sha256, result.score, moved))
    choice = _choice(folders, paths, tile_weights(runs, weights))
    request = ExportRequest(
        name, "+".join(sorted({member.recipe for member in members})), views, pooled_score(results),
        files.about.gsd_m or settings[0].gsd_m or 0.0, _parity_tiles(settings[0].data or "", paths), files.cases,
        tuple(files.formats),
        postprocess=choice.best if choice else None, splitting=choice.splitting if choice else None, weights=weights,
        storage=files.storage, about=files.about.texts,
        provenance=files.about.completed(provenance_of(settings, paths)),
    )  # fmt: skip
    exported = export_ensemble(paths.weights, models, members, request)
    _report(exported, before, choice)
    return exported


def _report(exported: Exported, before: Sequence[str], choice: Choice | None) -> None:
    """Says what was exported, and how it compares with the networks and with the weights of that name before."""
    card, name = exported.card, exported.path.stem
    say(
        f"{len(card.members)} members, views {card.views}: the frozen file and the trained networks differ by at most "
        f"{card.parity_max_abs:.1e} in probability, {card.parity_equal_masks:.4%} of mask pixels are equal"
    )
    now = [member.run_name for member in card.members]
    if gone := [run for run in before if run not in now]:
        say(
            f"the earlier {name}.pt also held {', '.join(gone)}, this one does not; to combine them: "
            f"kit export {' '.join(dict.fromkeys([*before, *now]))} --name {name}"
        )
    for file, difference in exported.others.items():
        say(f"{file}: read back, {difference:.1e} from the frozen file at most")
    if choice:
        say(str(choice))


def _runs_in(weights: Path) -> list[str]:
    """Returns the runs in a weights file; an empty list where the file is missing or unreadable."""
    try:
        return [member.run_name for member in read_card(weights).members]
    except (OSError, WeightsError):
        return []


def _choice(folders: Sequence[Path], paths: Paths, weights: Sequence[float]) -> Choice | None:
    """Returns the best cleaning of masks; None, with a notice, where the validation tiles are gone."""
    try:
        return choose(folders, paths, weights)
    except (DataError, RunError) as cause:
        say(f"the card gets no threshold and cleaning: {cause.message}")
        return None


def recipe_of(run: str, settings: RunSettings, paths: Paths, own: Recipe | None) -> Recipe:
    """Returns the recipe of a run, by its name and from the user's own folders.

    The path in settings.json is not used: a run folder that came from somebody else must not be able to run code.

    Raises:
        RunError: there is no such recipe, or its text has changed since.
    """
    name = str(settings.recipe)
    if own is None or own.name != name:
        if name not in known_recipes(paths):
            raise RunError(
                f"{run} was trained with the recipe {name!r}, which is neither in {paths.recipes} nor installed",
                f"copy the recipe's file into {paths.recipes}",
            )
        own = load_recipe(name, paths)
    if settings.recipe_sha256 not in (None, own.sha256):
        raise RunError(
            f"{own.path} has changed since {run} was trained: the exported network would be another one",
            f"undo the change, or train again: kit run {name} --restart",
        )
    return own


def _parity_tiles(data: str, paths: Paths) -> list[Any]:
    """Returns crops of the tiles with most buildings, uint8 (H, W, 3); none where the data set is gone."""
    try:
        _, index = read_index(paths, data)
    except DataError:
        return []
    rows = index.sort_values("building_fraction", ascending=False).head(PARITY_TILES)
    return [read_tile(row.image, row.mask)[0][:512, :512] for row in rows.itertuples()]
