"""Finished runs whose predictions are the truth through noise."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import torch
from factories import TINY_RECIPE, write_run
from safetensors.torch import save_file

from kit.data.index import read_index
from kit.data.masks import count
from kit.paths import Paths
from kit.system.files import sha256_of
from kit.training.fit import rebuild
from kit.training.recipe import load_recipe


def write_folds(root: Path, recipe: str, noise: float, seed: int, folds: tuple[int, ...] = (0, 1)) -> None:
    """Writes finished folds of a recipe, which is written too where it is missing."""
    file = root / f"recipes/{recipe}.py"
    if not file.is_file():
        file.write_text(TINY_RECIPE.replace("A tiny recipe", f"The {recipe} recipe"))
    for fold in folds:
        _write_fold(root, recipe, fold, noise, seed + fold)


def _write_fold(root: Path, recipe: str, fold: int, noise: float, seed: int) -> None:
    data, index = read_index(Paths(root))
    folder, random, rows = root / f"runs/{recipe}/fold{fold}", np.random.default_rng(seed), []
    loaded = load_recipe(recipe, Paths(root))
    known = {"recipe": recipe, "recipe_path": "", "recipe_sha256": loaded.sha256, "data": data, "fold": fold}
    known |= {"data_sha256": sha256_of(root / "data" / data / "index.csv"), "gsd_m": 1.0}
    write_run(folder, {"kam/a": (8, 1, 1)}, **known)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"fold": fold}))
    (folder / "oof").mkdir()
    for row in index[index["fold"] == fold].itertuples():
        with rasterio.open(row.mask) as source:
            truth = source.read(1)
        seen = np.where(truth == 1, 0.62, 0.38) + random.normal(0, noise, truth.shape)
        values = np.where(truth == 255, 0, np.rint(255 * np.clip(seen, 0, 1))).astype(np.uint8)
        height, width = truth.shape
        profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": height, "width": width}
        with rasterio.open(folder / f"oof/{row.tile}.tif", "w", **profile) as target:
            target.write(values, 1)
        counts = count(values > 127, truth)
        rows.append((row.tile, row.area, row.scene, counts.tp, counts.fp, counts.fn))
    pd.DataFrame(rows, columns=["tile", "area", "scene", "tp", "fp", "fn"]).to_csv(folder / "oof.csv", index=False)
    torch.manual_seed(seed)
    save_file(rebuild(loaded).model.state_dict(), folder / "best.safetensors")
