"""Predictors without weights, and maps made with them."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import rasterio

from kit.deploy.mapping.map import MapOptions, MapSummary, draw_map, windows_of
from kit.deploy.mapping.map_files import MapFiles, PredictionKey
from kit.deploy.mapping.scene import SceneReader
from kit.deploy.weights.cleaning import Cleaning

SMALL = {"window_px": 64, "overlap_px": 16}


def brightness(rgba: np.ndarray) -> np.ndarray:
    """A pointwise predictor: the mean of the colours."""
    return (rgba[..., :3].mean(axis=2) / 255 * (rgba[..., 3] > 0)).astype(np.float32)


def faint_at_edges(rgba: np.ndarray) -> np.ndarray:
    """A predictor that depends on context: a wide mean, to which nothing is known beyond the window."""
    return cv2.blur(brightness(rgba), (31, 31), borderType=cv2.BORDER_CONSTANT)


def options_of(
    smallest_m2: float = 2.0, holes_m2: float = 2.0, threshold: float = 0.5, **options: object
) -> MapOptions:
    """Returns options with small windows."""
    return MapOptions(Cleaning(threshold, smallest_m2, holes_m2), **{**SMALL, **options})


def map_with(
    predict: Callable[[np.ndarray], np.ndarray], scene: Path, folder: Path, gsd_m: float = 0.0, **options: object
) -> MapSummary:
    """Maps a scene into a folder, as `m`; at its own resolution by default."""
    chosen = options_of(**options)
    with SceneReader(str(scene)) as reader:
        work = reader.set_resolution(gsd_m or reader.scene.gsd_m)
        key = PredictionKey(str(scene), "", "", "", windows_of(work, chosen))
        return draw_map(reader, predict, key, MapFiles(folder / "m"), chosen)


def band(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read(1)


def imagery(path: Path) -> np.ndarray:
    """Where a raster's mask says that it holds data."""
    with rasterio.open(path) as source:
        return source.dataset_mask() > 0
