"""Tier 2 of the sample: the damage is what `damage.json` says, nothing else is changed."""

import hashlib
import json
import math
import shutil

import numpy as np
import pystac
import pytest
import rasterio
import shapely
from rasterio.warp import transform_geom
from shapely.affinity import translate
from shapely.geometry import box, shape

from kit.sample.damage import CLEAR_M, MAX_SHIFT_M, write_tier_2_scene
from kit.sample.sample import draw_sample
from kit.sample.sites import AREAS, TIER_2, TIER_2_AREAS, georeference

SITE = TIER_2[2]
SMALL = 8  # divides the sides: a sample of a second or two


@pytest.fixture(scope="module")
def tier_2(tmp_path_factory):
    """Returns the folder of one scene and its damage."""
    folder = tmp_path_factory.mktemp("tier2")
    return folder, write_tier_2_scene((folder, SITE, (0, 7), 1250))


def features(path):
    """Returns a file's outlines by id, metres of the scene's CRS."""
    crs, _ = georeference(SITE)
    content = json.loads(path.read_text())
    assert all(feature["id"] == feature["properties"]["id"] for feature in content["features"])
    return {f["id"]: shape(transform_geom("EPSG:4326", crs, f["geometry"])) for f in content["features"]}


@pytest.fixture(scope="module")
def truth_and_labels(tier_2):
    folder, _ = tier_2
    truth = features(folder / "true_footprints" / f"{SITE.scene}.geojson")
    return truth, features(folder / SITE.area / f"{SITE.scene}-labels" / f"{SITE.scene}.geojson")


def iou(one, other):
    return one.intersection(other).area / one.union(other).area


def test_blocks_are_squares_of_100_m_on_the_scene(tier_2):
    folder, blocks = tier_2
    with rasterio.open(folder / SITE.area / SITE.scene / f"{SITE.scene}.tif") as raster:
        scene, crs = box(*raster.bounds), raster.crs
        assert (raster.read(4) == 255).all()
    squares = [box(*block.bounds) for block in blocks]
    assert len(blocks) * len(TIER_2) >= 30
    assert all(rasterio.crs.CRS.from_user_input(block.crs) == crs for block in blocks)
    np.testing.assert_allclose([square.bounds[2] - square.bounds[0] for square in squares], 100)
    np.testing.assert_allclose([square.bounds[3] - square.bounds[1] for square in squares], 100)
    assert scene.symmetric_difference(shapely.union_all(squares)).area < 1e-3


def test_every_label_is_accounted_for(tier_2, truth_and_labels):
    truth, labels = truth_and_labels
    gone, merged, invented = set(), {}, set()
    for block in tier_2[1]:
        gone |= set(block.missing)
        invented |= set(block.invented)
        for name in block.merged:
            first, _, second = name.partition("+")
            merged[name] = first, f"{first.rpartition('-')[0]}-{second}"
    assert all((gone, merged, invented))
    parts = {part for pair in merged.values() for part in pair}
    assert not gone & parts
    assert set(labels) == (set(truth) - gone - parts) | set(merged) | invented


def test_labels_are_moved_by_the_shift_of_their_block(tier_2, truth_and_labels):
    truth, labels = truth_and_labels
    near = set()
    for block in tier_2[1]:
        assert math.hypot(block.dx_m, block.dy_m) <= MAX_SHIFT_M + 0.001
        square = box(*block.bounds)
        for name in set(truth) & set(labels):
            if square.contains(truth[name].centroid):
                moved = translate(truth[name], block.dx_m, block.dy_m)
                assert iou(moved, labels[name]) > 0.995
                near.add(name)
    assert len(near) > 60


def test_invented_labels_stand_clear_of_buildings_and_merged_ones_hold_two(tier_2, truth_and_labels):
    truth, labels = truth_and_labels
    houses = list(truth.values())
    for block in tier_2[1]:
        for name in block.invented:
            invented = translate(labels[name], -block.dx_m, -block.dy_m)
            assert box(*block.bounds).contains(invented)
            assert shapely.distance(invented, houses).min() > CLEAR_M * 0.99
        for name in block.merged:
            hull = translate(labels[name], -block.dx_m, -block.dy_m)
            first, _, second = name.partition("+")
            for part in (first, f"{SITE.scene}-{second}"):
                assert iou(hull.intersection(truth[part]), truth[part]) > 0.99


def test_the_sample_holds_tier_2_as_a_catalogue(tmp_path):
    folder = draw_sample(tmp_path / "sample", shrink=SMALL) / "train_tier_2"
    catalog = pystac.Catalog.from_file(str(folder / "catalog.json"))
    assert catalog.id == "train_tier_2"
    assert {area.id for area in catalog.get_children()} == set(TIER_2_AREAS)
    assert not set(TIER_2_AREAS) & set(AREAS)
    assert len(list(catalog.get_items(recursive=True))) == 2 * len(TIER_2)
    blocks = json.loads((folder / "damage.json").read_text())["blocks"]
    assert len({block["block"] for block in blocks}) == len(blocks) == 6 * len(TIER_2)
    keys = {"block", "bounds", "crs", "dx_m", "dy_m", "missing", "invented", "merged"}
    assert all(keys <= set(block) for block in blocks)


def test_a_sample_without_tier_2_gains_it_and_keeps_its_files(tmp_path):
    out = draw_sample(tmp_path / "sample", shrink=SMALL)

    def checksums():
        files = sorted(path for path in out.rglob("*") if path.is_file())
        return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    whole = checksums()
    shutil.rmtree(out / "train_tier_2")
    assert len(checksums()) < len(whole)
    assert draw_sample(out, shrink=SMALL) == out
    assert checksums() == whole
