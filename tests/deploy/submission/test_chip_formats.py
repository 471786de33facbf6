"""Chips of every format, in folders, become masks named after them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image

from kit.pipeline.export import Exported

Cli = Callable[..., tuple[int, str, str]]


def test_pictures_in_folders_are_submitted(tiny_weights: Exported, tmp_path: Path, cli: Cli):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    names = ["north/a.png", "south/b.jpg", "south/deep/x,y.webp", "東.tif"]
    for name in names:
        (tmp_path / "chips" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "chips" / name)
    options = ("--weights", tiny_weights.path, "--name", "one", "--root", tmp_path)
    code, _, err = cli("submit", tmp_path / "chips", *options)
    assert code == 0, err
    for name in ("a", "b", "x,y", "東"):
        with rasterio.open(tmp_path / "submissions/one" / f"{name}.tif") as mask:
            assert (mask.driver, mask.shape, mask.dtypes) == ("GTiff", (30, 40), ("uint8",))
    assert cli("submit", tmp_path / "chips", *options)[0] == 0
    (tmp_path / "chips/north/b.png").write_bytes((tmp_path / "chips/north/a.png").read_bytes())
    code, _, err = cli("submit", tmp_path / "chips", *options)
    assert code == 1
    assert "occur twice, first b" in err
