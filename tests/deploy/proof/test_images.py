import hashlib

import numpy as np
import pytest

from kit.deploy.proof.images import CASES, Case, draw, some_of

BYTES = {
    "33 x 33 RGB": "966839521de1ded1",
    "64 x 64 RGB": "ca1f80fd2c2086c1",
    "257 x 190 RGBA": "56ba43816cbf950d",
    "512 x 512 RGB": "1d811abfd50af046",
    "1024 x 1024 RGB": "3f16c077d86218a5",
    "2048 x 2048 RGB, core 0 in one view": "09dbea678609164c",
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_bytes_are_those_of_every_machine(case: Case):
    """Weights hold the checksum of what their networks saw: another drawing here would make them unverifiable."""
    image = case.image()
    assert (image.shape, image.dtype) == ((case.height_px, case.width_px, case.channels), np.uint8)
    assert hashlib.sha256(image).hexdigest()[:16] == BYTES[str(case)]


def test_the_sizes():
    assert [(case.width_px, case.height_px) for case in CASES if not case.core] == [
        (33, 33), (64, 64), (257, 190), (512, 512), (1024, 1024),
    ]  # fmt: skip
    assert [str(case) for case in CASES if case.core] == ["2048 x 2048 RGB, core 0 in one view"]
    assert "257 x 190 RGBA" in map(str, CASES)


def test_an_image_is_no_plain_surface():
    image = draw(190, 257, 4)
    assert set(np.unique(image[..., 3])) == {0, 255}
    assert 0.001 < (image[..., 3] == 0).mean() < 0.5
    assert image[..., :3].std(axis=(0, 1)).min() > 10
    assert np.array_equal(image[..., :3], draw(190, 257))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 70), (3, 2), (65, 64)])
def test_any_size(height: int, width: int):
    assert draw(height, width).shape == (height, width, 3)


def test_some_pixels():
    assert np.array_equal(some_of(64, 64), np.arange(64))
    places = some_of(1000, 64)
    assert np.array_equal(places, some_of(1000, 64))
    assert 50 < len(set(places)) == len(places) <= 64
    assert places.min() >= 0
    assert places.max() < 1000
