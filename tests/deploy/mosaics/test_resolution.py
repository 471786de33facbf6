"""The ground resolution is told by the scale at which a network is surest of what it sees."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from deploy_fakes import write_tiff
from mosaic_fakes import cut, draw_mosaic

from kit.data.sources.chips import find_chips
from kit.deploy.mosaics import resolution
from kit.deploy.mosaics.find import find_mosaics
from kit.deploy.mosaics.resolution import CHIPS, SCALES, estimate_from, estimate_gsd
from kit.deploy.weights.load import load_weights
from kit.errors import DataError
from kit.sample.drawing import draw_at
from kit.sample.sites import AREAS

SIDE_PX = 512
TRAINED_M = 0.075
BUILT = replace(AREAS["kum"].look, open_blocks=0)  # houses everywhere


def white_roofs(gsd_m: float, seed: int) -> np.ndarray:
    """Returns the sample's drawing with roofs in white on black; of a seed from this one on that draws some."""
    truth = np.zeros(1)
    while (truth == 1).mean() < 0.1:
        _, truth = draw_at(np.random.default_rng(seed), BUILT, SIDE_PX, SIDE_PX, gsd_m)
        seed += 100
    return np.repeat(np.where(truth == 1, 255, 0).astype(np.uint8)[..., None], 3, axis=2)


def half_widths(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of each pixel's roof, and half the width of each roof, px."""
    white = (image[..., 0] > 127).astype(np.uint8)
    inside = cv2.distanceTransform(white, cv2.DIST_L2, 5)
    count, numbers = cv2.connectedComponents(white)
    widths = np.zeros(count)
    np.maximum.at(widths, numbers.ravel(), inside.ravel())
    return numbers, widths


def knows_roofs(half_width_px: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a predictor that is sure of roofs of one size, and the less so the more they differ."""

    def predict(image: np.ndarray) -> np.ndarray:
        numbers, widths = half_widths(image)
        sure = np.exp(-(np.log(np.maximum(widths, 0.1) / half_width_px) ** 2) / 0.5)
        sure[0] = -0.96
        return (0.5 + 0.5 * sure)[numbers].astype(np.float32)

    return predict


@pytest.fixture(scope="module")
def predictor() -> Callable[[np.ndarray], np.ndarray]:
    numbers, widths = half_widths(white_roofs(TRAINED_M, 1))
    return knows_roofs(float(np.median(widths[numbers[numbers > 0]])))


@pytest.mark.parametrize("gsd_m", [0.05, 0.075, 0.12])
def test_the_resolution_is_found(predictor, gsd_m: float):
    images = [white_roofs(gsd_m, seed) for seed in (2, 3, 4)]
    found = estimate_from(predictor, images, TRAINED_M)
    assert found.gsd_m == pytest.approx(gsd_m, rel=0.2)
    assert found.low_m < found.gsd_m < found.high_m
    assert found.low_m < gsd_m < found.high_m
    assert [at for at, _ in found.support] == list(SCALES)
    assert all(0 <= support <= 1 for _, support in found.support)


def test_one_that_is_equally_sure_at_all_scales_says_so():
    images = [white_roofs(0.075, seed) for seed in (2, 3)]
    found = estimate_from(lambda image: (image[..., 0] > 127).astype(np.float32), images, TRAINED_M)
    assert found.high_m / found.low_m > 2


def test_without_buildings_nothing_is_told():
    with pytest.raises(DataError, match="no buildings are found at any scale"):
        estimate_from(lambda image: np.zeros(image.shape[:2], np.float32), [white_roofs(0.075, 2)], TRAINED_M)


def test_chips_are_taken_from_all_of_the_mosaic(tmp_path: Path):
    cut(tmp_path, {"a": draw_mosaic("kum", 0.075, 4, 4, 192, 3, border=False)}, 192, 95)
    (mosaic, *_) = find_mosaics(find_chips(tmp_path), 1)
    chosen = resolution._choose(mosaic, 4)
    assert [(p.row, p.col) for p in chosen] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert len(resolution._choose(mosaic, 9)) == 9


def test_exported_weights_predict(tiny_weights, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(resolution, "CROP_PX", 64)
    monkeypatch.setattr(resolution, "LEAST_BUILDING", 0)
    write_tiff(tmp_path / "a.tif", draw_mosaic("kum", 0.075, 1, 1, 96, 3))
    (mosaic,) = find_mosaics(find_chips(tmp_path), 1)
    weights = load_weights(tiny_weights.path)
    found = estimate_gsd(weights, mosaic, CHIPS)
    assert weights.card.gsd_m * 0.49 < found.gsd_m < weights.card.gsd_m * 2.01
