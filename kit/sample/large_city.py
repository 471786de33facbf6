"""Scenes of any size: mosaics of patches, written patch by patch, so that memory does not grow with the scene.

At most `PATCHES` patches are drawn for a scene. Larger scenes repeat them, rotated and mirrored, with their footprints.
A house at the edge of a patch is cut off there, and so is its footprint.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyproj
import rasterio
import shapely
from affine import Affine

from kit.sample.city_files import (
    BUILDING,
    COLOURS,
    WEBP_QUALITY,
    footprints_path,
    image_path,
    write_scene_items,
)
from kit.sample.drawing import BORDER_STEP_PX, border_steps, draw_scene
from kit.sample.plan import Look
from kit.sample.sites import AREAS, Site, georeference

PATCH_PX = 2048  # about a scene of the sample at scale 1; a multiple of BORDER_STEP_PX and BLOCK_PX
PATCHES = 32  # drawn for a scene, 8 views of each; at 2,048 px they take 400 MB
BLOCK_PX = 512
MIN_AREA_PX2 = 1.0  # of a footprint cut at a patch's edge: a smaller one may collapse when coordinates are rounded

Polygons = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Patch:
    """A square piece of a city."""

    image: npt.NDArray[np.uint8]  # (side, side, 3) uint8, RGB
    footprints: Polygons  # in pixels of the patch; they may extend beyond it

    def view(self, number: int) -> "Patch":
        """Returns one of 8 views: bit 0 swaps rows and columns, bit 1 mirrors left-right, bit 2 top-bottom."""
        image, side = self.image, len(self.image)
        swapped, left_right, top_bottom = number & 1, number & 2, number & 4
        image = image.swapaxes(0, 1) if swapped else image
        image = image[:, ::-1] if left_right else image
        image = image[::-1] if top_bottom else image

        def turn(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            x, y = xy.T[::-1] if swapped else xy.T
            return np.column_stack([side - x if left_right else x, side - y if top_bottom else y])

        return Patch(image, shapely.transform(self.footprints, turn))


def draw_patch(rng: np.random.Generator, look: Look, side_px: int, zoom_out: float = 1) -> Patch:
    """Returns a patch that is drawn `zoom_out` times as large and then downscaled."""
    drawn_px = round(side_px * zoom_out)
    drawing = draw_scene(rng, look, drawn_px, drawn_px, border=False)
    image = drawing.image[..., :3]
    if drawn_px != side_px:
        image = np.asarray(cv2.resize(image, (side_px, side_px), interpolation=cv2.INTER_AREA), np.uint8)
    outlines = np.array([house.outline for house in drawing.plan.houses], dtype=object)
    footprints = shapely.transform(outlines, lambda xy: xy * (side_px / drawn_px))
    return Patch(np.ascontiguousarray(image), footprints)


def _clipped(polygons: Polygons, height_px: int, width_px: int) -> Polygons:
    """Returns polygons clipped to the frame, px; each piece becomes a polygon."""
    pieces = shapely.get_parts(shapely.intersection(polygons, shapely.box(0, 0, width_px, height_px)))
    kept = (shapely.get_type_id(pieces) == shapely.GeometryType.POLYGON) & (shapely.area(pieces) >= MIN_AREA_PX2)
    clipped: Polygons = pieces[kept]
    return clipped


def count_patches(site: Site, patch_px: int = PATCH_PX) -> int:
    """Returns how many patches cover a scene."""
    return ceil(site.height_px / patch_px) * ceil(site.width_px / patch_px)


def lay_patches(
    rng: np.random.Generator, site: Site, patch_px: int = PATCH_PX, zoom_out: float = 1
) -> Iterator[tuple[int, int, Patch]]:
    """Yields top, left (px) and a patch for each place of the scene, row by row; the last may extend beyond it.

    The first `PATCHES` places get new patches, the others random ones of these.
    """
    generators = rng.spawn(min(PATCHES, count_patches(site, patch_px)))
    drawn: list[Patch] = []
    for row, col in np.ndindex(ceil(site.height_px / patch_px), ceil(site.width_px / patch_px)):
        if len(drawn) < len(generators):
            drawn.append(draw_patch(generators[len(drawn)], AREAS[site.area].look, patch_px, zoom_out))
            patch = drawn[-1]
        else:
            patch = drawn[rng.integers(len(drawn))]
        yield row * patch_px, col * patch_px, patch.view(int(rng.integers(8)))


def draw_large_scene(
    area_folder: Path,
    site: Site,
    rng: np.random.Generator,
    advance: Callable[[], object],
    *,
    patch_px: int = PATCH_PX,
    zoom_out: float = 1,
) -> int:
    """Writes a scene of any size with its footprints and items; returns the number of footprints.

    The image is a tiled RGBA GeoTIFF (WEBP, BigTIFF if needed). It has no overviews, since they would read it again.
    Alpha is 0 in a border along two sides, as in `draw_scene`.

    Args:
        area_folder: parent of the scene's folders.
        site: the scene.
        rng: random generator; the same state gives the same bytes.
        advance: called after each patch.
        patch_px: side of a patch; a multiple of 512, or a smaller multiple of 16.
        zoom_out: drawn pixels of 0.075 m per pixel of the scene; more than 1 makes houses smaller and more numerous.
    """
    height, width = site.height_px, site.width_px
    border = border_steps(rng, height, width)
    crs, pixel_to_m = georeference(site)
    path = image_path(area_folder, site)
    path.parent.mkdir(parents=True, exist_ok=True)
    block_px = min(BLOCK_PX, patch_px)
    profile = {
        "driver": "GTiff", "height": height, "width": width, "count": 4, "dtype": "uint8", "crs": crs,
        "transform": pixel_to_m, "tiled": True, "blockxsize": block_px, "blockysize": block_px, "photometric": "RGB",
        "interleave": "pixel", "compress": "WEBP", "webp_level": WEBP_QUALITY, "bigtiff": "IF_SAFER",
        "num_threads": "ALL_CPUS",
    }  # fmt: skip
    footprints: list[Polygons] = []
    with rasterio.open(path, "w", **profile) as raster:
        raster.colorinterp = COLOURS
        for top, left, patch in lay_patches(rng, site, patch_px, zoom_out):
            rows, cols = min(patch_px, height - top), min(patch_px, width - left)
            window = ((top, top + rows), (left, left + cols))
            raster.write(_bands(patch.image[:rows, :cols], border, top, left), window=window)
            inside = _clipped(patch.footprints, rows, cols)
            footprints.append(shapely.transform(inside, lambda xy, at=(left, top): xy + at))
            advance()
    polygons = np.concatenate(footprints)
    write_scene_items(area_folder, site, is_cog=False)
    _write_footprints(footprints_path(area_folder, site), site.scene, _degrees(polygons, crs, pixel_to_m))
    return len(polygons)


def _bands(image: npt.NDArray[np.uint8], border: npt.NDArray[np.uint8], top: int, left: int) -> npt.NDArray[np.uint8]:
    """Returns an image and its alpha, (4, h, w), black in the scene's border, which is given as (H / 16, W / 16)."""
    height, width, _ = image.shape
    first = top // BORDER_STEP_PX, left // BORDER_STEP_PX
    steps = border[first[0] :, first[1] :][: ceil(height / BORDER_STEP_PX), : ceil(width / BORDER_STEP_PX)]
    alpha = steps.repeat(BORDER_STEP_PX, axis=0).repeat(BORDER_STEP_PX, axis=1)[:height, :width]
    return np.stack([*(image[..., band] & alpha for band in range(3)), alpha])


def _degrees(polygons: Polygons, crs: str, pixel_to_m: Affine) -> Polygons:
    """Returns polygons in pixels as EPSG:4326, rounded to 0.1 mm."""
    to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform

    def place(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
        east, north = pixel_to_m.a * x + pixel_to_m.c, pixel_to_m.e * y + pixel_to_m.f
        return [np.round(degrees, 9) for degrees in to_degrees(east, north)]

    placed: Polygons = shapely.transform(polygons, place, interleaved=False)
    return placed


def _write_footprints(path: Path, name: str, polygons: Polygons) -> None:
    """Writes polygons in EPSG:4326 as GeoJSON, one feature per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head, properties = json.dumps({"type": "FeatureCollection", "name": name})[:-1], json.dumps(BUILDING)
    features = (
        f'{{"type": "Feature", "properties": {properties}, "geometry": {geometry}}}'
        for geometry in shapely.to_geojson(polygons)
    )
    path.write_text(f'{head}, "features": [\n' + ",\n".join(features) + "\n]}\n")
