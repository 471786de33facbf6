"""Seconds and memory of `kit map` over the size of a scene: 1, 4 and 16 times the area, up to 20,000 x 20,000 px.

    python benchmarks/map.py [--keep FOLDER] [--sides 5000 10000 20000] [--gsd 0]    minutes on 2 cores
    python benchmarks/map.py --rows --sides 20000 [--rounds 1]                       what splitting costs

The scenes are noise with bright squares of 9 m, some 36 to a megapixel of 0.1 m (900 to 14,000 in all); JPEG in blocks
of 512 px. The predictor is the brightness of a pixel, so that what is measured is all but the network: reading,
blending, strips, COGs, polygons with right angles, the picture. `--gsd 0.2` looks at the scenes at half their
resolution. Each scene is mapped in a process of its own. Linear is: as many megapixels a second for each size. Memory
is the process's peak; `imports_mb` of it was there before anything was read (torch, above all).

`--rows` draws rows of 2 to 12 houses that share walls, each 30 to 60 px wide and 90 px deep, as many to a megapixel.
The red channel is the footprint, the green one the inside of each house. Each scene is mapped twice in turns:
connected components as before (`split` no), and split into houses (yes). `cpu_s` are CPU seconds of all threads.
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
from kit.deploy.weights.card import Splitting

GSD_M = 0.1
BAND_PX = 512
HOUSE_PX, STREET_PX = 90, 60
STEP_PX, WALL_PX = HOUSE_PX + STREET_PX, 5
BUILT = 0.29  # share of the rows of houses that are there
SPLITTING = Splitting(0.5, 1.0, 0, 0)


def drawn(home: Path, side_px: int) -> Path:
    """Returns a scene, drawn if it is not there yet: a house in each square of 150 px, but for one in five."""
    path = home / f"m{side_px}.tif"
    if path.exists():
        return path
    home.mkdir(parents=True, exist_ok=True)
    step, random = STEP_PX, np.random.default_rng(0)
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


def drawn_rows(home: Path, side_px: int) -> Path:
    """Returns a scene of rows of houses with shared walls, drawn if it is not there yet."""
    path = home / f"r{side_px}.tif"
    if path.exists():
        return path
    home.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    profile = {
        "driver": "GTiff", "width": side_px, "height": side_px, "count": 3, "dtype": "uint8", "crs": "EPSG:32636",
        "transform": Affine(GSD_M, 0, 450_000, 0, -GSD_M, 40_000), "tiled": True, "blockxsize": BAND_PX,
        "blockysize": BAND_PX, "compress": "jpeg", "photometric": "rgb", "interleave": "pixel", "bigtiff": "if_safer",
    }  # fmt: skip
    depth = np.minimum(np.arange(STEP_PX), HOUSE_PX - 1 - np.arange(STEP_PX))  # of each row of pixels in its houses
    beside = np.concatenate([_row_of_houses(side_px, random) for _ in range(side_px // STEP_PX + 1)])
    with rasterio.open(path, "w", **profile) as target:
        for top in range(0, side_px, BAND_PX):
            rows = np.arange(top, min(top + BAND_PX, side_px))
            inside = np.minimum(depth[rows % STEP_PX][:, None], beside[rows // STEP_PX])  # px from the nearest wall
            noise = random.integers(20, 90, inside.shape, dtype=np.uint8)
            bands = [noise + (inside >= wall) * np.uint8(130) for wall in (0, WALL_PX, side_px)]
            target.write(np.stack(bands), window=Window(0, top, side_px, len(rows)))
    return path


def _row_of_houses(side_px: int, random: np.random.Generator) -> np.ndarray:
    """Returns how far each column is from the walls of its house, px, (1, side_px); -1 between rows."""
    depths, gap = [], [np.full(STREET_PX, -1)]
    while sum(map(len, depths)) < side_px:
        built = random.random() < BUILT
        for width in random.integers(30, 61, random.integers(2, 13)):
            depths.append(np.minimum(np.arange(width), width - 1 - np.arange(width)) if built else np.full(width, -1))
        depths += gap
    return np.concatenate(depths)[None, :side_px]


def footprint_and_inside(rgba: np.ndarray) -> np.ndarray:
    planes = np.ascontiguousarray(rgba[..., :2].transpose(2, 0, 1)).astype(np.float32) / 255
    planes[1, planes[0] < 0.5] = 0  # a network's footprint minus boundary minus contact is 0 on the ground
    return planes


def footprint(rgba: np.ndarray) -> np.ndarray:
    return rgba[..., 0].astype(np.float32) / 255


def brightness(rgba: np.ndarray) -> np.ndarray:
    return rgba[..., :3].mean(axis=2, dtype=np.float32) / 255


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


PREDICTORS = {"": brightness, "no": footprint, "yes": footprint_and_inside}  # by `--split`


def mapped(scene: Path, out: Path, gsd_m: float, split: str) -> None:
    """Maps in this process, and prints seconds, CPU seconds, windows, buildings, peak and the peak before, MB."""
    before, start, cpu = peak_mb(), time.perf_counter(), time.process_time()
    options = MapOptions(square=True, splitting=SPLITTING if split == "yes" else None)
    with rasterio.Env(**gdal_options(CACHE_BYTES, remote=False)), SceneReader(str(scene)) as reader:
        work = reader.set_resolution(gsd_m or reader.scene.gsd_m)
        key = PredictionKey(str(scene), "", "", "", windows_of(work, options))
        summary = draw_map(reader, PREDICTORS[split], key, MapFiles(out / "m"), options)
    print(time.perf_counter() - start, time.process_time() - cpu, summary.windows, summary.buildings, peak_mb(), before)


def measure(home: Path, side_px: int, gsd_m: float, split: str = "") -> dict[str, object]:
    """Returns the row of one scene."""
    scene = drawn_rows(home, side_px) if split else drawn(home, side_px)
    with TemporaryDirectory(dir=home) as out:
        command = [sys.executable, __file__, "--scene", scene, "--out", out, "--gsd", str(gsd_m), "--split", split]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, cpu_s, windows, buildings, peak, before = map(float, printed.split())
    return {
        **({"split": split} if split else {}),
        "side_px": side_px, "windows": windows, "buildings": buildings, "seconds": seconds, "cpu_s": cpu_s,
        "mpx_s": side_px**2 / 1e6 / seconds, "peak_mb": peak, "imports_mb": before,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[5_000, 10_000, 20_000])
    parser.add_argument("--gsd", type=float, default=0.0, help="metres per pixel to look with; 0: the scene's own")
    parser.add_argument("--keep", type=Path, help="folder to draw the scenes in, or to find them in")
    parser.add_argument("--rows", action="store_true", help="rows of houses, mapped without and with splitting")
    parser.add_argument("--rounds", type=int, default=1, help="of --rows")
    parser.add_argument("--split", default="", help=argparse.SUPPRESS)
    parser.add_argument("--scene", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scene:
        mapped(options.scene, options.out, options.gsd, options.split)
        return
    with TemporaryDirectory() as temporary:
        home, ways = options.keep or Path(temporary), ["no", "yes"] * options.rounds if options.rows else [""]
        rows = [measure(home, side_px, options.gsd, split) for side_px in options.sides for split in ways]
    print(f"GDAL {rasterio.__gdal_version__}, {os.cpu_count()} cores\n")
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:,.1f}"))


if __name__ == "__main__":
    main()
