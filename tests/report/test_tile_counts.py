"""Counts of a tile by building size and by distance from the edge."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from kit.errors import RunError
from kit.pipeline.postprocess import ValidationTile
from kit.report.tile_counts import EDGES_PX, SIZES_M2, count_tile


def written(folder: Path, truth: np.ndarray, values: np.ndarray, gsd_m: float = 0.5) -> ValidationTile:
    for name, band in (("mask", truth), ("oof", values)):
        profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": band.shape[0], "width": band.shape[1]}
        with rasterio.open(folder / f"{name}.tif", "w", **profile) as target:
            target.write(band, 1)
    return ValidationTile("t", str(folder / "mask.tif"), gsd_m, 0, int((truth == 1).sum()), (folder / "oof.tif",))


@pytest.fixture
def bands() -> tuple[np.ndarray, np.ndarray]:
    """A building of 400 px, 100 m², of which half is found, one of 16 px, 4 m², and 8 px invented beside that."""
    truth, values = np.zeros((100, 120), np.uint8), np.zeros((100, 120), np.uint8)
    truth[40:60, 40:60], values[40:50, 40:60] = 1, 255
    truth[2:6, 100:104], values[2:6, 100:106] = 1, 200
    truth[90:, :], values[90:, :] = 255, 255
    return truth, values


def test_counts_by_hand(bands: tuple[np.ndarray, np.ndarray], tmp_path: Path):
    counts = count_tile(written(tmp_path, *bands))
    assert counts.pixels.tolist() == [216, 8, 200]
    assert counts.sizes[0].tolist() == [16, 8, 0]  # below 20 m²
    assert counts.sizes[SIZES_M2.index(100) + 1].tolist() == [200, 0, 200]
    assert counts.sizes.sum(axis=0).tolist() == counts.pixels.tolist() == counts.edges.sum(axis=0).tolist()
    assert counts.edges[0].tolist() == [16, 8, 0]  # nearer than 16 px
    assert counts.edges[EDGES_PX.index(32) + 1].tolist() == [200, 0, 200]
    assert (counts.objects.true, counts.objects.predicted, counts.objects.matched[0]) == (2, 2, 1)
    assert counts.levels.sum() == 90 * 120


def test_without_a_resolution_there_are_no_sizes(bands: tuple[np.ndarray, np.ndarray], tmp_path: Path):
    counts = count_tile(written(tmp_path, *bands, gsd_m=0.0))
    assert counts.sizes.sum() == 0
    assert counts.objects.boundary_iou is None


def test_a_tile_without_buildings(tmp_path: Path):
    counts = count_tile(written(tmp_path, np.zeros((40, 40), np.uint8), np.full((40, 40), 200, np.uint8)))
    assert counts.pixels.tolist() == [0, 1600, 0]
    assert counts.sizes.sum() == 0


def test_a_tile_that_was_cut_again(bands: tuple[np.ndarray, np.ndarray], tmp_path: Path):
    tile = written(tmp_path, *bands)
    with pytest.raises(RunError, match="another mask now"):
        count_tile(ValidationTile("t", tile.mask, 0.5, 0, 7, tile.predictions))
