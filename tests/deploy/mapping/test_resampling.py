import numpy as np
import pytest

from kit.deploy.mapping.resampling import reach, resample


def whole(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns all of an image, (h, w), at another size."""
    height, width = pixels.shape
    spans = (0, height), (0, width)
    scale = height / shape[0], width / shape[1]
    return resample(pixels[..., None], spans, ((0, shape[0]), (0, shape[1])), scale, pixels.shape)[..., 0]


@pytest.mark.parametrize("scale", [0.3, 0.77, 1.4, 2.0, 3.7])
def test_windows_hold_the_very_pixels_of_the_whole(scale: float):
    height, width = 160, 130
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    shape = round(height / scale), round(width / scale)
    exact = height / shape[0], width / shape[1]
    everything = ((0, shape[0]), (0, shape[1]))
    expected = resample(pixels, ((0, height), (0, width)), everything, exact, (height, width))
    rows, columns = (shape[0] // 3, shape[0] // 2), (shape[1] // 4, shape[1])
    top, bottom = reach(*rows, exact[0], height)
    left, right = reach(*columns, exact[1], width)
    found = resample(
        pixels[top:bottom, left:right], ((top, bottom), (left, right)), (rows, columns), exact, (height, width)
    )
    np.testing.assert_array_equal(found, expected[slice(*rows), slice(*columns)])
    if scale > 1:
        assert (bottom - top) < scale * (rows[1] - rows[0]) + 2 * scale + 4  # no more is read than is needed


@pytest.mark.parametrize("shape", [(50, 40), (37, 23), (300, 410)])
def test_nothing_is_shifted(shape: tuple[int, int]):
    """A slope stays that slope: its value at each pixel's centre, to a hundredth of a pixel or two."""
    height, width = 100, 120
    slope = (np.arange(height)[:, None] + np.arange(width)).astype(np.uint8)
    found = whole(slope, shape)
    down, across = height / shape[0], width / shape[1]
    expected = ((np.arange(shape[0]) + 0.5) * down)[:, None] + (np.arange(shape[1]) + 0.5) * across - 1
    rim = 6 if shape[0] > height else 3
    np.testing.assert_allclose(found[rim:-rim, rim:-rim], expected[rim:-rim, rim:-rim], atol=0.1)


def test_smaller_pictures_are_smoothed():
    checks = (np.indices((120, 120)).sum(axis=0) % 2 * 200).astype(np.uint8)
    assert np.abs(whole(checks, (40, 40))[2:-2, 2:-2] - 100).max() < 15


def test_the_same_size_is_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (31, 17), dtype=np.uint8)
    np.testing.assert_array_equal(whole(pixels, (31, 17)), pixels)
