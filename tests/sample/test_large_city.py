"""Large scenes: mosaics of patches with footprints on what is drawn, holes at their outline alone, bounded memory."""

import hashlib
import json
import tracemalloc
from dataclasses import replace
from itertools import combinations

import cv2
import numpy as np
import pytest
import rasterio
import shapely
from drawn_city import draw_large_city
from factories import prepare
from rasterio.features import rasterize

from kit.data.footprints import read_footprints
from kit.data.sources.stac import read_scenes
from kit.errors import DataError
from kit.paths import Paths
from kit.sample import large_city
from kit.sample import sample as sample_module
from kit.sample.drawing import Drawing, draw_scene
from kit.sample.large_city import Patch, draw_patch
from kit.sample.sample import draw_sample
from kit.sample.sites import AREAS, TRAIN, georeference

PATCH_PX = 512
SIDE_PX = 1300  # three patches a side, the last ones cut off
SHRINK = 8


BUILT = replace(AREAS["kum"].look, open_blocks=0)  # houses everywhere


def drawn_in_white(rng, look, *arguments, **options):
    """Draws a scene full of roofs that are white on black, so that an image shows the truth."""
    drawing = draw_scene(rng, BUILT, *arguments, **options)
    image = drawing.image.copy()
    image[..., :3] = np.where(drawing.truth == 1, 255, 1)[..., None]
    return Drawing(image, drawing.truth, drawing.plan)


