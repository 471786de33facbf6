"""Tiles a second of `kit prepare`, against the seed's way and against bare rasterio.

    python benchmarks/prepare_speed.py [--catalog CATALOG]    prints two tables; a quarter of an hour a round on 2 cores

The scene is the catalogue's only one; by default one of 25,600 px with 20,000 footprints, as `kit sample --scale` draws
them (`--keep FOLDER` draws it there, for the next time). Tiles: XYZ, zoom 19, 1024 px.

seed:     seed_prepare.py: rio-tiler, each polygon tested against each tile, all three mask layers, PNG by Pillow; in a
          second variant GeoTIFFs in kit's formats. On a share of the tiles, spread evenly: it is as slow on each.
rasterio: the scene through one WarpedVRT, tile after tile, written with a mask of zeros in kit's formats: no polygons,
          no index. The least that anyone does who cuts tiles with rasterio.
kit:      `kit prepare`: with all layers, as the seed draws them; the same with windows of the scene for images
          (`--images scene`: training reads them there, no pixels are written); and with footprints alone.

Each side runs in a process of its own, with 1 and with 2 processes of one thread each; every second round begins at the
other end. What counts is the cutting: not imports, nor, for the seed, reading the polygons and starting processes;
kit's clock runs from the call of `prepare` to its return. Ratios are taken within a round. Memory is the greatest sum
of resident sizes over the processes of a side, looked at twice a second; pages that they share count several times.
"""

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pool
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pystac
import rasterio
import seed_prepare
from drawn_city import draw_large_city
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from seed_prepare import SIDE_PX, XYZ, ZOOM, Place, write_tiff
from watching import watched

from kit.data.tiles.options import PrepareOptions, Style
from kit.data.tiles.prepare import prepare
from kit.data.tiles.tile import IMAGE_FORMATS, MASK_FORMAT
from kit.paths import Paths

DRAWN_PX = 25_600  # side of the drawn scene: 20,000 footprints
SIDES = ("seed", "seed, kit's formats", "kit, all layers", "kit, all layers, windows", "rasterio", "kit")
RATIOS = (
    ("kit, all layers", "seed"), ("kit, all layers", "seed, kit's formats"),
    ("kit, all layers, windows", "seed"), ("kit", "rasterio"),
)  # fmt: skip

Run = tuple[str, int]  # side, processes


def open_warped(scene: Path) -> None:
    """Opens the scene on the whole XYZ grid, for this process."""
    global WARPED
    level = XYZ.matrix(ZOOM)
    left, top = level.pointOfOrigin
    pixel, side = level.cellSize * level.tileWidth / SIDE_PX, level.matrixWidth * SIDE_PX
    at = rasterio.Affine(pixel, 0, left, 0, -pixel, top)
    source = rasterio.open(scene)
    WARPED = WarpedVRT(
        source, crs="EPSG:3857", transform=at, width=side, height=side, resampling=Resampling.bilinear,
        add_alpha=source.count == 3,
    )  # fmt: skip


def warp_tile(job: tuple[Place, Path]) -> None:
    (x, y), out = job
    window = Window(x * SIDE_PX, y * SIDE_PX, SIDE_PX, SIDE_PX)
    pixels, at = WARPED.read((1, 2, 3), window=window), WARPED.window_transform(window)
    write_tiff(out / "images" / f"{x}_{y}.tif", pixels, at, **IMAGE_FORMATS["lossless"])
    write_tiff(out / "masks" / f"{x}_{y}.tif", np.zeros((1, SIDE_PX, SIDE_PX), np.uint8), at, **MASK_FORMAT)


def rasterio_side(scene: Path, places: list[Place], out: Path, processes: int) -> float:
    for part in ("images", "masks"):
        (out / part).mkdir(parents=True)
    jobs = [(place, out) for place in places]
    start = time.perf_counter()
    if processes == 1:
        open_warped(scene)
        for job in jobs:
            warp_tile(job)
    else:
        row = len({x for x, _ in places})  # a process cuts a row of tiles at a time: neighbours share decoded blocks
        with Pool(processes, open_warped, (scene,)) as pool:
            for _ in pool.imap_unordered(warp_tile, jobs, chunksize=row):
                pass
    return time.perf_counter() - start


def kit_side(catalog: Path, root: Path, layers: bool, images: str, processes: int) -> float:
    start = time.perf_counter()
    prepare(
        catalog,
        Paths(root),
        PrepareOptions("tiles", "tile", workers=processes, style=Style(layers=layers, images=images)),
    )
    return time.perf_counter() - start


