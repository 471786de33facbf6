import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from deploy_fakes import noise, write_tiff

from kit.deploy.submission.inspect_masks import InspectedMask, read_contents
from kit.errors import SubmissionError


def mask(seed: int = 0, height: int = 20, width: int = 30) -> np.ndarray:
    return (noise(height, width, 1, seed)[..., 0] > 128).astype(np.uint8)


def test_pixels_are_kept_for_a_comparison(tmp_path: Path):
    sizes = {"x": (20, 30), "y": (33, 17)}
    for seed, (name, size) in enumerate(sizes.items()):
        write_tiff(tmp_path / f"{name}.tif", mask(seed, *size))
    masks = read_contents(tmp_path, None, keep=True).sound()
    for seed, (name, size) in enumerate(sizes.items()):
        np.testing.assert_array_equal(masks[name].pixels(), mask(seed, *size) == 1)
    assert all(mask.packed == b"" for mask in read_contents(tmp_path, None).masks)


def test_a_faulty_mask_says_what_is_wrong_by_check(tmp_path: Path):
    write_tiff(tmp_path / "x.tif", noise(9, 8))
    assert read_contents(tmp_path, None).masks == (
        InspectedMask("x", {"bands": "x.tif has 3 bands, expected 1"}, (9, 8)),
    )


def test_run_lengths_need_the_test_set(tmp_path: Path):
    with pytest.raises(SubmissionError, match="holds run lengths, which have no image sizes"):
        read_contents(tmp_path / "rle.csv", None)


def test_a_check_imports_no_torch(tmp_path: Path):
    write_tiff(tmp_path / "masks/x.tif", mask())
    write_tiff(tmp_path / "chips/x.tif", noise(20, 30))
    code = (
        "import sys; sys.argv[1:] = ['check-submission', sys.argv[1], '--test', sys.argv[2], '--root', sys.argv[3]]\n"
        "from kit.cli import app; app(standalone_mode=False); print('torch' in sys.modules)"
    )
    arguments = [str(tmp_path / name) for name in ("masks", "chips", ".")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-2:] == [f"checked {tmp_path / 'masks'}", "False"], done.stderr
