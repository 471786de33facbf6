"""The sample city: the challenge's layout, exact footprints, same seed same bytes, not to be solved by colour."""

import csv
import hashlib
import json
import math
import re
from collections import defaultdict
from dataclasses import replace

import cv2
import numpy as np
import pystac
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.features import rasterize
from rasterio.warp import transform, transform_geom
from shapely.geometry import shape

from kit.errors import DataError
from kit.sample import sample as sample_module
from kit.sample.drawing import draw_at, draw_scene
from kit.sample.sample import draw_sample
from kit.sample.sites import AREAS, CHIP_PX, TRAIN

SMALL = 8  # divides the sides: a sample of a second or two


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    return draw_sample(tmp_path_factory.mktemp("city") / "sample")


def scene_path(sample, site):
    return sample / "train_tier_1" / site.area / site.scene / f"{site.scene}.tif"


def footprints(sample, site):
    path = sample / "train_tier_1" / site.area / f"{site.scene}-labels" / f"{site.scene}.geojson"
    return [feature["geometry"] for feature in json.loads(path.read_text())["features"]]


def read(path):
    """Returns (H, W, bands) uint8."""
    with rasterio.open(path) as raster:
        return np.moveaxis(raster.read(), 0, -1)


def scene_and_mask(sample, site):
    """Returns a training scene (H, W, 4) and its footprints as (H, W) 0/1."""
    with rasterio.open(scene_path(sample, site)) as raster:
        roofs = [transform_geom("EPSG:4326", raster.crs, roof) for roof in footprints(sample, site)]
        mask = rasterize(roofs, out_shape=raster.shape, transform=raster.transform)
        return np.moveaxis(raster.read(), 0, -1), mask


def places(sample):
    with (sample / "test_labels" / "chips.csv").open() as file:
        return [(row["chip"], row["scene"], int(row["row"]), int(row["col"])) for row in csv.DictReader(file)]


def jaccard(one, other):
    return (one & other).sum() / (one | other).sum()


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_training_catalogue_has_the_challenges_layout(sample):
    catalog = pystac.Catalog.from_file(str(sample / "train_tier_1" / "catalog.json"))
    assert catalog.id == "train_tier_1"
    assert {area.id for area in catalog.get_children()} == set(AREAS)
    items = {item.id: item for item in catalog.get_items(recursive=True)}
    assert len(items) == 12
    for site in TRAIN:
        labels = items[f"{site.scene}-labels"]
        (source,) = labels.get_links("source")
        assert source.resolve_stac_object().target.id == site.scene
        for item, asset in ((items[site.scene], "image"), (labels, "labels")):
            assert item.collection_id == site.area
            with rasterio.open(items[site.scene].assets["image"].get_absolute_href()) as raster:
                corners = transform(raster.crs, "EPSG:4326", raster.bounds[::2], raster.bounds[1::2])
            assert item.bbox == pytest.approx([*(c[0] for c in corners), *(c[1] for c in corners)], abs=2e-5)
            assert item.assets[asset].get_absolute_href().endswith((".tif", ".geojson"))


