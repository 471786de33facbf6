"""A scene's damaged labels against a prediction that sees the truth."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from audit_city import BLOCK_M, EMPTY, SHIFTS_M, SIDE_PX, City, draw_city, placed, write_prediction
from factories import MERCATOR, UTM

from kit.audit.scene_audit import AuditSource, SceneFindings, audit_scene, edges
from kit.data.audits import moved_outlines


def audited(tmp_path: Path, city: City, crs: str = UTM, **changes: object) -> SceneFindings:
    raster = write_prediction(tmp_path / "scene.tif", city, crs=crs)
    source = AuditSource("town", "a", (str(city.folder / "a.geojson"),), "", raster, 0.5, BLOCK_M)
    return audit_scene(replace(source, **changes))


def iou(one: shapely.Polygon, other: shapely.Polygon) -> float:
    return float(one.intersection(other).area / one.union(other).area)


def test_damage_is_found(tmp_path: Path):
    city = draw_city(tmp_path)
    found = audited(tmp_path, city)
    for block in found.blocks:
        place = tuple(int(part[1:] if part[0] == "b" else part) for part in block.block.split("_")[-2:])
        if place == EMPTY:
            assert (block.buildings, block.trusted, block.reason) == (0, False, "no building")
        else:
            east, north = SHIFTS_M[place]
            assert block.trusted, block.reason
            assert math.hypot(block.dx_m + east, block.dy_m + north) < 0.15
    verdicts = Counter(row.verdict for row in found.buildings)
    assert verdicts["drop"] == len(city.invented)
    assert verdicts["add"] == len(city.missing)
    assert verdicts["shift"] + verdicts["keep"] == len(city.labels) - len(city.invented)
    dropped = [outline for row, outline in zip(found.buildings, found.outlines, strict=True) if row.verdict == "drop"]
    added = [outline for row, outline in zip(found.buildings, found.outlines, strict=True) if row.verdict == "add"]
    assert all(max(iou(each, other) for other in placed(city.invented)) > 0.95 for each in dropped)
    assert all(max(iou(each, other) for other in placed(city.missing)) > 0.8 for each in added)


def test_moved_labels_fit_the_truth(tmp_path: Path):
    city = draw_city(tmp_path)
    found = audited(tmp_path, city)
    moved = moved_outlines(found.buildings, found.outlines, found.crs)
    truth = shapely.STRtree(placed(city.truth))
    for row, outline in zip(found.buildings, moved, strict=True):
        if row.verdict in ("shift", "keep"):
            best = max(iou(outline, truth.geometries[place]) for place in truth.query(outline))
            assert best > 0.85, row


def test_metres_on_the_ground_in_mercator(tmp_path: Path):
    """A scene of web mercator at another latitude would shrink; at Kampala a pixel is nearly what it says."""
    city = draw_city(tmp_path, crs=MERCATOR)
    found = audited(tmp_path, city, MERCATOR)
    (first,) = [block for block in found.blocks if block.block.endswith("_b0_0")]
    assert (first.dx_m, first.dy_m) == pytest.approx((-2.0, 1.5), abs=0.15)


def test_a_turned_raster(tmp_path: Path):
    """Rows of pixels that run south: east and north are still those of the ground."""
    city = draw_city(tmp_path)
    raster = write_prediction(tmp_path / "plain.tif", city)
    with rasterio.open(raster) as source:
        bands, place = source.read(), source.transform
    turned = np.rot90(bands, 1, axes=(1, 2))  # counterclockwise: the first column is the last row's
    back = place @ Affine(0, -1, SIDE_PX, 1, 0, 0)
    with rasterio.open(
        tmp_path / "turned.tif", "w", driver="GTiff", width=SIDE_PX, height=SIDE_PX, count=3, dtype="uint8", crs=UTM,
        transform=back,
    ) as target:  # fmt: skip
        target.write(turned)
    found = audited(tmp_path, city, raster=tmp_path / "turned.tif")
    shifts = {tuple(np.round(SHIFTS_M[key], 1)) for key in SHIFTS_M}
    for block in found.blocks:
        if block.buildings:
            assert min(math.hypot(block.dx_m + x, block.dy_m + y) for x, y in shifts) < 0.15
    assert Counter(row.verdict for row in found.buildings)["drop"] == len(city.invented)


def test_labels_far_away_are_left_alone(tmp_path: Path):
    city = draw_city(tmp_path, far_m=6.5)
    found = audited(tmp_path, city)
    blocks = [block for block in found.blocks if block.buildings]
    assert not any(block.trusted for block in blocks)
    assert all(block.reason.startswith("not alignable") for block in blocks)
    assert not [row for row in found.buildings if row.verdict in ("shift", "drop")]
    assert all((row.dx_m, row.dy_m) == (0, 0) for row in found.buildings)


def test_what_the_members_disagree_about_is_ignored(tmp_path: Path):
    city = draw_city(tmp_path)
    raster = write_prediction(tmp_path / "unsure.tif", city, spread=0.4)
    found = audited(tmp_path, city, raster=raster)
    assert not [row for row in found.buildings if row.verdict in ("drop", "add")]


def test_a_scene_without_labels(tmp_path: Path):
    city = draw_city(tmp_path)
    (tmp_path / "none.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    found = audited(tmp_path, city, labels=(str(tmp_path / "none.geojson"),))
    assert {block.reason for block in found.blocks} == {"no building"}
    assert Counter(row.verdict for row in found.buildings) == {"add": len(city.truth)}


def test_nothing_predicted(tmp_path: Path):
    city = draw_city(tmp_path)
    raster = write_prediction(tmp_path / "dark.tif", replace(city, truth=[shapely.box(0, 0, 1, 1)]))
    found = audited(tmp_path, city, raster=raster)
    assert not any(block.trusted for block in found.blocks)
    assert {row.verdict for row in found.buildings} == {"ignore"}  # whether they are moved or invented is not known


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [(1000, 100, 10), (1040, 100, 10), (1099, 100, 11), (50, 100, 1), (100, 33.4, 3)],
)
def test_blocks_cover_an_axis_once(size: int, side: float, expected: int):
    found = edges(size, side)
    assert (found[0], found[-1], len(found) - 1) == (0, size, expected)
    assert all(later > earlier for earlier, later in pairwise(found))
