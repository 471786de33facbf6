"""The plain side of prepare_speed.py: tiles as the challenge's second place cut them, with the libraries of today.

Source: drivendataorg/open-cities-ai-challenge, 2nd Place, src/data/prepare_train.py, and the masks of solaris
(`df_to_px_mask`), told in other words. Each XYZ tile of zoom 19 is read by rio-tiler, which opens the scene anew; each
polygon of the scene is tested against each tile; footprint, boundary and contact are drawn; image and masks are saved
as PNG by Pillow, which scikit-image calls.

What is kinder to it here: polygons are projected once, and sent to the processes once; no data frames; OpenCV erodes.
As there: nearest neighbour, boundaries of touching houses run together, and houses beyond a tile's edge are not seen.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import cv2
import morecantile
import numpy as np
import pyogrio
import pyproj
import rasterio
import shapely
from affine import Affine
from PIL import Image
from rasterio.features import rasterize
from rasterio.transform import from_bounds
from rasterio.warp import transform_bounds
from rio_tiler.io import Reader
from shapely import Geometry

from kit.data.tiles.tile import IMAGE_FORMATS, MASK_FORMAT

ZOOM, SIDE_PX = 19, 1024
BOUNDARY_PX, CONTACT_M = 5, 5.0
EARTH_M = 6378137.0  # radius of EPSG:3857's sphere
XYZ = morecantile.tms.get("WebMercatorQuad")

Place = tuple[int, int]  # x and y of an XYZ tile


@dataclass(frozen=True)
class Job:
    """What every process needs: the scene, its polygons in EPSG:3857, where to, and the format: `png` or `kit`."""

    scene: Path
    polygons: list[Geometry]
    out: Path
    image_format: str


def read_polygons(labels: Path) -> list[Geometry]:
    _, _, wkb, _ = pyogrio.raw.read(labels, columns=[])
    change = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True)
    return list(shapely.transform(shapely.from_wkb(wkb), change.transform, interleaved=False))


def tiles_of(scene: Path) -> list[Place]:
    with rasterio.open(scene) as source:
        bounds = transform_bounds(source.crs, "EPSG:4326", *source.bounds)
    return [(tile.x, tile.y) for tile in XYZ.tiles(*bounds, [ZOOM])]


def footprint_mask(polygons: list[Geometry], at: Affine) -> np.ndarray:
    """Returns (H, W) uint8, 255 in the polygons."""
    if not polygons:
        return np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    return rasterize([(polygon, 255) for polygon in polygons], (SIDE_PX, SIDE_PX), transform=at, dtype="uint8")


def boundary_mask(footprint: np.ndarray) -> np.ndarray:
    eroded = cv2.erode(footprint, np.ones((BOUNDARY_PX, BOUNDARY_PX), np.uint8))
    return footprint ^ eroded


def contact_mask(polygons: list[Geometry], at: Affine, footprint: np.ndarray) -> np.ndarray:
    """Returns where two buffered polygons overlap, outside of all: for each, the part that its neighbours cover."""
    stretch = math.cosh(at.f / EARTH_M)  # of web mercator, 1 / cos(latitude)
    buffers = [polygon.buffer(CONTACT_M * stretch) for polygon in polygons]
    index = shapely.STRtree(buffers)
    shared = []
    for number, zone in enumerate(buffers):
        neighbours = [buffers[other] for other in index.query(zone) if other != number]
        if neighbours:
            shared.append(zone.intersection(shapely.union_all(neighbours)))
    contact = shapely.union_all(shared)
    drawn = np.zeros_like(footprint) if contact.is_empty else footprint_mask([contact], at)
    drawn[footprint > 0] = 0
    return drawn


def save(path: Path, pixels: np.ndarray, at: Affine, job: Job, **profile: Any) -> None:
    """Writes (H, W, 3) uint8 as PNG, or as GeoTIFF in kit's format."""
    if job.image_format == "png":
        Image.fromarray(pixels).save(path.with_suffix(".png"))
        return
    write_tiff(path.with_suffix(".tif"), pixels.transpose(2, 0, 1), at, **profile)


def write_tiff(path: Path, bands: np.ndarray, at: Affine, **profile: Any) -> None:
    count, height, width = bands.shape
    shape = {"count": count, "height": height, "width": width, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:3857", transform=at, **shape, **profile) as raster:
        raster.write(bands)


def cut(job: Job, place: Place) -> None:
    """Saves one tile and its masks."""
    with Reader(job.scene) as reader:
        tile = reader.tile(*place, ZOOM, tilesize=SIDE_PX)
    frame = shapely.box(*XYZ.xy_bounds(*place, ZOOM))
    at = from_bounds(*frame.bounds, SIDE_PX, SIDE_PX)
    polygons = [polygon for polygon in job.polygons if polygon.intersects(frame)]
    footprint = footprint_mask(polygons, at)
    layers = (footprint, boundary_mask(footprint), contact_mask(polygons, at, footprint))
    name = f"{job.scene.stem}_{ZOOM}_{place[0]}_{place[1]}"
    save(
        job.out / "images" / name,
        np.ascontiguousarray(tile.data[:3].transpose(1, 2, 0)),
        at,
        job,
        **IMAGE_FORMATS["lossless"],
    )
    save(job.out / "masks" / name, np.stack(layers, axis=-1), at, job, **MASK_FORMAT)


def start_worker(job: Job) -> None:
    global JOB
    JOB = job


def cut_in_worker(place: Place) -> None:
    cut(JOB, place)


def prepare(
    scene: Path, labels: Path, out: Path, places: Sequence[Place] = (), image_format: str = "png", processes: int = 1
) -> float:
    """Cuts the given tiles of a scene, or all that touch it; returns the seconds they took.

    Reading the polygons does not count.
    """
    for part in ("images", "masks"):
        (out / part).mkdir(parents=True)
    job = Job(scene, read_polygons(labels), out, image_format)
    places = places or tiles_of(scene)
    if processes == 1:
        start = time.perf_counter()
        for place in places:
            cut(job, place)
        return time.perf_counter() - start
    with Pool(processes, start_worker, (job,)) as pool:
        start = time.perf_counter()
        for _ in pool.imap_unordered(cut_in_worker, places):
            pass
        return time.perf_counter() - start
