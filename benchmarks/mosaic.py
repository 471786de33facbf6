"""Seconds and memory of `kit mosaic` over the number of chips: 1, 2 and 4 times as many.

    python benchmarks/mosaic.py [--chips 500 1000 2000] [--side 1024] [--keep FOLDER]    ten minutes on 2 cores

The chips are drawn: patches of the sample city laid side by side, turned by an angle of its own for each mosaic and
brought to one of five ground resolutions (so no two sides are the same), cut into grids of 5 x 5, each chip a JPEG TIFF
of quality 75. `--keep` keeps them for the next time. They are read and put together in a process of its
own, by as many readers as there are cores. Reading is linear; comparing all sides with all is not, but a small part of
the time. Memory is the greatest sum of resident sizes over all processes, looked at twice a second; pages that they
share count several times.
"""

import argparse
import csv
import os
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pandas as pd
import rasterio
from watching import watched

from kit.data.sources.chips import find_chips
from kit.deploy.mosaics.find import assemble, read_all
from kit.sample.drawing import draw_scene
from kit.sample.sites import AREAS
from kit.system.cpu import cpu_count

GRID = 5  # rows and columns of a mosaic
PATCH_PX = 1536
PATCHES = 24
ZOOMS = (1.5, 1.0, 0.75, 0.5, 0.4)  # chip pixels to a drawn pixel of 0.075 m


def patches() -> list[np.ndarray]:
    """Returns drawn pieces of all areas, (side, side, 3)."""
    looks = [area.look for area in AREAS.values()]
    drawn = (
        draw_scene(np.random.default_rng(n), looks[n % len(looks)], PATCH_PX, PATCH_PX, border=False)
        for n in range(PATCHES)
    )
    return [drawing.image[..., :3] for drawing in drawn]


def mosaic(rng: np.random.Generator, drawn: list[np.ndarray], side_px: int, zoom: float) -> np.ndarray:
    """Returns an image of GRID x GRID chips."""
    size = GRID * side_px
    wide_px = round(size * 1.45 / zoom)  # of the ground below: turned, it still covers the mosaic
    count = -(-wide_px // PATCH_PX)
    pieces = [drawn[i] for i in rng.integers(len(drawn), size=count * count)]
    ground = np.vstack([np.hstack(pieces[row * count : (row + 1) * count]) for row in range(count)])
    centre = (ground.shape[1] / 2, ground.shape[0] / 2)
    move = cv2.getRotationMatrix2D(centre, rng.uniform(0, 360), zoom)
    move[:, 2] += np.array([size, size]) / 2 - centre
    return cv2.warpAffine(ground, move, (size, size), flags=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC)


def draw_chips(folder: Path, count: int, side_px: int) -> Path:
    """Returns a folder of chips and `places.csv`, drawn if it is not there yet."""
    if (folder / "places.csv").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")
    drawn, rng = patches(), np.random.default_rng(count)
    names = rng.permutation(10 * count)
    places: list[tuple[str, int, int, int]] = []
    profile = {"driver": "GTiff", "height": side_px, "width": side_px, "count": 3, "dtype": "uint8"}
    coded = {"compress": "jpeg", "jpeg_quality": 75, "photometric": "ycbcr", "tiled": True}
    while len(places) < count:
        number = len(places) // GRID**2
        image = mosaic(rng, drawn, side_px, ZOOMS[number % len(ZOOMS)])
        for row, col in list(np.ndindex(GRID, GRID))[: count - len(places)]:
            name = f"{names[len(places)]:06d}"
            part = image[row * side_px : (row + 1) * side_px, col * side_px : (col + 1) * side_px]
            with rasterio.open(folder / f"{name}.tif", "w", **profile, **coded) as chip:
                chip.write(np.moveaxis(part, -1, 0))
            places.append((name, number, row, col))
    with (folder / "places.csv").open("w", newline="") as file:
        csv.writer(file).writerows(places)
    return folder


def find(folder: Path) -> None:
    """Finds the mosaics in this process, and prints seconds of reading and joining, recall and false joins."""
    chips = find_chips(folder)
    start = time.perf_counter()
    borders = read_all(chips, cpu_count())
    read = time.perf_counter()
    mosaics = assemble(chips, borders)
    done = time.perf_counter()
    with (folder / "places.csv").open() as file:
        at = {(int(m), int(row), int(col)): name for name, m, row, col in csv.reader(file)}
    true = {
        (name, second, below)
        for (m, row, col), name in at.items()
        for below in (False, True)
        if (second := at.get((m, row + below, col + (not below))))
    }
    joins_found = {(join.first, join.second, join.below) for mosaic in mosaics for join in mosaic.joins}
    print(read - start, done - read, len(true), len(joins_found & true) / len(true), len(joins_found - true))


def measure(home: Path, count: int, side_px: int) -> dict[str, float]:
    """Returns the row of one number of chips."""
    folder = draw_chips(home / f"chips{count}_{side_px}", count, side_px)
    output, peak_mb = watched([sys.executable, "-W", "ignore", __file__, "--find", folder])
    reading, joining, joins, recall, false = map(float, output.split())
    return {
        "chips": count, "joins": joins, "recall": recall, "false": false, "read_s": reading, "join_s": joining,
        "ms_a_chip": 1e3 * (reading + joining) / count, "peak_mb": peak_mb,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--side", type=int, default=1024, help="of a chip, px")
    parser.add_argument("--keep", type=Path, help="folder to draw the chips in, or to find them in")
    parser.add_argument("--find", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.find:
        find(options.find)
        return
    with TemporaryDirectory() as temporary:
        rows = [measure(options.keep or Path(temporary), count, options.side) for count in options.chips]
    print(f"GDAL {rasterio.__gdal_version__}, OpenCV {cv2.__version__}, {os.cpu_count()} cores\n")
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:,.4g}"))


if __name__ == "__main__":
    main()
