import json
import struct
import warnings
from pathlib import Path

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from factories import MERCATOR, UTM

import kit.data.vectors
from kit.data.footprints import Footprints, read_footprints, repaired_polygons
from kit.data.vectors import read_all
from kit.errors import FootprintError

HERE = shapely.box(450_000, 30_000, 450_100, 30_100)  # a scene in UTM
NORTH, SOUTH = "EPSG:32660", "EPSG:32760"  # UTM's last zone, which ends at 180 degrees


def in_degrees(polygon: shapely.Polygon, crs: str = UTM) -> shapely.Polygon:
    change = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    return shapely.transform(polygon, change.transform, interleaved=False)


def write(path: Path, geometries: list, crs: str | None = "EPSG:4326", **fields: list) -> tuple[str]:
    """Writes geometries (shapely's, or WKB) with fields of text, of any kind of file."""
    wkb = [geometry if isinstance(geometry, bytes) else shapely.to_wkb(geometry) for geometry in geometries]
    names, values = list(fields) or ["n"], [np.array(v, object) for v in fields.values()] or [np.arange(len(wkb))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")
        pyogrio.raw.write(path, np.array(wkb, object), values, names, geometry_type="Unknown", crs=crs)
    return (str(path),)


def around(polygon: shapely.Polygon, count: int) -> list[shapely.Polygon]:
    """Returns small squares all over the world, and one in the middle of a polygon in UTM."""
    random = np.random.default_rng(0)
    squares = [shapely.box(x, y, x + 1e-4, y + 1e-4) for x, y in random.uniform((-179, -80), (179, 80), (count, 2))]
    return [*squares, in_degrees(shapely.buffer(polygon.centroid, 5, quad_segs=1))]


@pytest.mark.parametrize("name", ["a.geojson", "a.gpkg", "a.fgb"])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("crs", [UTM, MERCATOR, "EPSG:4326"])
def test_labels_of_the_world_beside_a_small_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, large: bool, crs: str
):
    files = write(tmp_path / name, around(HERE, 500))
    if large:
        monkeypatch.setattr(kit.data.vectors, "LARGE_BYTES", 0)
        monkeypatch.setattr(kit.data.vectors, "LARGE_FEATURES", 0)
    outline = Footprints(np.array([HERE]), UTM).to(crs).polygons[0]
    found = read_footprints(files, crs, outline=outline)
    assert (len(found.polygons), found.far, found.dropped, found.surround) == (1, 500, 0, True)
    assert outline.contains(found.polygons[0])


@pytest.mark.parametrize("large", [False, True])
def test_labels_elsewhere_do_not_surround_a_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool):
    monkeypatch.setattr(kit.data.vectors, "LARGE_BYTES", 0 if large else 1 << 20)
    there = shapely.affinity.translate(HERE, 5000)
    found = read_footprints(write(tmp_path / "a.geojson", [in_degrees(there)]), UTM, outline=HERE)
    assert (len(found.polygons), found.far, found.surround) == (0, 1, False)
    ring = [in_degrees(shapely.affinity.translate(HERE, x)) for x in (-5000, 5000)]
    assert read_footprints(write(tmp_path / "b.geojson", ring), UTM, outline=HERE).surround


AT_180 = pyproj.Transformer.from_crs(4326, SOUTH, always_xy=True).transform(180, -17.5)
ACROSS = shapely.box(AT_180[0] - 60, AT_180[1] - 60, AT_180[0] + 60, AT_180[1] + 60)  # a scene across 180 degrees
WEST, EAST = (shapely.box(AT_180[0] + x, AT_180[1] - 5, AT_180[0] + x + 10, AT_180[1] + 5) for x in (-40, 30))
ON_IT = shapely.box(AT_180[0] - 5, AT_180[1] - 5, AT_180[0] + 5, AT_180[1] + 5)


def numbered(polygon: shapely.Polygon, way: str) -> list[shapely.Polygon]:
    """Returns a polygon in degrees as different tools write it where it crosses 180 degrees."""
    x, y = shapely.get_coordinates(in_degrees(polygon, SOUTH)).T
    x = np.where(x < 0, x + 360, x)
    whole = shapely.Polygon(np.stack([x, y], 1))
    if way == "counted on":
        return [whole]
    if way == "torn":
        return [shapely.Polygon(np.stack([np.where(x > 180, x - 360, x), y], 1))]
    parts = [whole & shapely.box(170, -90, 180, 90), whole & shapely.box(180, -90, 190, 90)]
    parts[1] = shapely.affinity.translate(parts[1], -360)
    return [part for part in parts if not part.is_empty]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", ["a.geojson", "a.gpkg"])
