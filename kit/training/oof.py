"""Out of fold: what a model says of the tiles it never saw, as files, counts and pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import nn

from kit.console import track
from kit.data.dataset import Fold, read_tile
from kit.data.masks import IGNORE, Counts, count
from kit.models.targets import building_logits
from kit.paths import replacing
from kit.training.pictures import overlay, save_png


def predict_fold(model: nn.Module, precision: Any, fold: Fold, folder: Path) -> dict[str, Counts]:
    """Predicts the held-out tiles of a fold, one view, and returns the counts per `area/scene`.

    Writes `oof/<tile>.tif` (uint8, probability x 255) and overlays of the best, median and worst tile.

    Args:
        model: pixels to logits.
        precision: the fit's Precision callback, whose context it was trained in.
        fold: with the held-out rows.
        folder: of the run.
    """
    scenes: dict[str, Counts] = {}
    tiles: list[tuple[float, Any]] = []
    model.eval()
    for row in track(list(fold.valid.itertuples()), f"out-of-fold {fold.number}"):
        image, mask = read_tile(row.image, row.mask)
        probability = _probability(model, precision, image, fold.device)
        probability[mask == IGNORE] = 0  # as the shipped file does where alpha is 0
        counts = count(probability > 0.5, mask)
        scene = f"{row.area}/{row.scene}"
        scenes[scene] = scenes.get(scene, Counts()) + counts
        if counts.tp + counts.fn:
            tiles.append((counts.jaccard, row))
        _write(np.rint(probability * 255).astype(np.uint8), row.image, folder / "oof" / f"{row.tile}.tif")
    tiles.sort(key=lambda pair: (pair[0], pair[1].tile))
    chosen = {"worst": 0, "median": len(tiles) // 2, "best": len(tiles) - 1} if tiles else {}
    for rank, place in chosen.items():
        jaccard, row = tiles[place]
        image, mask = read_tile(row.image, row.mask)
        with rasterio.open(folder / "oof" / f"{row.tile}.tif") as source:
            found = source.read(1) > 127
        title = f"{rank}: {row.tile}  Jaccard {jaccard:.3f}"
        save_png(overlay(image, mask, found, title), folder / "overlays" / f"{rank}.png")
    return scenes


def _probability(
    model: nn.Module, precision: Any, image: NDArray[np.uint8], device: torch.device
) -> NDArray[np.float32]:
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].to(device)
    with torch.inference_mode(), precision.context():
        logits = building_logits(model(batch).float())
        probability: NDArray[np.float32] = logits.sigmoid()[0, 0].cpu().numpy()
    return probability


def _write(values: NDArray[np.uint8], like: str, path: Path) -> None:
    with rasterio.open(like) as source:
        place = {"crs": source.crs, "transform": source.transform}
    height, width = values.shape
    with (
        replacing(path) as file,
        rasterio.open(
            file, "w", driver="GTiff", width=width, height=height, count=1, dtype="uint8", compress="deflate", **place
        ) as target,
    ):
        target.write(values, 1)
