"""Out-of-fold predictions: files, counts and pictures of the validation tiles."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import rasterio
import torch
from numpy.typing import NDArray
from torch import nn

from kit.console import track
from kit.data.dataset import Fold, read_tile
from kit.data.masks import BACKGROUND, BUILDING, IGNORE, LAYERS, Counts, count
from kit.data.rasters import without_notice
from kit.data.splitting import inside_of
from kit.measures.object_counts import ObjectCounts
from kit.measures.object_masks import compare_tile
from kit.models.targets import building_logits
from kit.system.files import replacing
from kit.system.ranks import gathered, rank
from kit.training.overlays import overlay, save_png
from kit.training.run_files import OBJECTS

T = TypeVar("T")

LEVELS = "levels.csv"
INSIDE_FOLDER = "inside"
MOSTLY = 0.5  # smallest share of imagery in a tile that is drawn


def predict_fold(model: nn.Module, precision: Any, fold: Fold, folder: Path) -> dict[str, Counts]:
    """Predicts the validation tiles of a fold in one view, and returns the counts per `area/scene`.

    Writes `oof/<tile>.tif` (uint8, probability x 255), with layers also `inside/<tile>.tif` (`inside_of` x 255),
    `oof.csv` with the counts of each tile, `objects.csv` with those of its buildings, `levels.csv` with how many pixels
    of background and of building got each of the 256 values, and overlays of the best, median and worst tile. All ranks
    call it, each with its share of the tiles; all get the counts of all.

    Args:
        model: pixels to logits.
        precision: the fit's Precision callback, whose context it was trained in.
        fold: with this rank's validation rows.
        folder: of the run.
    """
    own: list[dict[str, Any]] = []
    levels = np.zeros((2, 256), np.int64)  # of background, of building
    model.eval()
    for row in track(list(fold.valid.itertuples()), f"out-of-fold {fold.number}"):
        image, mask = read_tile(row.image, row.mask)
        layers = _layers(model, precision, image, fold.device)
        layers[:, mask == IGNORE] = 0  # as the exported file does where alpha is 0
        probability = layers[0]
        values = np.rint(probability * 255).astype(np.uint8)
        levels += [np.bincount(values[mask == truth], minlength=256) for truth in (BACKGROUND, BUILDING)]
        counts = asdict(count(probability > 0.5, mask))
        inside = None if len(layers) == 1 else inside_of(layers)
        if inside is not None:
            _write(np.rint(inside * 255).astype(np.uint8), row.image, folder / INSIDE_FOLDER / f"{row.tile}.tif")
        objects = compare_tile(probability > 0.5, inside, row.mask, mask, row.gsd_m).row()
        shown = float((mask != IGNORE).mean())
        own.append({"tile": row.tile, "area": row.area, "scene": row.scene, **counts, **objects, "imagery": shown})
        _write(values, row.image, folder / "oof" / f"{row.tile}.tif")
    shares = gathered(own)
    pixels, columns = ["tile", "area", "scene", "tp", "fp", "fn"], [*ObjectCounts().row()]
    tiles = pd.DataFrame(interleaved(shares), columns=[*pixels, *columns, "imagery"])
    levels = np.sum(gathered(levels), axis=0)
    if rank() == 0 and len(tiles):
        with replacing(folder / "oof.csv") as file:
            tiles[pixels].to_csv(file, index=False)
        with replacing(folder / OBJECTS) as file:
            tiles[["tile", *columns]].to_csv(file, index=False)
        with replacing(folder / LEVELS) as file:
            pd.DataFrame(levels.T, columns=["background", "building"]).to_csv(file, index_label="level")
    _draw(tiles, fold, folder)
    scenes: dict[str, Counts] = {}
    for row in tiles.itertuples():
        scene = f"{row.area}/{row.scene}"
        scenes[scene] = scenes.get(scene, Counts()) + Counts(int(row.tp), int(row.fp), int(row.fn))
    return scenes


def read_levels(folder: Path) -> NDArray[np.int64] | None:
    """Returns the number of validation pixels of background and of building per value, (2, 256); None if unknown."""
    file = folder / LEVELS
    return pd.read_csv(file)[["background", "building"]].to_numpy(np.int64).T if file.is_file() else None


def best_threshold(levels: NDArray[np.int64]) -> tuple[float, float]:
    """Returns the probability above which `building` scores best, and that Jaccard index.

    Args:
        levels: (2, 256), see `read_levels`; of several runs, their sum.
    """
    fp, tp = levels[:, ::-1].cumsum(axis=1)[:, ::-1]  # at this value and above
    union = fp + levels[1].sum()
    scores = np.where(union, tp / np.maximum(union, 1), 1.0)  # 1 if neither prediction nor truth has a building
    best = int(scores.argmax())
    return max(best - 0.5, 0) / 255, float(scores[best])


def interleaved(shares: list[list[T]]) -> list[T]:
    """Returns the items in their original order; of n ranks, each had every n-th."""
    return [share[place] for place in range(max(map(len, shares))) for share in shares if place < len(share)]


def _draw(tiles: pd.DataFrame, fold: Fold, folder: Path) -> None:
    """Draws the best, median and worst tile with buildings; each rank draws those that it predicted.

    Tiles that are mostly without imagery are only drawn if there are no others.
    """
    shown = tiles[tiles["tp"] + tiles["fn"] > 0]
    if (full := shown["imagery"] >= MOSTLY).any():
        shown = shown[full]
    if shown.empty:
        return
    order = shown.assign(jaccard=shown["tp"] / shown[["tp", "fp", "fn"]].sum(axis=1)).sort_values(["jaccard", "tile"])
    mine = {row.tile: row for row in fold.valid.itertuples()}
    for title, place in (("worst", 0), ("median", len(order) // 2), ("best", len(order) - 1)):
        tile, jaccard = order.iloc[place][["tile", "jaccard"]]
        if tile not in mine:
            continue
        image, mask = read_tile(mine[tile].image, mine[tile].mask)
        with without_notice, rasterio.open(folder / "oof" / f"{tile}.tif") as source:
            predicted = source.read(1) > 127
        picture = overlay(image, mask, predicted, f"{title}: {tile}  Jaccard {jaccard:.3f}")
        save_png(picture, folder / "overlays" / f"{title}.png")


def _layers(model: nn.Module, precision: Any, image: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """Returns the probability of building, (1, H, W); of a network that predicts layers those of all, (3, H, W)."""
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].to(device)
    with torch.inference_mode(), precision.context():
        logits = model(batch).float()
        logits = logits if logits.shape[1] == len(LAYERS) else building_logits(logits)
        layers: NDArray[np.float32] = logits.sigmoid()[0].cpu().numpy()
    return layers


def _write(values: NDArray[np.uint8], like: str, path: Path) -> None:
    with without_notice, rasterio.open(like) as source:
        place = {"crs": source.crs, "transform": source.transform}
    height, width = values.shape
    with (
        without_notice,
        replacing(path) as file,
        rasterio.open(
            file, "w", driver="GTiff", width=width, height=height, count=1, dtype="uint8", compress="deflate", **place
        ) as target,
    ):
        target.write(values, 1)
