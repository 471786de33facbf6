"""Tier 2 of the sample city: scenes whose labels are damaged block by block, with a record of the damage.

In each block of 100 m all labels are moved by 0 to 3 m, and some buildings are missing, invented, or merged with a
neighbour into one outline.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import shapely
from affine import Affine
from shapely import Polygon
from shapely.affinity import affine_transform, rotate, translate
from shapely.geometry import box

from kit.sample.city_files import as_geojson, write_json, write_scene
from kit.sample.drawing import draw_scene
from kit.sample.sites import TIER_2_AREAS, Site, georeference

__all__ = ["DamagedBlock", "ScenePlace", "damage_labels", "write_tier_2_scene"]

MAX_SHIFT_M = 3.0
MISSING, MERGED = 0.25, 0.2  # the largest share of a block's buildings, and of its close pairs
MAX_INVENTED = 5  # in a block
CLOSE_M = 5.0  # buildings nearer than this may be merged
INVENTED_M = (5.0, 14.0)  # shortest and longest side of an invented building
CLEAR_M = 2.0  # between an invented building and any other
TRIES = 50  # places drawn for an invented building before it is left out


@dataclass
class DamagedBlock:
    """The damage of one block."""

    block: str  # id, `AREA/SCENE/rROW_cCOLUMN`, counted from the scene's upper left corner
    bounds: list[float]  # left, bottom, right, top, metres of `crs`
    crs: str  # of the scene
    dx_m: float  # how far its labels were moved to the east
    dy_m: float  # how far they were moved to the north
    missing: list[str] = field(default_factory=list)  # ids of true footprints that have no label
    invented: list[str] = field(default_factory=list)  # ids of labels where there is no building
    merged: list[str] = field(default_factory=list)  # ids of labels that join two buildings, such as `dar_a-7+8`


@dataclass(frozen=True)
class ScenePlace:
    """Where a scene whose labels are damaged lies."""

    area: str
    scene: str
    crs: str
    pixel_to_crs: Affine
    height_px: int
    width_px: int
    gsd_m: float  # metres on the ground per pixel


def write_tier_2_scene(job: tuple[Path, Site, tuple[int, int], int]) -> list[DamagedBlock]:
    """Draws a scene, damages its labels and writes it below the catalogue; returns the damage.

    Its true footprints go to `true_footprints/SCENE.geojson`, under the ids that the damage refers to.

    Args:
        job: the catalogue's folder, what to draw, the seed of drawing and damage, and the side of a block, px.
    """
    folder, site, seed, block_px = job
    rng = np.random.default_rng(seed)
    drawing = draw_scene(rng, TIER_2_AREAS[site.area].look, site.height_px, site.width_px, border=False)
    truth = {f"{site.scene}-{number}": house.outline for number, house in enumerate(drawing.plan.houses)}
    place = ScenePlace(site.area, site.scene, *georeference(site), site.height_px, site.width_px, site.gsd_m)
    labels, blocks = damage_labels(rng, place, truth, block_px)
    write_scene(folder / site.area, site, drawing.image, as_geojson(site, labels.values(), list(labels)))
    write_json(folder / "true_footprints" / f"{site.scene}.geojson", as_geojson(site, truth.values(), list(truth)))
    return blocks


def damage_labels(
    rng: np.random.Generator, place: ScenePlace, truth: dict[str, Polygon], block_px: int
) -> tuple[dict[str, Polygon], list[DamagedBlock]]:
    """Returns damaged outlines by id, px, and the damage of each block.

    A building belongs to the block of its centroid. Those that the scene's edge cuts are only moved.

    Args:
        rng: in the same state, the same damage.
        place: of the scene.
        truth: outlines by id, px.
        block_px: side of a block; the last one of a row or column takes the remainder, too.
    """
    frame = box(0, 0, place.width_px, place.height_px)
    ids, outlines = np.array(list(truth)), np.array([*truth.values(), None], dtype=object)[:-1]
    inside = shapely.covered_by(outlines, frame)
    rows, cols = max(1, place.height_px // block_px), max(1, place.width_px // block_px)
    middles = shapely.get_coordinates(shapely.centroid(outlines)).reshape(-1, 2) // block_px
    places = np.clip(middles, 0, (cols - 1, rows - 1)).astype(int)
    labels: dict[str, Polygon] = {}
    blocks = []
    for row, col in np.ndindex(rows, cols):
        here = np.flatnonzero((places == (col, row)).all(1))
        far, angle = rng.uniform(0, MAX_SHIFT_M), rng.uniform(0, 2 * np.pi)
        square = box(
            col * block_px, row * block_px,
            place.width_px if col == cols - 1 else (col + 1) * block_px,
            place.height_px if row == rows - 1 else (row + 1) * block_px,
        )  # fmt: skip
        left, bottom, right, top = affine_transform(square, place.pixel_to_crs.to_shapely()).bounds
        block = DamagedBlock(
            f"{place.area}/{place.scene}/r{row}_c{col}",
            [round(value, 3) for value in (left, bottom, right, top)], place.crs,
            round(far * np.cos(angle), 3), round(far * np.sin(angle), 3),
        )  # fmt: skip
        kept = dict(zip(ids[here].tolist(), outlines[here], strict=True))
        sound = ids[here[inside[here]]].tolist()
        share = rng.uniform(0, MISSING)
        block.missing = [name for name in sound if rng.random() < share]
        for name in block.missing:
            del kept[name]
        _merge(rng, kept, [name for name in sound if name in kept], block, place.gsd_m)
        for number in range(int(rng.integers(MAX_INVENTED + 1))):
            others = [*outlines, *(kept[name] for name in block.invented)]
            invented = _invent(rng, square, others, place.gsd_m)
            if invented:
                block.invented.append(f"{place.scene}-r{row}c{col}x{number}")
                kept[block.invented[-1]] = invented
        for name, outline in kept.items():
            labels[name] = translate(outline, block.dx_m / place.gsd_m, -block.dy_m / place.gsd_m)
        blocks.append(block)
    return labels, blocks


def _merge(
    rng: np.random.Generator, kept: dict[str, Polygon], names: list[str], block: DamagedBlock, gsd_m: float
) -> None:
    """Replaces some pairs of close labels by the hull of both."""
    share = rng.uniform(0, MERGED)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            if first not in kept or second not in kept or kept[first].distance(kept[second]) * gsd_m > CLOSE_M:
                continue
            if rng.random() < share:
                hull = shapely.union(kept.pop(first), kept.pop(second)).convex_hull
                block.merged.append(f"{first}+{second.rpartition('-')[2]}")
                kept[block.merged[-1]] = hull


def _invent(rng: np.random.Generator, square: Polygon, others: Sequence[Polygon], gsd_m: float) -> Polygon | None:
    """Returns a rectangle within the square that keeps clear of the others, or None where none was drawn."""
    left, top, right, bottom = square.bounds
    for _ in range(TRIES):
        length, width = rng.uniform(*INVENTED_M, 2) / gsd_m
        x, y, turn = rng.uniform(left, right), rng.uniform(top, bottom), rng.uniform(0, 180)
        outline = translate(rotate(box(-length / 2, -width / 2, length / 2, width / 2), turn), x, y)
        if square.contains(outline) and (shapely.distance(outline, others) * gsd_m > CLEAR_M).all():
            return outline
    return None
