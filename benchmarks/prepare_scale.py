"""Seconds and memory of `kit prepare` over the size of a scene: 1, 4 and 16 times the area and the footprints.

    python benchmarks/prepare_scale.py [--keep FOLDER] [--sides 10000 20000 40000]    twenty minutes on 2 cores

The scenes are drawn as `kit sample --scale` draws them, with about 3,000, 13,000 and 50,000 footprints; `--keep` keeps
them for the next time. Each is cut in a process of its own, by as many processes as there are cores: XYZ, zoom 19,
1024 px. Linear is: as many tiles a second, and as many microseconds a footprint, for each size. Memory is the greatest
sum of resident sizes over all processes, looked at twice a second; pages that they share count several times.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import rasterio
from drawn_city import draw_large_city
from watching import watched

from kit.data.tiles.options import PrepareOptions
from kit.data.tiles.prepare import prepare
from kit.paths import Paths


def drawn(home: Path, side_px: int) -> Path:
    """Returns the folder of a scene, drawn if it is not there yet."""
    folder = home / f"c{side_px}"
    return folder if folder.exists() else draw_large_city(folder, side_px)


def cut(catalog: Path, root: Path) -> None:
    """Cuts in this process, and prints seconds, tiles of the grid, tiles kept, footprints."""
    start = time.perf_counter()
    prepared = prepare(catalog, Paths(root), PrepareOptions("tiles", "tile"))
    seconds = time.perf_counter() - start
    (record,) = prepared.scenes
    print(seconds, len(record.cut), len(record.cut.tiles), record.counts["used"])


def measure(home: Path, side_px: int) -> dict[str, float]:
    """Returns the row of one scene."""
    catalog = drawn(home, side_px)
    with TemporaryDirectory() as root:
        output, peak_mb = watched([sys.executable, "-W", "ignore", __file__, "--catalog", catalog, "--root", root])
    seconds, grid, kept, footprints = map(float, output.split())
    return {
        "side_px": side_px, "tiles": kept, "footprints": footprints, "seconds": seconds,
        "tiles_s": grid / seconds, "us_a_footprint": 1e6 * seconds / footprints, "peak_mb": peak_mb,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[10_000, 20_000, 40_000])
    parser.add_argument("--keep", type=Path, help="folder to draw the scenes in, or to find them in")
    parser.add_argument("--catalog", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.catalog:
        cut(options.catalog, options.root)
        return
    with TemporaryDirectory() as temporary:
        rows = [measure(options.keep or Path(temporary), side_px) for side_px in options.sides]
    print(f"GDAL {rasterio.__gdal_version__}, {os.cpu_count()} cores\n")
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:,.1f}"))


if __name__ == "__main__":
    main()
