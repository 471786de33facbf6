"""Drawn terraces and an informal settlement, mapped from perfect target rasters: is every house its own polygon?

    python benchmarks/instances.py [--keep FOLDER]    a minute on 2 cores

Half of the scene holds terraces, rows of 8 houses with shared walls; half holds huts of random size, turned by up to 12
degrees, with gaps of 0 to 1 m. 0.1 m per pixel. The predictor returns what a perfect network would: the footprint, and
footprint minus boundary minus contact as `Walls` draws them. The scene is mapped with windows of 512 and of 1,024 px.

Right: a true house and a polygon match at an IoU above 0.5, and neither covers half of another. Cut: a true house that
covers half of several polygons.
"""

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import rasterio
import shapely
import shapely.affinity
from affine import Affine
from numpy.typing import NDArray
from pyogrio.raw import read as read_layer
from rasterio.features import rasterize

from kit.data.instances import Walls, pack_ids
from kit.data.rasters import gdal_options
from kit.deploy.mapping.map import CACHE_BYTES, MapOptions, draw_map, windows_of
from kit.deploy.mapping.map_files import MapFiles, PredictionKey
from kit.deploy.mapping.scene import SceneReader
from kit.deploy.weights.card import Splitting
from kit.measures.object_polygons import compare_polygons

GSD_M = 0.1
SIDE_PX = 3000
WINDOWS = (512, 1024)
WALLS = Walls(boundary_px=9, contact_px=9)
SPLITTING = Splitting(0.5, 0.5, 0, 0)


def houses() -> list[shapely.Polygon]:
    """Returns footprints in pixels: terraces in the upper half, huts in the lower half."""
    random, found = np.random.default_rng(0), []
    for top in range(40, SIDE_PX // 2 - 140, 190):
        left = 40.0
        while left < SIDE_PX - 700:
            for _ in range(8):
                width, depth = random.uniform(45, 75), random.uniform(80, 110)
                found.append(shapely.box(left, top, left + width, top + depth))
                left += width
            left += random.uniform(30, 80)
    for row in range(SIDE_PX // 2 + 40, SIDE_PX - 120, 62):
        left = 40.0
        while left < SIDE_PX - 120:
            width, depth = random.uniform(28, 70), random.uniform(32, 52)
            hut = shapely.box(left, row, left + width, row + depth)
            hut = shapely.affinity.rotate(hut, random.uniform(-12, 12))
            found.append(hut)
            left += width + random.uniform(0, 10)
    return apart(found)


def apart(polygons: list[shapely.Polygon]) -> list[shapely.Polygon]:
    """Returns polygons of which the later ones give way, so that none overlap."""
    kept: list[shapely.Polygon] = []
    for polygon in polygons:
        for other in kept[-40:]:
            polygon = polygon.difference(other) if polygon.intersects(other) else polygon
        parts = [part for part in shapely.get_parts(polygon) if part.geom_type == "Polygon"]
        if parts and max(part.area for part in parts) > 400:
            kept.append(max(parts, key=shapely.area))
    return kept


def drawn(path: Path, polygons: list[shapely.Polygon]) -> NDArray[np.uint16]:
    """Writes the scene: red the footprint, green the inside, blue noise. Returns the ids."""
    ids = rasterize(
        zip(polygons, range(1, len(polygons) + 1), strict=True), (SIDE_PX, SIDE_PX), dtype="uint16"
    )  # rows grow downwards in both
    footprint, boundary, contact = WALLS.draw(pack_ids((ids > 0).astype(np.uint8), ids)).astype(np.int16)
    inside = np.clip(footprint - boundary - contact, 0, 1)
    noise = np.random.default_rng(1).integers(1, 255, ids.shape, dtype=np.uint8)
    profile = {
        "driver": "GTiff", "width": SIDE_PX, "height": SIDE_PX, "count": 3, "dtype": "uint8", "crs": "EPSG:32636",
        "transform": Affine(GSD_M, 0, 450_000, 0, -GSD_M, 40_000), "tiled": True, "compress": "deflate",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as target:
        target.write(np.stack([255 * footprint, 255 * inside, noise]).astype(np.uint8))
    return ids


def targets(rgba: NDArray[np.uint8], planes: int) -> NDArray[np.float32]:
    found = np.ascontiguousarray(rgba[..., :planes].transpose(2, 0, 1)).astype(np.float32) / 255
    return found if planes > 1 else found[0]


def mapped(scene: Path, folder: Path, window_px: int, split: bool, square: bool) -> NDArray[np.object_]:
    """Returns the polygons of a map, in pixels of the scene."""
    options = MapOptions(window_px=window_px, overlap_px=64, splitting=SPLITTING if split else None, square=square)
    with rasterio.Env(**gdal_options(CACHE_BYTES, remote=False)), SceneReader(str(scene)) as reader:
        work = reader.set_resolution(reader.scene.gsd_m)
        key = PredictionKey(str(scene), "", "", "", windows_of(work, options))
        predict = partial(targets, planes=2 if split else 1)
        summary = draw_map(reader, predict, key, MapFiles(folder / "m"), options)
    polygons = shapely.from_wkb(read_layer(summary.polygons)[2])
    return shapely.normalize(shapely.transform(polygons, lambda points: (points - (450_000, 40_000)) / (GSD_M, -GSD_M)))


def row_of(true: NDArray[np.object_], found: NDArray[np.object_]) -> dict[str, object]:
    counts = compare_polygons(as_metres(true), as_metres(found), boundary_m=0).objects
    wrong = counts.true - counts.matched[0]
    one, other = shapely.STRtree(found).query(found, predicate="intersects")
    pairs = one < other
    shared = shapely.area(shapely.intersection(found[one[pairs]], found[other[pairs]]))
    twice = shared > 0.5 * np.minimum(shapely.area(found[one[pairs]]), shapely.area(found[other[pairs]]))
    return {
        "houses": counts.true, "polygons": counts.predicted, "right": f"{1 - wrong / counts.true:.2%}",
        "merges": counts.merges, "cut": f"{counts.splits / counts.true:.2%}", "F1": round(counts.f1, 4),
        "overlaps": int((shared > 1e-6).sum()), "twice": int(twice.sum()),
    }  # fmt: skip


def as_metres(polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    return shapely.transform(polygons, lambda points: points * GSD_M)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder that keeps the scene and the maps")
    keep = parser.parse_args().keep
    with TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        true, rows, layers = np.array(houses(), dtype=object), [], {}
        drawn(folder / "scene.tif", list(true))
        for split, square in ((False, False), (True, False), (True, True)):
            for window_px in WINDOWS:
                found = mapped(folder / "scene.tif", folder / f"{split}{square}{window_px}", window_px, split, square)
                layers[split, square, window_px] = found
                rows.append({"split": split, "square": square, "window": window_px, **row_of(true, found)})
            same = np.array_equal(*(shapely.to_wkb(layers[split, square, window_px]) for window_px in WINDOWS))
            rows[-1]["same"] = rows[-2]["same"] = same
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
