"""Seconds and memory of `kit map` over the size of a scene: 1, 4 and 16 times the area, up to 20,000 x 20,000 px.

    python benchmarks/map.py [--keep FOLDER] [--sides 5000 10000 20000] [--gsd 0]    minutes on 2 cores

The scenes are noise with bright squares of 9 m, some 36 to a megapixel of 0.1 m (900 to 14,000 in all); JPEG in blocks
of 512 px. The predictor is the brightness of a pixel, so that what is measured is all but the network: reading,
blending, strips, COGs, polygons with right angles, the picture. `--gsd 0.2` looks at the scenes at half their
resolution. Each scene is mapped in a process of its own. Linear is: as many megapixels a second for each size. Memory
is the process's peak; `imports_mb` of it was there before anything was read (torch, above all).
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import rasterio
from affine import Affine
from rasterio.windows import Window

from kit.data.rasters import gdal_options
from kit.deploy.mapping.map import CACHE_BYTES, MapOptions, draw_map, windows_of
from kit.deploy.mapping.map_files import MapFiles, PredictionKey
from kit.deploy.mapping.scene import SceneReader

GSD_M = 0.1
BAND_PX = 512
HOUSE_PX, STREET_PX = 90, 60


def drawn(home: Path, side_px: int) -> Path:
    """Returns a scene, drawn if it is not there yet: a house in each square of 150 px, but for one in five."""
    path = home / f"m{side_px}.tif"
    if path.exists():
        return path
    home.mkdir(parents=True, exist_ok=True)
    step = HOUSE_PX + STREET_PX
    random = np.random.default_rng(0)
    built = random.random((side_px // step + 1, side_px // step + 1)) < 0.8
    columns = np.arange(side_px)
    profile = {
        "driver": "GTiff", "width": side_px, "height": side_px, "count": 3, "dtype": "uint8", "crs": "EPSG:32636",
        "transform": Affine(GSD_M, 0, 450_000, 0, -GSD_M, 40_000), "tiled": True, "blockxsize": BAND_PX,
        "blockysize": BAND_PX, "compress": "jpeg", "photometric": "ycbcr", "interleave": "pixel", "bigtiff": "if_safer",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as target:
        for top in range(0, side_px, BAND_PX):
            rows = np.arange(top, min(top + BAND_PX, side_px))
            inside = ((rows % step < HOUSE_PX)[:, None]) & (columns % step < HOUSE_PX)
            inside &= built[(rows // step)[:, None], columns // step]
            grey = random.integers(20, 90, inside.shape, dtype=np.uint8) + inside * np.uint8(130)
            target.write(np.stack([grey] * 3), window=Window(0, top, side_px, len(rows)))
    return path


def brightness(rgba: np.ndarray) -> np.ndarray:
    return rgba[..., :3].mean(axis=2, dtype=np.float32) / 255


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def mapped(scene: Path, out: Path, gsd_m: float) -> None:
    """Maps in this process, and prints seconds, windows, buildings, peak and the peak before, MB."""
    before, start = peak_mb(), time.perf_counter()
    options = MapOptions(square=True)
    with rasterio.Env(**gdal_options(CACHE_BYTES, remote=False)), SceneReader(str(scene)) as reader:
        work = reader.set_resolution(gsd_m or reader.scene.gsd_m)
        key = PredictionKey(str(scene), "", "", "", windows_of(work, options))
        summary = draw_map(reader, brightness, key, MapFiles(out / "m"), options)
    print(time.perf_counter() - start, summary.windows, summary.buildings, peak_mb(), before)


def measure(home: Path, side_px: int, gsd_m: float) -> dict[str, float]:
    """Returns the row of one scene."""
    scene = drawn(home, side_px)
    with TemporaryDirectory(dir=home) as out:
        command = [sys.executable, __file__, "--scene", scene, "--out", out, "--gsd", str(gsd_m)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, windows, buildings, peak, before = map(float, printed.split())
    return {
        "side_px": side_px, "windows": windows, "buildings": buildings, "seconds": seconds,
        "mpx_s": side_px**2 / 1e6 / seconds, "peak_mb": peak, "imports_mb": before,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[5_000, 10_000, 20_000])
    parser.add_argument("--gsd", type=float, default=0.0, help="metres per pixel to look with; 0: the scene's own")
    parser.add_argument("--keep", type=Path, help="folder to draw the scenes in, or to find them in")
    parser.add_argument("--scene", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scene:
        mapped(options.scene, options.out, options.gsd)
        return
    with TemporaryDirectory() as temporary:
        rows = [measure(options.keep or Path(temporary), side_px, options.gsd) for side_px in options.sides]
    print(f"GDAL {rasterio.__gdal_version__}, {os.cpu_count()} cores\n")
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:,.1f}"))


if __name__ == "__main__":
    main()
