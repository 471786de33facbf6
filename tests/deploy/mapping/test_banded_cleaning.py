import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.deploy.mapping.banded_cleaning import BandedCleaning
from kit.deploy.weights.cleaning import Cleaning, clean


def blobs(seed: int, blur: float) -> np.ndarray:
    noise = np.random.default_rng(seed).random((60, 47)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), blur) > 0.5


def in_bands(mask: np.ndarray, rows: int, cleaning: Cleaning, pixel_m2: float = 1.0) -> np.ndarray:
    bands = [mask[top : top + rows] for top in range(0, len(mask), rows)]
    banded = BandedCleaning(cleaning, pixel_m2, lambda: bands)
    return np.concatenate([banded.cleaned(index, band) for index, band in enumerate(bands)])


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([1, 2, 7, 30, 60]),
    st.sampled_from([0, 1, 2, 9, 60, 500]), st.sampled_from([0, 2, 9, 60, 500]),
)  # fmt: skip
def test_bands_are_cleaned_as_kit_submit_cleans_the_whole(seed: int, blur: float, rows: int, smallest: int, hole: int):
    mask = blobs(seed, blur)
    expected = clean(mask.astype(np.float32), 0.5, smallest, hole)
    np.testing.assert_array_equal(in_bands(mask, rows, Cleaning(0.5, smallest, hole)), expected)


def spiral() -> np.ndarray:
    """A line of one pixel that winds across all bands, and ends inside."""
    mask = np.zeros((21, 21), bool)
    mask[2, 2:19] = mask[2:19, 18] = mask[18, 4:19] = mask[6:19, 4] = mask[6, 4:15] = mask[6:15, 14] = True
    return mask


@pytest.mark.parametrize("rows", [1, 4, 21])
def test_sizes_add_up_across_bands(rows: int):
    size = int(spiral().sum())
    assert in_bands(spiral(), rows, Cleaning(smallest_m2=size)).sum() == size
    assert not in_bands(spiral(), rows, Cleaning(smallest_m2=size + 1)).any()
    assert in_bands(spiral(), rows, Cleaning(smallest_m2=size / 4), 0.25).sum() == size


@pytest.mark.parametrize("rows", [1, 4, 8])
def test_what_touches_the_border_stays(rows: int):
    mask = np.zeros((8, 8), bool)
    mask[0, 3] = mask[7, 5] = mask[4, 0] = mask[3, 7] = mask[4, 4] = True
    kept = in_bands(mask, rows, Cleaning(smallest_m2=5))
    assert (mask & ~kept).nonzero() == (4, 4)
