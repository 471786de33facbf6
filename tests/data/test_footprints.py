import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from factories import MERCATOR, UTM, write_footprints
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine

from kit.data.burning import draw_layers, draw_mask, margin_px
from kit.data.footprints import Footprints, read_footprints
from kit.data.grids import Grid, ground_m
from kit.errors import FootprintError

PIXEL = 0.5


def test_broken_crs_member_is_ignored(tmp_path: Path):
    file = tmp_path / "a.geojson"
    write_footprints(file, [shapely.box(32.0, 0.0, 32.1, 0.1)])
    content = json.loads(file.read_text()) | {"crs": {"type": "name", "properties": {"name": "urn:nonsense"}}}
    file.write_text(json.dumps(content))
    found = read_footprints((str(file),), "EPSG:4326")
    assert found.polygons[0].bounds == (32.0, 0.0, 32.1, 0.1)


def test_invalid_rings_are_repaired_and_empty_ones_counted(tmp_path: Path):
    file = tmp_path / "a.geojson"
    bow_tie = shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])
    write_footprints(file, [bow_tie, shapely.box(2, 2, 3, 3)])
    content = json.loads(file.read_text())
    content["features"].append({"type": "Feature", "properties": {}, "geometry": None})
    file.write_text(json.dumps(content))
    found = read_footprints((str(file),), "EPSG:4326")
    assert (len(found.polygons), found.repaired, found.dropped) == (2, 1, 1)
    assert shapely.is_valid(found.polygons).all()


def test_a_file_without_features_is_a_scene_without_buildings(tmp_path: Path):
    found = read_footprints(write_geojson(tmp_path / "a.geojson", []), UTM, outline=shapely.box(0, 0, 1, 1))
    assert (len(found.polygons), found.dropped, found.far, found.surround) == (0, 0, 0, True)


DEEP = '{"type": "FeatureCollection", "features": [' + '{"a":' * 100_000