@pytest.mark.parametrize("way", ["counted on", "torn", "cut"])
@pytest.mark.parametrize("crs", [SOUTH, "EPSG:4326", "EPSG:3832"])
def test_labels_across_180_degrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crs: str, way: str, name: str, large: bool
):
    if large:
        monkeypatch.setattr(kit.data.vectors, "LARGE_BYTES", 0)
        monkeypatch.setattr(kit.data.vectors, "LARGE_FEATURES", 0)
    polygons = [part for polygon in (WEST, EAST, ON_IT) for part in numbered(polygon, way)]
    files = write(tmp_path / name, [*polygons, shapely.box(10, -17.6, 10.1, -17.4)])
    (outline,) = numbered(ACROSS, "counted on") if crs == "EPSG:4326" else [
        Footprints(np.array([ACROSS]), SOUTH).to(crs).polygons[0]
    ]  # fmt: skip
    found = read_footprints(files, crs, outline=outline)
    assert found.far == 1
    assert outline.contains(shapely.union_all(found.polygons))
    expected = sum(polygon.area for polygon in (WEST, EAST, ON_IT)) / ACROSS.area
    assert shapely.area(found.polygons).sum() / outline.area == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("way", ["counted on", "torn", "cut"])
def test_labels_at_180_degrees_do_not_reach_around_the_world(tmp_path: Path, way: str):
    """In web mercator a polygon across 180 degrees has its ends on both sides of the map."""
    files = write(tmp_path / "a.geojson", numbered(ON_IT, way))
    beside = Footprints(np.array([WEST]), SOUTH).to(MERCATOR).polygons[0]
    far_away = shapely.box(0, beside.bounds[1], 100, beside.bounds[3])
    for outline, touches in ((beside, False), (far_away, False), (shapely.buffer(beside, 50), True)):
        here, _ = read_footprints(files, MERCATOR, outline=outline).on(outline)
        assert bool(len(here.polygons)) == touches


def wkb(kind: int, *parts: bytes) -> bytes:
    return struct.pack("<BII", 1, kind, len(parts)) + b"".join(parts)


def points(*places: tuple[float, float]) -> bytes:
    return b"".join(struct.pack("<dd", *place) for place in places)


CIRCLE = struct.pack("<BII", 1, 8, 5) + points((0, 0), (1, 1), (2, 0), (1, -1), (0, 0))
TRIANGLE = struct.pack("<BIII", 1, 17, 1, 4) + points((0, 0), (1, 0), (1, 1), (0, 0))


@pytest.mark.parametrize("geometry", [wkb(10, CIRCLE), wkb(12, wkb(10, CIRCLE))], ids=["curve", "multisurface"])
def test_curves_become_polygons(tmp_path: Path, geometry: bytes):
    (found,) = read_footprints(write(tmp_path / "a.gpkg", [geometry]), "EPSG:4326").polygons
    assert found.area == pytest.approx(np.pi, rel=1e-3)


@pytest.mark.parametrize("geometry", [TRIANGLE, wkb(16, TRIANGLE)], ids=["triangle", "tin"])
def test_surfaces_that_are_not_read_are_named(tmp_path: Path, geometry: bytes):
    with pytest.raises(FootprintError, match="hold surfaces of triangles or faces") as caught:
        read_footprints(write(tmp_path / "a.gpkg", [geometry]), "EPSG:4326")
    assert "MULTIPOLYGON" in caught.value.hint


def test_points_and_lines_alone_are_refused(tmp_path: Path):
    shapes = [shapely.Point(0, 0), shapely.MultiPoint([(0, 0), (1, 1)]), shapely.LineString([(0, 0), (1, 1)]), None]
    with pytest.raises(FootprintError, match=r"a\.gpkg hold 1 lines and 2 points, no polygons"):
        read_footprints(write(tmp_path / "a.gpkg", shapes), "EPSG:4326")


SQUARES = [shapely.box(n, 0, n + 0.5, 1) for n in range(3)]


@pytest.mark.parametrize("name", ["a.geojson", "a.gpkg", "a.fgb", "a.shp"])
def test_several_classes_in_one_file(tmp_path: Path, name: str):
    files = write(tmp_path / name, SQUARES, Kind=["building", "road", "road"], ref=["a", "b", "c"])
    found = read_footprints(files, "EPSG:4326")
    assert len(found.polygons) == 3
    (notice,) = found.notices
    assert notice.endswith("its field Kind holds road (2), building (1): choose with --where \"Kind = 'building'\"")
    chosen = read_footprints(files, "EPSG:4326", "Kind = 'building'")
    assert (len(chosen.polygons), chosen.notices) == (1, ())
    assert len(read_footprints(files, "EPSG:4326", "Kind IN ('road', 'path') AND ref <> 'b'").polygons) == 1
    assert len(read_footprints(files, "EPSG:4326", "Kind = 'tree'").polygons) == 0
    with pytest.raises(FootprintError, match=r"a\..*: --where \"Colour = 'red'\" cannot be applied") as caught:
        read_footprints(files, "EPSG:4326", "Colour = 'red'")
    assert "Kind, ref" in caught.value.hint


@pytest.mark.parametrize("fields", [{"kind": ["house"] * 3}, {"name": ["a", "b", "c"]}, {"kind": [None] * 3}, {}])
def test_one_class_or_none_needs_no_notice(tmp_path: Path, fields: dict[str, list]):
    assert read_footprints(write(tmp_path / "a.geojson", SQUARES, **fields), "EPSG:4326").notices == ()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "cp1251"])