@pytest.fixture(scope="module", params=[1, 1.5], ids=["drawn", "zoomed out"])
def city(request, tmp_path_factory):
    """A scene of nine patches, of which three are drawn, in white: its image (4, H, W) and footprints, px."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(large_city, "draw_scene", drawn_in_white)
        patched.setattr(large_city, "PATCHES", 3)
        out = draw_large_city(
            tmp_path_factory.mktemp("large") / "city", SIDE_PX, 3, zoom_out=request.param, patch_px=PATCH_PX
        )
    _, (scene,) = read_scenes(out)
    with rasterio.open(scene.image) as raster:
        polygons = read_footprints(scene.labels, raster.crs.to_string()).polygons
        to_px = (~raster.transform).to_shapely()
        return raster.read(), np.array([shapely.affinity.affine_transform(polygon, to_px) for polygon in polygons])


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def scene_images(sample):
    return {site: sample / "train_tier_1" / site.area / site.scene / f"{site.scene}.tif" for site in TRAIN}


def test_footprints_lie_on_the_roofs_of_every_patch(city):
    image, footprints = city
    seen, roofs = image[3] == 255, image[0] > 127
    mask = rasterize(footprints, out_shape=seen.shape) > 0
    settled = 0
    for row, col in np.ndindex(3, 3):
        place = np.s_[row * PATCH_PX : (row + 1) * PATCH_PX, col * PATCH_PX : (col + 1) * PATCH_PX]
        settled += mask[place].mean() > 0.03
        assert (roofs != mask)[place][seen[place]].mean() < 0.002  # edges through a pixel, when zoomed out
    assert settled >= 6
    for axis in (0, 1):  # they would not a pixel aside
        assert (roofs != np.roll(mask, 1, axis))[seen].mean() > 4 * (roofs != mask)[seen].mean() + 0.001


@pytest.mark.parametrize("number", range(8))
def test_footprints_turn_with_their_patch(number):
    side = 640
    drawing = draw_scene(np.random.default_rng(4), BUILT, side, side, border=False)
    patch = draw_patch(np.random.default_rng(4), BUILT, side)
    view = Patch(np.dstack([patch.image, drawing.truth]), patch.footprints).view(number)
    mask = rasterize(view.footprints, out_shape=(side, side))
    assert mask.any()
    assert (mask != view.image[..., 3]).sum() <= 2  # an edge through the very centre of a pixel


def test_a_patch_has_eight_views():
    patch = Patch(np.arange(12, dtype=np.uint8).reshape(2, 2, 3), np.array([shapely.box(0, 0, 1, 0.5)]))
    views = [patch.view(number) for number in range(8)]
    assert len({view.image.tobytes() for view in views}) == 8
    assert len({view.footprints[0].normalize().wkt for view in views}) == 8


def test_footprints_are_clipped_to_their_patch_and_the_scene(city):
    _, footprints = city
    bounds = shapely.bounds(footprints)  # x0, y0, x1, y1
    slack = 0.01
    assert bounds.min() > -slack
    assert bounds.max() < SIDE_PX + slack
    np.testing.assert_array_equal((bounds[:, :2] + slack) // PATCH_PX, (bounds[:, 2:] - slack) // PATCH_PX)
    assert set(shapely.get_type_id(footprints)) == {shapely.GeometryType.POLYGON}
    assert shapely.is_valid(footprints).all()


def test_holes_are_at_the_outline_alone(city):
    (red, green, blue, alpha), _ = city
    hole = (alpha == 0).astype(np.uint8)
    assert set(np.unique(alpha)) == {0, 255}
    assert 0.005 < hole.mean() < 0.25
    assert max(band[alpha == 0].mean() for band in (red, green, blue)) < 2
    rim = np.ones_like(hole)
    rim[1:-1, 1:-1] = 0
    n_holes, numbers = cv2.connectedComponents(hole)
    assert set(np.unique(numbers[rim == 1])) | {0} == set(range(n_holes))
    blocks = hole[: SIDE_PX // 16 * 16, : SIDE_PX // 16 * 16].reshape(SIDE_PX // 16, 16, -1, 16)
    assert (blocks.min((1, 3)) == blocks.max((1, 3))).all()


def test_same_seed_same_bytes(tmp_path):
    drawn = [
        draw_large_city(tmp_path / name / "city", 300, seed, 2, patch_px=256)
        for name, seed in (("one", 7), ("again", 7), ("other", 8))
    ]
    one, again, other = map(digest, drawn)
    assert one == again
    assert one["kum/kum_0/kum_0.tif"] != one["kum/kum_1/kum_1.tif"] != other["kum/kum_1/kum_1.tif"]


def test_a_scene_is_never_whole_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(large_city, "PATCHES", 4)
    side = 1536
    tracemalloc.start()
    draw_large_city(tmp_path / "city", side, patch_px=128, zoom_out=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < side * side  # a quarter of its four bands


def test_a_large_city_is_cut_into_tiles(tmp_path):
    out = draw_large_city(tmp_path / "train_tier_1", 600, scenes=2, patch_px=PATCH_PX)
    made = prepare(out, Paths(tmp_path), grid="native", side_px=256, by="scene", k=2)
    assert made.name == "train_tier_1"
    assert list(made.index.groupby("scene").size()) == [9, 9]
    assert 0.1 < made.index["building_fraction"].mean() < 0.5
    _, scenes = read_scenes(out)
    with rasterio.open(scenes[0].image) as one, rasterio.open(scenes[1].image) as other:
        assert one.bounds.right < other.bounds.left
        assert one.block_shapes[0] == (PATCH_PX, PATCH_PX)
        assert one.compression.name == "webp"


def test_a_large_city_replaces_nothing_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="mine exists"):
        draw_large_city(tmp_path / "mine", 300)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(large_city, "_write_footprints", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw_large_city(tmp_path / "city", 300, patch_px=PATCH_PX)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("scale", [1, 2.5, 4, 1000])
def test_scaled_scenes_cover_more_and_do_not_overlap(scale):
    frames = {}
    for site in TRAIN:
        large = site.sized(scale=scale)
        assert large.height_px * large.width_px == pytest.approx(scale * site.height_px * site.width_px, rel=2e-3)
        assert large.gsd_m == site.gsd_m
        _, to_m = georeference(large)
        frames[site] = shapely.box(*(to_m @ (0, large.height_px)), *(to_m @ (large.width_px, 0)))
    for one, other in combinations(TRAIN, 2):
        if one.area == other.area:
            assert frames[one].distance(frames[other]) > 100


@pytest.fixture(scope="module")
def fourfold(tmp_path_factory):
    """A sample of scale 4."""
    return draw_sample(tmp_path_factory.mktemp("sample") / "sample", scale=4, shrink=SHRINK)


def test_a_scaled_sample_has_larger_scenes_and_the_same_chips(fourfold, tmp_path):
    small = draw_sample(tmp_path / "sample", shrink=SHRINK)
    for site, path in scene_images(fourfold).items():
        with rasterio.open(path) as large:
            assert large.shape == (2 * (site.height_px // SHRINK), 2 * (site.width_px // SHRINK))
            assert large.res == (site.gsd_m, site.gsd_m)
    _, scenes = read_scenes(fourfold / "train_tier_1")
    assert [(scene.area, scene.scene, scene.tier) for scene in scenes] == sorted(
        (site.area, site.scene, 1) for site in TRAIN
    )
    for part in ("test", "test_labels"):
        assert digest(fourfold / part) == digest(small / part)


def test_samples_of_two_scales_are_told_apart(fourfold, tmp_path, monkeypatch):
    small = draw_sample(tmp_path / "sample", shrink=SHRINK)
    assert json.loads((small / "sample.json").read_text()) == {"seed": 0, "version": 2, "shrink": SHRINK}
    monkeypatch.setattr(sample_module, "draw_scene", None)  # drawing again would fail
    assert draw_sample(small, scale=1.0, shrink=SHRINK) == small
    assert draw_sample(fourfold, scale=4, shrink=SHRINK) == fourfold
    with pytest.raises(DataError, match="is not the sample city of seed 0 and scale 4") as error:
        draw_sample(small, scale=4, shrink=SHRINK)
    assert "kit sample --seed 0 --scale 4 --out sample-0-x4" in error.value.hint
    with pytest.raises(DataError, match=r"is not the sample city of seed 0 \(version"):
        draw_sample(fourfold, shrink=SHRINK)


@pytest.mark.parametrize("scale", [0.5, 2000, float("nan")])
def test_a_scale_out_of_range(scale, tmp_path):
    with pytest.raises(DataError, match="is out of range"):
        draw_sample(tmp_path / "sample", scale=scale)
    assert not any(tmp_path.iterdir())


def test_the_command_takes_a_scale(cli, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(sample_module, "draw_sample", lambda *arguments: calls.append(arguments) or arguments[0])
    assert cli("sample", "--scale", 4, "--root", tmp_path)[0] == 0
    assert calls == [(tmp_path / "sample", 0, 4.0)]
    assert cli("sample", "--scale", 0.5, "--root", tmp_path)[0] == 2
