"""Model soups: the mean of the weights of several runs, as a run.

Only runs with the same validation fold are averaged: a mean over different folds was trained on every tile and could
not be scored. All given runs are averaged. Choosing them by score would make the soup's score optimistic.

Source:
    Wortsman et al., Model soups, ICML 2022 (the uniform soup).
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file

from kit.console import say
from kit.data.dataset import split_fold
from kit.data.index import read_index
from kit.data.masks import pool
from kit.errors import RunError
from kit.outputs import check_unclaimed
from kit.paths import Paths
from kit.pipeline.export_runs import recipe_of
from kit.system.devices import pick_device
from kit.system.files import locked, replacing, sha256_of, write_json
from kit.training.fit import load_best, rebuild
from kit.training.oof import predict_fold
from kit.training.run_files import BEST, RESULT, SETTINGS, Result, check_best, read_result, read_settings

END = "-soup"  # of the folder's name: runs/<recipe>/fold<k>-soup


def make_soups(folders: Sequence[Path], paths: Paths) -> list[Path]:
    """Writes missing soups of runs with the same recipe and fold, and returns the folders of all.

    Args:
        folders: of finished runs.
        paths: of the working root, with the data set that the runs were trained on.

    Raises:
        RunError: a run is damaged, or a file that kit did not write is in the way.
    """
    alike: defaultdict[tuple[str | int | None, ...], list[Path]] = defaultdict(list)
    for folder in folders:
        settings, result = read_settings(folder, ("recipe", "data")), read_result(folder)
        if result is not None and not folder.name.endswith(END):
            alike[settings.recipe, settings.recipe_sha256, settings.data, settings.data_sha256, result.fold].append(
                folder
            )
    return [_soup(same, paths) for same in alike.values() if len(same) > 1]


def _soup(folders: Sequence[Path], paths: Paths) -> Path:
    """Returns the folder of the soup of some runs."""
    results = [result for folder in folders if (result := read_result(folder)) is not None]
    sums = [check_best(folder, result) for folder, result in zip(folders, results, strict=True)]
    recipe, fold = results[0].recipe, results[0].fold
    soup = paths.run(recipe, f"{fold}{END}")
    made_of = {f"{folder.parent.name}/{folder.name}": sha256 for folder, sha256 in zip(folders, sums, strict=True)}
    with locked(soup):
        settings = json.loads((folders[0] / SETTINGS).read_text()) | {"soup": made_of}
        known = json.loads((soup / SETTINGS).read_text()) if (soup / SETTINGS).is_file() else {}
        if known.get("soup") == made_of and read_result(soup) is not None:
            return soup
        if "soup" not in known:
            check_unclaimed(soup, "kit best", "--root")
        elif soup.is_dir():
            shutil.rmtree(soup)
        say(f"{recipe} fold {fold}: the mean of the weights of {', '.join(made_of)} becomes {recipe}/{soup.name}")
        write_json(soup / SETTINGS, settings)
        states = [load_file(folder / BEST) for folder in folders]
        if any(state.keys() != states[0].keys() for state in states):
            raise RunError(f"{', '.join(made_of)} have different networks", "give runs of one version of the recipe")
        with replacing(soup / BEST) as file:
            save_file({name: _mean([state[name] for state in states]) for name in states[0]}, file)
        _score(soup, Result(recipe, fold, None, {}, 0.0, 0), paths)
    return soup


def _mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the mean of weights; of whole numbers, such as how many batches a norm has seen, the first."""
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack([tensor.double() for tensor in tensors]).mean(dim=0).to(tensors[0].dtype).contiguous()


def _score(soup: Path, result: Result, paths: Paths) -> None:
    """Predicts the validation tiles with a soup, and writes its result."""
    settings = read_settings(soup, ("recipe", "data"))
    index = read_index(paths, settings.data or "")[1]
    model = rebuild(recipe_of(f"{soup.parent.name}/{soup.name}", settings, paths, None)).model
    load_best(model, soup)
    fold = split_fold(index, result.fold, device=pick_device())
    precision = SimpleNamespace(context=nullcontext)
    scenes = predict_fold(model.to(fold.device), precision, fold, soup)
    score = pool(scenes.values()).jaccard if scenes else None
    record = asdict(result) | {"score": score, "scenes": {name: asdict(counts) for name, counts in scenes.items()}}
    write_json(soup / RESULT, record | {"best_sha256": sha256_of(soup / BEST)})