def places_of(root: Path) -> list[Place]:
    """Returns the tiles of a data set that kit cut."""
    files = Paths(root).data("tiles").glob("images/**/*.tif")
    rows_columns = [re.search(r"r(\d+)_c(\d+)$", file.stem).groups() for file in files]
    return [(column, row) for row, column in sorted((int(row), int(column)) for row, column in rows_columns)]


def run_side(side: str, processes: int, catalog: Path, places: list[Place], out: Path) -> float:
    """Returns the seconds that a side takes for the tiles."""
    if side.startswith("kit"):
        images = "scene" if "windows" in side else "lossless"
        return kit_side(catalog, out, "layers" in side, images, processes)
    scene, labels = files_of(catalog)
    if side == "rasterio":
        return rasterio_side(scene, places, out, processes)
    return seed_prepare.prepare(scene, labels, out, places, "kit" if "kit" in side else "png", processes)


def files_of(catalog: Path) -> tuple[Path, Path]:
    """Returns the image and the labels of the only scene of a catalogue."""
    assets = [item.assets for item in pystac.Catalog.from_file(catalog).get_items(recursive=True)]
    files = [[Path(has[key].get_absolute_href()) for has in assets if key in has] for key in ("image", "labels")]
    (scene,), (labels,) = files
    return scene, labels


def in_own_process(run: Run, catalog: Path, places: list[Place]) -> tuple[float, float]:
    """Returns seconds, and MB at the peak."""
    with TemporaryDirectory() as folder:
        chosen = Path(folder) / "places.json"
        chosen.write_text(json.dumps(places))
        options = ["--catalog", catalog, "--side", run[0], "--processes", run[1], "--out", Path(folder) / "out"]
        output, peak_mb = watched([sys.executable, "-W", "ignore", __file__, *options, "--places", chosen])
        return float(output), peak_mb


@contextmanager
def catalog_of(given: Path | None, keep: Path | None) -> Iterator[Path]:
    """Yields a catalogue of one scene: the given one, the one that is kept, or one that is drawn."""
    with TemporaryDirectory() as folder:
        home = given or keep or Path(folder) / "scene"
        if not home.exists():
            draw_large_city(home, DRAWN_PX)
        yield home / "catalog.json" if home.is_dir() else home


def as_text(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--catalog", type=Path, help="a STAC catalogue of one scene with its labels; drawn by default")
    parser.add_argument("--keep", type=Path, help="folder to draw the scene in, or to find it in")
    parser.add_argument("--seed-tiles", type=int, default=60, help="for the seed's sides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    for hidden in ("--side", "--places", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cv2.setNumThreads(1)  # before anything forks: OpenCV's threads do not come along
    if options.side:
        places = [tuple(place) for place in json.loads(Path(options.places).read_text())]
        print(run_side(options.side, options.processes[0], options.catalog, places, Path(options.out)))
        return
    with catalog_of(options.catalog, options.keep) as catalog:
        compare(catalog, options.seed_tiles, options.rounds, options.processes)


def compare(catalog: Path, seed_tiles: int, rounds: int, processes: list[int]) -> None:
    """Runs all sides and prints their tables."""
    with TemporaryDirectory() as first:  # the tiles to cut are those with imagery; this warms the page cache too
        kit_side(catalog, Path(first), False, "lossless", max(processes))
        places = places_of(Path(first))
    some = [places[at] for at in np.unique(np.linspace(0, len(places) - 1, seed_tiles).round().astype(int))]
    polygons = len(seed_prepare.read_polygons(files_of(catalog)[1]))
    versions = f"GDAL {rasterio.__gdal_version__}, OpenCV {cv2.__version__}"
    print(f"{versions}, {len(places)} tiles, {polygons} footprints, {rounds} rounds: median (least to most)\n")
    runs = [(side, count) for count in processes for side in SIDES]
    rates: dict[Run, list[float]] = {run: [] for run in runs}
    peaks_mb = dict.fromkeys(runs, 0.0)
    for number in range(rounds):
        for run in runs if number % 2 == 0 else runs[::-1]:
            chosen = some if run[0].startswith("seed") else places
            seconds, peak_mb = in_own_process(run, catalog, chosen)
            rates[run].append(len(chosen) / seconds)
            peaks_mb[run] = max(peaks_mb[run], peak_mb)
    print("| side | processes | tiles a second | peak memory, MB |\n|---|---|---|---|")
    for run in runs:
        print(f"| {run[0]} | {run[1]} | {as_text(rates[run])} | {peaks_mb[run]:.0f} |")
    print("\n| ratio | processes, both sides | |\n|---|---|---|")
    for over, under in RATIOS:
        for count in processes:
            pairs = zip(rates[over, count], rates[under, count], strict=True)
            print(f"| {over} / {under} | {count} | {as_text([a / b for a, b in pairs])} |")


if __name__ == "__main__":
    main()