@pytest.mark.parametrize("site", TRAIN, ids=lambda site: site.scene)
def test_scenes_are_utm_with_alpha_and_overviews(sample, site):
    with rasterio.open(scene_path(sample, site)) as raster:
        assert raster.crs.to_epsg() // 100 in (326, 327)
        assert raster.crs.to_epsg() == AREAS[site.area].epsg
        assert raster.colorinterp == (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
        assert raster.overviews(1)
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert raster.res == pytest.approx((0.075, 0.075), abs=0.002)
        image = np.moveaxis(raster.read(), 0, -1)
    alpha = image[..., 3]
    assert set(np.unique(alpha)) == {0, 255}
    assert 0.005 < (alpha == 0).mean() < 0.25
    assert image[alpha == 0][:, :3].mean() < 2  # black, but for what WEBP smears
    assert 1500 <= min(image.shape[:2]) <= max(image.shape[:2]) <= 2300


@pytest.mark.parametrize("site", TRAIN, ids=lambda site: site.scene)
def test_footprints_lie_on_their_scene(sample, site):
    image, mask = scene_and_mask(sample, site)
    roofs = [shape(roof) for roof in footprints(sample, site)]
    assert all(roof.is_valid and roof.geom_type == "Polygon" for roof in roofs)
    assert len({len(roof.exterior.coords) for roof in roofs}) > 1  # rectangles and L shapes
    assert 0.12 < mask[image[..., 3] == 255].mean() < 0.33


def test_rasterised_footprints_are_the_drawn_roofs(sample):
    for number in (0, 3, 5):  # one of each area
        site = TRAIN[number]
        rng = np.random.default_rng([0, number])
        drawing = draw_scene(rng, AREAS[site.area].look, site.height_px, site.width_px)
        image, mask = scene_and_mask(sample, site)
        seen = drawing.truth != 255
        np.testing.assert_array_equal(image[..., 3] == 255, seen)
        assert jaccard(drawing.truth[seen] == 1, mask[seen] == 1) > 0.999


def test_scenes_give_some_fifty_z19_tiles(sample):
    n_tiles = 0
    for site in TRAIN:
        with rasterio.open(scene_path(sample, site)) as raster:
            left, bottom, right, top = raster.bounds
            (west, east), (south, north) = transform(raster.crs, "EPSG:3857", [left, right], [bottom, top])
        tile_m = 2 * math.pi * 6378137 / 2**19
        columns = math.floor(east / tile_m) - math.floor(west / tile_m) + 1
        n_tiles += columns * (math.floor(north / tile_m) - math.floor(south / tile_m) + 1)
    assert 40 <= n_tiles <= 64


def test_chips_are_few_shuffled_and_without_place(sample):
    catalog = pystac.Catalog.from_file(str(sample / "test" / "catalog.json"))
    items = list(catalog.get_items())
    assert catalog.id == "test"
    assert 12 <= len(items) <= 16
    by_chip = {chip: (scene, row, col) for chip, scene, row, col in places(sample)}
    assert [item.id for item in items] == list(by_chip)
    assert list(by_chip.values()) != sorted(by_chip.values())
    for item in items:
        assert re.fullmatch("[0-9a-f]{6}", item.id)
        assert item.bbox == [0, 0, 0, 0]
        with rasterio.open(item.assets["image"].get_absolute_href()) as raster:
            assert raster.crs is None
            assert (raster.count, raster.height, raster.width) == (4, CHIP_PX, CHIP_PX)
            alpha = raster.read(4)
        with rasterio.open(sample / "test_labels" / f"{item.id}.tif") as raster:
            assert (raster.count, raster.dtypes, raster.compression.name) == (1, ("uint8",), "deflate")
            truth = raster.read(1)
        assert set(np.unique(truth)) <= {0, 1, 255}
        np.testing.assert_array_equal(truth == 255, alpha == 0)


def test_chips_tile_their_mosaics(sample):
    mosaics = defaultdict(dict)
    for chip, scene, row, col in places(sample):
        mosaics[scene][row, col] = read(sample / "test" / chip / f"{chip}.tif")[..., :3].astype(float)
    assert len(mosaics) == 2
    for chips in mosaics.values():
        rows, cols = (max(place[axis] for place in chips) + 1 for axis in (0, 1))
        assert set(chips) == set(np.ndindex(rows, cols))
        mosaic = np.concatenate([np.concatenate([chips[r, c] for c in range(cols)], 1) for r in range(rows)], 0)
        steps = np.abs(np.diff(mosaic, axis=1)).mean(axis=(0, 2))
        seams = steps[CHIP_PX - 1 :: CHIP_PX]
        assert (seams < 2 * np.median(steps)).all()  # neighbours continue each other


def test_test_mosaics_have_two_ground_resolutions(sample):
    sizes = defaultdict(list)
    with (sample / "test_labels" / "chips.csv").open() as file:
        for row in csv.DictReader(file):
            truth = read(sample / "test_labels" / f"{row['chip']}.tif")[..., 0]
            *_, stats, _ = cv2.connectedComponentsWithStats((truth == 1).astype(np.uint8))
            inside = (stats[1:, :2] > 0).all(1) & (stats[1:, :2] + stats[1:, 2:4] < CHIP_PX).all(1)
            sizes[row["scene"], float(row["gsd_m"])] += stats[1:, cv2.CC_STAT_AREA][inside].tolist()
    assert set(sizes) == {("kum_t", 0.075), ("lus_t", 0.12)}
    fine, coarse = (np.median(areas) * gsd_m**2 for (_, gsd_m), areas in sorted(sizes.items()))
    assert 0.6 < fine / coarse < 1.6  # m2: houses are as large; in px they would differ 2.6 times


@pytest.mark.parametrize("gsd_m", [0.075, 0.12, 0.05])
def test_a_scene_drawn_at_another_resolution_shows_the_same(gsd_m):
    height, width = 700, 600
    look = replace(AREAS["kum"].look, open_blocks=0)
    image, truth = draw_at(np.random.default_rng(4), look, height, width, gsd_m)
    drawn = draw_scene(np.random.default_rng(4), look, round(height * gsd_m / 0.075), round(width * gsd_m / 0.075))
    assert image.shape == (height, width, 4)
    assert set(np.unique(truth)) == {0, 1, 255}
    np.testing.assert_array_equal(truth == 255, image[..., 3] == 0)
    assert image[truth == 255].max() == 0
    again = cv2.resize(drawn.image, (width, height), interpolation=cv2.INTER_AREA)[..., :3].astype(float)
    assert np.abs(again - image[..., :3])[truth != 255].mean() < 3
    roofs = cv2.resize(drawn.truth, (width, height), interpolation=cv2.INTER_NEAREST)
    assert jaccard(truth == 1, roofs == 1) > 0.93


def test_is_small(sample):
    assert sum(path.stat().st_size for path in sample.rglob("*") if path.is_file()) < 40e6


def test_same_seed_same_bytes(tmp_path):
    one, again, other = (
        draw_sample(tmp_path / name, seed, shrink=SMALL) for name, seed in (("one", 7), ("again", 7), ("other", 8))
    )
    assert digest(one) == digest(again)
    assert digest(one) != digest(other)


def test_is_drawn_once_and_replaces_nothing(tmp_path, monkeypatch):
    out = draw_sample(tmp_path / "sample", shrink=SMALL)
    monkeypatch.setattr(sample_module, "draw_scene", None)  # drawing again would fail
    assert draw_sample(out, shrink=SMALL) == out
    with pytest.raises(DataError, match="is not the sample city of seed 1") as error:
        draw_sample(out, seed=1, shrink=SMALL)
    assert "kit sample --seed 1 --out sample-1" in error.value.hint


def test_leaves_a_foreign_folder_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not the sample city"):
        draw_sample(tmp_path, shrink=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_module, "write_train_catalog", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw_sample(tmp_path / "sample", shrink=SMALL)
    assert list(tmp_path.iterdir()) == []


def colours(image):
    """Returns (N, 6): RGB and HSV of each pixel."""
    rgb = np.ascontiguousarray(image[..., :3])
    return np.concatenate([rgb, cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)], axis=-1).reshape(-1, 6)


@pytest.mark.slow
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_colour_alone_does_not_find_the_buildings(sample, class_weight):
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(0)
    pixels, classes = [], []
    for site in TRAIN:
        image, mask = scene_and_mask(sample, site)
        chosen = rng.choice(np.flatnonzero(image[..., 3]), 10_000, replace=False)
        pixels.append(colours(image)[chosen])
        classes.append(mask.ravel()[chosen])
    forest = RandomForestClassifier(100, min_samples_leaf=5, class_weight=class_weight, random_state=0)
    forest.fit(np.concatenate(pixels), np.concatenate(classes))
    overlap = union = 0
    for chip, *_ in places(sample):
        truth = read(sample / "test_labels" / f"{chip}.tif")[::6, ::6, 0].ravel()
        found = forest.predict(colours(read(sample / "test" / chip / f"{chip}.tif")[::6, ::6])) == 1
        known = truth != 255
        overlap += (found & (truth == 1) & known).sum()
        union += ((found | (truth == 1)) & known).sum()
    assert overlap / union <= 0.45