@pytest.mark.parametrize("declared", ["", "ISO-8859-1", "UTF-8", "nonsense"])
def test_shapefiles_of_every_encoding(tmp_path: Path, encoding: str, declared: str):
    files = write(tmp_path / "a.shp", SQUARES, kind=["building", "xxxx", "xxxx"])
    table = tmp_path / "a.dbf"
    table.write_bytes(table.read_bytes().replace(b"xxxx", "дом".encode(encoding)[:4].ljust(4) if encoding != "latin-1"
                                                 else "Süd!".encode(encoding)))  # fmt: skip
    (tmp_path / "a.cpg").unlink(missing_ok=True)
    if declared:
        (tmp_path / "a.cpg").write_text(declared)
    assert len(read_footprints(files, "EPSG:4326").polygons) == 3
    if declared == "UTF-8" != encoding.upper():
        return
    assert len(read_footprints(files, "EPSG:4326", "kind = 'building'").polygons) == 1


LOCAL = 'LOCAL_CS["plan",UNIT["metre",1]]'


def test_labels_without_a_real_crs(tmp_path: Path):
    files = write(tmp_path / "a.gpkg", SQUARES, crs=LOCAL)
    with pytest.raises(FootprintError, match=r"a\.gpkg and their scene cannot be projected") as caught:
        read_footprints(files, UTM)
    assert "-a_srs" in caught.value.hint


def test_labels_in_an_archive(tmp_path: Path):
    import zipfile

    write(tmp_path / "a.shp", SQUARES)
    with zipfile.ZipFile(tmp_path / "a b.zip", "w") as archive:
        for file in tmp_path.glob("a.*"):
            archive.write(file, f"in/{file.name}")
    assert len(read_footprints((f"/vsizip/{tmp_path}/a b.zip/in/a.shp",), "EPSG:4326").polygons) == 3


def test_a_geojson_of_one_feature_or_geometry(tmp_path: Path):
    square = shapely.geometry.mapping(SQUARES[0])
    for content in (square, {"type": "Feature", "properties": None, "geometry": square}):
        (tmp_path / "a.geojson").write_text(json.dumps(content))
        assert len(read_footprints((str(tmp_path / "a.geojson"),), "EPSG:4326").polygons) == 1


@pytest.mark.parametrize("name", ["a.geojson", "a.gpkg", "a.fgb", "a.shp", "a.dbf", "a.prj"])
def test_no_damaged_file_is_a_fault_of_kit(tmp_path: Path, name: str):
    suffix = Path(name).suffix
    files = write(tmp_path / ("a.shp" if suffix in (".dbf", ".prj") else name), SQUARES, kind=["a", "b", "c"])
    random = np.random.default_rng(0)
    whole = (tmp_path / name).read_bytes()
    refused = 0
    for _ in range(40):
        content = bytearray(whole)
        at = int(random.integers(len(whole)))
        content[at : at + int(random.integers(5))] = random.bytes(int(random.integers(5)))
        (tmp_path / name).write_bytes(content if random.random() < 0.7 else content[:at])
        try:
            read_footprints(files, "EPSG:3857", outline=shapely.box(0, 0, 1e6, 1e6))
        except FootprintError:
            refused += 1
        try:
            read_all(*files)
        except FootprintError:
            refused += 1
    assert refused


@pytest.mark.parametrize("name", ["a.geojson", "a.gpkg", "a.fgb"])
@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_all_polygons_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int):
    """A file of any size is read as a small one is, whatever the batches."""
    bow = shapely.Polygon([(32, 0), (32.001, 0.001), (32.001, 0), (32, 0.001)])
    collection = shapely.GeometryCollection([shapely.Point(1, 1), bow])
    crs = "EPSG:4326"
    files = write(tmp_path / name, [*around(HERE, 5), bow, shapely.Point(2, 2), collection], crs)
    whole = read_footprints(files, crs)
    monkeypatch.setattr(kit.data.vectors, "BATCH", size)
    monkeypatch.setattr(kit.data.vectors, "BLOCK", max(1, size // 2))
    stored = read_all(files[0])
    assert len(stored) == len(whole.polygons) + whole.dropped == 9
    polygons, repaired = repaired_polygons(stored[np.arange(len(stored))])
    assert (repaired, len(polygons)) == (whole.repaired, 8) == (2, 8)
    assert shapely.equals_exact(polygons, whole.polygons).all()


def test_all_polygons_of_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kit.data.vectors, "BATCH", 2)
    for content, message in (([shapely.Point(1, 1)] * 3, "3 points, no polygons"), ([HERE] * 3, "not in degrees")):
        with pytest.raises(FootprintError, match=message):
            read_all(*write(tmp_path / "a.geojson", content))
    strays = [shapely.box(0, 0, 1, 1), shapely.box(1, 0, 2, 1), HERE]
    stored = read_all(*write(tmp_path / "b.geojson", strays))
    assert shapely.is_missing(stored[np.arange(3)]).tolist() == [False, False, True]  # a stray that is no degree
