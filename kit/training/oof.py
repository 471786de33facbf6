"""Out of fold: what a model says of the tiles it never saw, as files, counts and pictures."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import nn

from kit.console import track
from kit.data.dataset import Fold, read_tile
from kit.data.masks import BUILDING, IGNORE, Counts, count
from kit.paths import replacing

FOUND, INVENTED, MISSED = (60, 200, 90), (230, 60, 50), (60, 110, 240)  # RGB of tp, fp, fn


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
        probability: NDArray[np.float32] = model(batch).float().softmax(1)[0, BUILDING].cpu().numpy()
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


def overlay(
    image: NDArray[np.uint8], truth: NDArray[np.uint8], found: NDArray[np.bool_], title: str = ""
) -> NDArray[np.uint8]:
    """Returns four panels in a row: image, truth, prediction, errors.

    Errors are green where found, red where invented, blue where missed.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) uint8: 0, 1, 255 = no data.
        found: (H, W) bool.
        title: written on the first panel.

    Returns:
        (h, 4 w, 3) uint8 RGB, h and w at most 512.
    """
    building, known = truth == BUILDING, truth != IGNORE
    panels = [
        image,
        _outlined(image, building, (255, 220, 0)),
        _outlined(image, found, (0, 230, 255)),
        _painted(image, {FOUND: building & found, INVENTED: found & ~building & known, MISSED: building & ~found}),
    ]
    scale = min(1.0, 512 / max(image.shape[:2]))
    small = [cv2.resize(p, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for p in panels]
    for panel, text in zip(small, (title or "image", "truth", "prediction", "errors"), strict=True):
        panel[:24] = panel[:24] // 3  # a dark strip to write on
        cv2.putText(panel, text, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate(small, axis=1)


def _outlined(image: NDArray[np.uint8], mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    drawn = _painted(image, {colour: mask}, strength=0.25)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, colour, 3)
    return drawn


def _painted(
    image: NDArray[np.uint8], layers: dict[tuple[int, int, int], NDArray[np.bool_]], strength: float = 0.55
) -> NDArray[np.uint8]:
    drawn = image.astype(np.float32)
    for colour, mask in layers.items():
        drawn[mask] = (1 - strength) * drawn[mask] + strength * np.array(colour, np.float32)
    return drawn.astype(np.uint8)


def save_png(picture: NDArray[np.uint8], path: Path) -> None:
    """Writes an RGB picture."""
    with replacing(path) as file:
        cv2.imwrite(str(file), picture[..., ::-1])