@pytest.mark.parametrize("content", ["no json at all", "", DEEP], ids=["text", "empty", "deep"])
@pytest.mark.parametrize("name", ["a.geojson", "a.gpkg", "a.shp", "a.fgb"])
def test_what_cannot_be_read_is_an_error(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(FootprintError, match=f"footprints .*{name} cannot be read"):
        read_footprints((str(tmp_path / name),), "EPSG:4326")


def write_geojson(path: Path, geometries: list[dict | None], crs: object = None) -> tuple[str]:
    """Writes geometries in GeoJSON's own words, with a `crs` member where there is one to write."""
    features = [{"type": "Feature", "properties": {}, "geometry": geometry} for geometry in geometries]
    member = {} if crs is None else {"crs": {"type": "name", "properties": {"name": crs}}}
    path.write_text(json.dumps({"type": "FeatureCollection", **member, "features": features}))
    return (str(path),)


def square(x: float, y: float, side: float = 1, **more) -> dict:
    return shapely.geometry.mapping(shapely.box(x, y, x + side, y + side)) | more


def write_layer(path: Path, polygons: list, crs: str | None = UTM, kind: str = "Polygon", **options) -> tuple[str]:
    wkb = shapely.to_wkb(np.array(polygons, object))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")
        pyogrio.raw.write(path, wkb, [np.arange(len(wkb))], ["number"], geometry_type=kind, crs=crs, **options)
    return (str(path),)


IN_UTM = shapely.box(450_000, 30_000, 450_010, 30_010)


@pytest.mark.parametrize("name", ["a.gpkg", "a.shp", "a.fgb", "a.geojson"])
def test_every_format_is_projected_from_its_own_crs(tmp_path: Path, name: str):
    degrees = shapely.transform(
        IN_UTM, pyproj.Transformer.from_crs(UTM, "EPSG:4326", always_xy=True).transform, interleaved=False
    )
    is_geojson = name.endswith("json")
    files = write_layer(tmp_path / name, [degrees if is_geojson else IN_UTM], "EPSG:4326" if is_geojson else UTM)
    for crs in (UTM, MERCATOR):
        expected = Footprints(np.array([IN_UTM]), UTM).to(crs).polygons[0]
        (found,) = read_footprints(files, crs).polygons
        assert shapely.hausdorff_distance(found, expected) < 0.01  # m; GeoJSON keeps 7 digits


@pytest.mark.parametrize("crs", [None, "urn:nonsense", "EPSG:32636", 7], ids=str)
def test_geojson_that_can_be_degrees_is_degrees(tmp_path: Path, crs: object):
    found = read_footprints(write_geojson(tmp_path / "a.geojson", [square(32, 0)], crs), "EPSG:4326")
    assert found.polygons[0].bounds == (32, 0, 33, 1)


def test_geojson_in_metres_follows_its_crs_member(tmp_path: Path):
    files = write_geojson(tmp_path / "a.json", [square(450_000, 30_000, 10)], "urn:ogc:def:crs:EPSG::32636")
    assert read_footprints(files, UTM).polygons[0].bounds == IN_UTM.bounds


@pytest.mark.parametrize("crs", [None, "urn:nonsense", "EPSG:4326"], ids=str)
def test_geojson_in_unknown_metres_is_an_error(tmp_path: Path, crs: object):
    files = write_geojson(tmp_path / "a.geojson", [square(450_000, 30_000, 10)], crs)
    with pytest.raises(FootprintError, match=r"not in degrees \(bounds 450000, 30000, 450010, 30010\).*no projection"):
        read_footprints(files, UTM)


def test_a_stray_polygon_beyond_degrees_is_dropped(tmp_path: Path):
    files = write_geojson(tmp_path / "a.geojson", [square(32, 0), square(33, 2), square(200, 0)])
    found = read_footprints(files, MERCATOR)  # which would wrap it round the globe
    assert (len(found.polygons), found.dropped) == (2, 1)


def test_what_has_no_place_in_the_crs_is_dropped(tmp_path: Path):
    files = write_geojson(tmp_path / "a.geojson", [square(32, 0), square(122.5, -0.5)])
    found = read_footprints(files, UTM)  # which ends 90 degrees east of its meridian
    assert (len(found.polygons), found.dropped) == (1, 1)
    assert np.isfinite(shapely.get_coordinates(found.polygons)).all()


@pytest.mark.parametrize("name", ["a.gpkg", "a.shp", "a.fgb"])
def test_without_a_crs_one_is_asked_for(tmp_path: Path, name: str):
    files = write_layer(tmp_path / name, [shapely.box(32, 0, 33, 1)], crs=None)
    with pytest.raises(FootprintError, match="no coordinate system") as caught:
        read_footprints(files, UTM)
    assert ".prj" in caught.value.hint


def test_the_layer_with_polygons_is_read(tmp_path: Path):
    write_layer(tmp_path / "a.gpkg", [shapely.Point(0, 0)], kind="Point", layer="wells")
    write_layer(tmp_path / "a.gpkg", [IN_UTM, IN_UTM], kind="Unknown", layer="sketches", append=True)
    files = write_layer(tmp_path / "a.gpkg", [IN_UTM], layer="houses", append=True)
    assert len(read_footprints(files, UTM).polygons) == 1
    write_layer(tmp_path / "a.gpkg", [IN_UTM], layer="sheds", append=True)
    with pytest.raises(FootprintError, match="2 layers of polygons: houses, sheds") as caught:
        read_footprints(files, UTM)
    assert caught.value.hint == f"keep one: ogr2ogr one.gpkg {tmp_path}/a.gpkg houses"


def test_a_layer_of_any_kind_is_read_where_no_other_is_of_polygons(tmp_path: Path):
    write_layer(tmp_path / "a.gpkg", [shapely.Point(0, 0)], kind="Point", layer="wells")
    files = write_layer(tmp_path / "a.gpkg", [IN_UTM, shapely.Point(0, 0)], kind="Unknown", layer="all", append=True)
    found = read_footprints(files, UTM)
    assert (len(found.polygons), found.dropped) == (1, 1)


def ring(*corners: tuple) -> dict:
    return {"type": "Polygon", "coordinates": [corners]}


def collection(*parts: dict) -> dict:
    return {"type": "GeometryCollection", "geometries": list(parts)}


POINT = {"type": "Point", "coordinates": [0, 0]}
LINE = {"type": "LineString", "coordinates": [[0, 0], [9, 9]]}
TWO = {"type": "MultiPolygon", "coordinates": [square(4, 0)["coordinates"], square(6, 0)["coordinates"]]}


@pytest.mark.parametrize(
    ("geometry", "area"),
    [
        (TWO, 2),
        (collection(square(0, 0), POINT), 1),
        (collection(collection(TWO, LINE), collection(collection(square(0, 0)))), 3),
        (collection(square(0, 0), square(0.5, 0)), 1.5),  # they overlap, and become one
        (ring((0, 0), (1, 0), (1, 1), (0, 1)), 1),  # not closed
        (ring((0, 0), (2, 0), (2, 2), (0, 2), (0, 0), (1, 0), (1, 1), (0, 1), (0, 0)), 4),
        (ring((0, 0), (1, 1), (1, 0), (0, 1), (0, 0)), 0.5),  # a bow tie
        (ring((0, 0), (4, 0), (4, 4), (1, 4), (1, 2), (6, 2), (6, 6), (0, 6), (0, 0)), 32),  # crosses itself
        ({"type": "Polygon", "coordinates": [*square(0, 0, 4)["coordinates"], *square(3, 3, 3)["coordinates"]]}, 15),
        (ring((0, 0, 7), (1, 0, 7), (1, 1, 7), (0, 0, 7)), 0.5),
    ],
    ids=[
        *("two", "with a point", "nested", "overlapping", "open ring", "ring that doubles", "bow tie", "loop"),
        *("hole beyond", "heights"),
    ],
)
@pytest.mark.filterwarnings("ignore:Non closed ring detected")
def test_polygons_are_kept_however_they_come(tmp_path: Path, geometry: dict, area: float):
    found = read_footprints(write_geojson(tmp_path / "a.geojson", [geometry, square(20, 20)]), "EPSG:4326")
    assert (len(found.polygons), found.dropped) == (2, 0)
    assert found.polygons[0].area == pytest.approx(area)
    assert shapely.is_valid(found.polygons).all()
    assert set(shapely.get_type_id(found.polygons)) <= {3, 6}
    assert not shapely.has_z(found.polygons).any()


@pytest.mark.parametrize(
    "geometry",
    [None, POINT, LINE, collection(), collection(POINT, collection(LINE)), {"type": "Polygon", "coordinates": []},
     ring((0, 0), (1, 1), (2, 2), (0, 0)), ring((0, 0), (1, float("nan")), (1, 1), (0, 0))],
    ids=["null", "point", "line", "empty collection", "no polygons", "empty polygon", "collapsed", "nan"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_is_no_polygon_is_dropped_and_counted(tmp_path: Path, geometry: dict | None):
    found = read_footprints(write_geojson(tmp_path / "a.geojson", [geometry, square(20, 20)]), "EPSG:4326")
    assert (len(found.polygons), found.dropped, found.repaired) == (1, 1, 0)


def test_the_files_of_a_scene_are_read_together(tmp_path: Path):
    first = write_geojson(tmp_path / "a.geojson", [square(32, 0), None])
    second = write_layer(tmp_path / "b.gpkg", [shapely.box(33, 1, 34, 2)], "EPSG:4326")
    found = read_footprints(first + second, "EPSG:4326")
    assert (len(found.polygons), found.dropped) == (2, 1)


coordinates = st.integers(0, 6).map(float)
rings = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9)


@settings(max_examples=60, deadline=None)
@given(st.lists(rings, min_size=1, max_size=4))
def test_whatever_the_rings_polygons_are_valid(tmp_path_factory: pytest.TempPathFactory, drawn: list):
    geometries = [ring(*corners, corners[0]) for corners in drawn]
    files = write_geojson(tmp_path_factory.mktemp("rings") / "a.geojson", [*geometries, square(20, 20)])
    found = read_footprints(files, "EPSG:4326")
    assert len(found.polygons) + found.dropped == len(drawn) + 1
    assert shapely.is_valid(found.polygons).all()
    assert (shapely.area(found.polygons) > 0).all()


@given(st.floats(5, 30), st.floats(5, 30), st.floats(4, 18), st.floats(4, 18), st.floats(0, 90))
def test_mask_area_is_polygon_area(x: float, y: float, width: float, height: float, angle: float):
    polygon = shapely.affinity.rotate(shapely.box(x, y, x + width, y + height), angle)
    transform = Affine(PIXEL, 0, -20, 0, -PIXEL, 80)
    mask = draw_mask(np.array([polygon]), transform, (200, 200), np.ones((200, 200), bool))
    # pixel centres: the error is at most about half a pixel along the outline
    assert abs(mask.sum() * PIXEL**2 - polygon.area) <= 0.5 * PIXEL * polygon.length


def test_no_data_wins_over_buildings():
    valid = np.ones((4, 4), bool)
    valid[0] = False
    mask = draw_mask(np.array([shapely.box(0, 0, 4, 4)]), Affine(1, 0, 0, 0, -1, 4), (4, 4), valid)
    assert (mask[0] == 255).all()
    assert (mask[1:] == 1).all()


def layers_of(polygons: list, left: int = 0, width: int = 96, height: int = 96, **options) -> np.ndarray:
    """Draws the layers of the tile whose left edge is at column `left`, given what its caller would find around it."""
    margin = margin_px(PIXEL, **options) * PIXEL
    bounds = (left * PIXEL - margin, -margin, (left + width) * PIXEL + margin, height * PIXEL + margin)
    found = Footprints(np.array(polygons, object), UTM).touching(bounds)
    transform = Affine(PIXEL, 0, left * PIXEL, 0, -PIXEL, height * PIXEL)
    return draw_layers(found, transform, (height, width), np.ones((height, width), bool), PIXEL, **options)


def test_a_tile_without_footprints_has_empty_layers():
    layers = layers_of([])
    assert (layers.shape, layers.dtype, layers.any()) == ((3, 96, 96), np.uint8, False)


@pytest.mark.parametrize(("boundary_px", "width_px"), [(1, 0), (3, 1), (5, 2), (7, 3)])
def test_touching_footprints_keep_a_ring_each(boundary_px: int, width_px: int):
    _, boundary, _ = layers_of([shapely.box(10, 10, 20, 20), shapely.box(20, 10, 30, 20)], boundary_px=boundary_px)
    expected = np.zeros((96, 96), np.uint8)
    for left in (20, 40):  # 20 x 20 px each
        expected[56:76, left : left + 20] = 1
        expected[56 + width_px : 76 - width_px, left + width_px : left + 20 - width_px] = 0
    np.testing.assert_array_equal(boundary, expected)


COURTYARD = shapely.box(14, 14, 26, 26) - shapely.box(18, 18, 22, 22)
TURNED = shapely.affinity.rotate(shapely.box(30, 30, 42, 38), 33)
PARTS = shapely.MultiPolygon([shapely.box(2, 2, 6, 8), shapely.box(7, 2, 11, 8)])
ACROSS = shapely.box(40, 10, 60, 20)  # the tile ends at 48
THIN = shapely.box(2, 30, 25, 31.5)


def test_ring_is_what_an_erosion_of_each_footprint_removes():
    polygons = [COURTYARD, TURNED, PARTS, ACROSS, THIN]
    expected = np.zeros((128, 128), bool)
    for polygon in polygons:
        alone = draw_mask(
            np.array([polygon]), Affine(PIXEL, 0, -8, 0, -PIXEL, 56), (128, 128), np.ones((128, 128), bool)
        )
        expected |= (alone == 1) & (cv2.erode(alone, np.ones((5, 5), np.uint8)) == 0)
    np.testing.assert_array_equal(layers_of(polygons)[1], expected[16:112, 16:112])


@pytest.mark.parametrize(("gap_m", "touches"), [(4, True), (9.5, True), (11, False)])
@pytest.mark.parametrize("north_m", [0, 6_660_000], ids=["equator", "60 degrees north"])
@pytest.mark.parametrize("crs", [UTM, MERCATOR])
@pytest.mark.parametrize("beyond", [False, True], ids=["both inside", "one beyond the tile"])
def test_contact_is_within_five_metres_on_the_ground(
    gap_m: float, touches: bool, north_m: float, crs: str, beyond: bool
):
    """The squares are laid out in UTM, at its central meridian, where a metre is a metre."""
    x, y = 500_000.0, north_m
    squares = Footprints(
        np.array([shapely.box(x - 10, y, x, y + 10), shapely.box(x + gap_m, y, x + gap_m + 10, y + 10)]), UTM
    ).to(crs)
    left, top = pyproj.Transformer.from_crs(UTM, crs, always_xy=True).transform(x - 20, y + 20)
    pixel = 0.2 if crs == UTM or not north_m else 0.4
    side_px = 100 if beyond else 200  # 20 m: the second square begins where the tile ends, or later
    grid = Grid(crs, pixel, pixel, left, top, side_px)
    gsd_m = ground_m(grid, 0, 0)
    found = squares.touching(grid.bounds(0, 0, margin_px(gsd_m)))
    assert len(found) == (1 if beyond and gap_m > 5 else 2)
    valid = np.ones((side_px, side_px), bool)
    _, _, contact = draw_layers(found, grid.transform(0, 0), valid.shape, valid, gsd_m)
    assert contact.any() == (touches and not (beyond and gap_m > 5))
    if touches and not beyond:  # as wide as the squares' reaches overlap
        columns = np.nonzero(contact.any(0))[0]
        assert gsd_m * (columns[-1] - columns[0] + 1) == pytest.approx(10 - gap_m, abs=2 * gsd_m)


eighths = st.integers(-40, 440).map(lambda eighth: eighth / 8)  # exact however a tile is shifted
sides = st.integers(12, 120).map(lambda eighth: eighth / 8)
turned_boxes = st.builds(
    lambda x, y, width, height, angle: shapely.affinity.rotate(shapely.box(x, y, x + width, y + height), angle),
    eighths, eighths, sides, sides, st.integers(0, 89),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.lists(turned_boxes, max_size=6))
def test_layers_are_what_they_are_called(polygons: list):
    footprint, boundary, contact = layers_of(polygons)
    transform = Affine(PIXEL, 0, 0, 0, -PIXEL, 48)
    np.testing.assert_array_equal(
        footprint, draw_mask(np.array(polygons, object), transform, (96, 96), np.ones((96, 96), bool))
    )
    assert not (boundary & ~footprint).any()
    assert not (contact & footprint).any()
    x, y = transform @ (np.arange(96) + 0.5, np.arange(96) + 0.5)
    centres = shapely.points(*np.meshgrid(x, y))
    near, nearer = np.zeros((2, 96, 96), int)
    for polygon in polygons:
        distance = shapely.distance(polygon, centres)
        near += distance <= 5.001
        nearer += distance <= 4.97  # a buffer's round corners are polygons: up to 2.4 cm short
    assert not (contact > (near >= 2)).any()
    assert not (((nearer >= 2) & (footprint == 0)) > contact).any()


@settings(max_examples=25, deadline=None)
@given(st.lists(turned_boxes, max_size=6), st.integers(1, 95))
def test_a_tile_cut_in_two_is_the_whole(polygons: list, at: int):
    halves = layers_of(polygons, width=at), layers_of(polygons, left=at, width=96 - at)
    np.testing.assert_array_equal(np.concatenate(halves, axis=2), layers_of(polygons))


def test_no_data_wins_in_every_layer():
    valid = np.ones((8, 8), bool)
    valid[:, 4:] = False
    layers = draw_layers(np.array([shapely.box(-99, -99, 99, 99)]), Affine(1, 0, 0, 0, -1, 8), (8, 8), valid, 1.0)
    assert (layers[:, :, 4:] == 255).all()
    assert (layers[0, :, :4] == 1).all()
    assert not layers[1:, :, :4].any()  # where the imagery ends, no footprint does
