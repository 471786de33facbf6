"""Predictors without weights, and maps made with them."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import rasterio

from kit.deploy.mapping.map import Mapped, Wanted, draw_map, windows_of
from kit.deploy.mapping.reader import Reader

SMALL = {"window_px": 64, "overlap_px": 16}


def brightness(rgba: np.ndarray) -> np.ndarray:
    """A pointwise predictor: the mean of the colours."""
    return (rgba[..., :3].mean(axis=2) / 255 * (rgba[..., 3] > 0)).astype(np.float32)


def faint_at_edges(rgba: np.ndarray) -> np.ndarray:
    """A predictor that depends on context: a wide mean, to which nothing is known beyond the window."""
    return cv2.blur(brightness(rgba), (31, 31), borderType=cv2.BORDER_CONSTANT)


def map_with(
    predict: Callable[[np.ndarray], np.ndarray], scene: Path, folder: Path, gsd_m: float = 0.0, **wanted: object
) -> Mapped:
    """Maps a scene into a folder, as `m`; at its own resolution unless another is told."""
    asked = Wanted(**{**SMALL, **wanted})
    with Reader(str(scene)) as reader:
        reader.look_at(gsd_m or reader.scene.gsd_m)
        rows, columns = windows_of(reader.work, asked)
        return draw_map(reader, rows, columns, predict, {"scene": str(scene)}, folder / "m", asked)


def band(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read(1)


def imagery(path: Path) -> np.ndarray:
    """Where a raster's mask says that it holds data."""
    with rasterio.open(path) as source:
        return source.dataset_mask() > 0
