import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from factories import UTM, at_kampala

from kit.deploy.mapping import layers
from kit.deploy.mapping.layers import FORMATS, Layer, check_format, scene_code
from kit.deploy.mapping.polygons import Buildings
from kit.deploy.mapping.scene import Frame
from kit.errors import KitError

ABOUT = {"SOURCE": "city.tif", "WEIGHTS_SHA256": "ab" * 32}
KINDS = [kind for kind in FORMATS if kind != "parquet" or find_spec("pyarrow")]
FRAME = Frame(200, 150, at_kampala(UTM, 0.5), pyproj.CRS(UTM).to_wkt(), 0.5, 0.5)


def houses(count: int, top: int = 0) -> Buildings:
    boxes = [shapely.box(10 * i, top, 10 * i + 8, top + 6) for i in range(count)]
    anchors = np.array([(top, 10 * i, 0) for i in range(count)], np.int64).reshape(-1, 3)
    return Buildings(np.array([*boxes, None], dtype=object)[:-1], np.linspace(0.5, 1, count), anchors)


def written(folder: Path, kind: str, *parts: Buildings) -> Path:
    with Layer(folder / "m", FORMATS[kind], FRAME, ABOUT) as layer:
        for part in parts:
            layer.add(part)
    return layer.path


def parquet(path: Path) -> tuple[Any, dict[str, Any]]:
    """Returns the table of a GeoParquet file and its metadata `geo`."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        metadata = file.metadata.metadata
        return file.read().replace_schema_metadata(metadata), json.loads(metadata[b"geo"])


@pytest.mark.parametrize(("kind", "crs"), [("gpkg", UTM), ("geojson", "EPSG:4326")])
def test_buildings_are_read_as_by_other_programs(tmp_path: Path, kind: str, crs: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "BATCH", 4)
    path = written(tmp_path, kind, houses(3), houses(3, 20), houses(2, 40))
    assert path == tmp_path / f"m.{kind}"
    info = pyogrio.read_info(path)
    assert (info["features"], info["crs"], info["geometry_type"]) == (8, crs, "Polygon")
    assert list(info["fields"]) == ["id", "area_m2", "confidence"]
    meta, _, geometry, (ids, areas, confidence) = pyogrio.raw.read(path)
    code = scene_code(FRAME)
    assert ids.tolist() == [f"{code}-{top}-{10 * i}" for top, count in ((0, 3), (20, 3), (40, 2)) for i in range(count)]
    assert areas.tolist() == pytest.approx([48 * 0.25] * 8, rel=2e-3)
    assert confidence.tolist() == [0.5, 0.75, 1, 0.5, 0.75, 1, 0.5, 1]
    polygons = shapely.from_wkb(geometry)
    assert shapely.is_valid(polygons).all()
    back = pyproj.Transformer.from_crs(meta["crs"], UTM, always_xy=True)
    first = shapely.transform(polygons[:1], back.transform, interleaved=False)[0]
    (left, top), (right, bottom) = FRAME.transform @ (0, 0), FRAME.transform @ (8, 6)
    assert first.bounds == pytest.approx((left, bottom, right, top), abs=1e-3)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", KINDS)
def test_no_buildings_are_an_empty_layer(tmp_path: Path, kind: str):
    path = written(tmp_path, kind, houses(0))
    if kind == "parquet":
        table, geo = parquet(path)
        assert (table.num_rows, table.schema.names[0]) == (0, "id")
        assert "bbox" not in geo["columns"]["geometry"]
        return
    info = pyogrio.read_info(path, force_feature_count=True)
    assert info["features"] == 0
    if kind == "gpkg":
        assert list(info["fields"]) == ["id", "area_m2", "confidence"]
        assert info["geometry_type"] == "Polygon"


@pytest.mark.parametrize("kind", KINDS)
def test_equal_buildings_are_equal_bytes(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "BATCH", 2)
    first = written(tmp_path / "a", kind, houses(3), houses(2, 50)) if (tmp_path / "a").mkdir() is None else None
    (tmp_path / "b").mkdir()
    assert first.read_bytes() == written(tmp_path / "b", kind, houses(3), houses(2, 50)).read_bytes()


def test_geojson_is_as_its_standard_wants_it(tmp_path: Path):
    found = json.loads(written(tmp_path, "geojson", houses(2)).read_text())
    assert "crs" not in found
    assert [feature["properties"]["confidence"] for feature in found["features"]] == [0.5, 1.0]
    ring = found["features"][0]["geometry"]["coordinates"][0]
    assert shapely.LinearRing(ring).is_ccw
    assert ring[0] == pytest.approx([32.5945, 0.3505], abs=1e-3)
    assert all(len(repr(number).split(".")[1]) <= 8 for point in ring for number in point)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unfinished_layer_is_no_layer(tmp_path: Path, kind: str):
    written(tmp_path, kind, houses(1))
    before = (tmp_path / f"m.{kind}").read_bytes()
    with pytest.raises(KeyboardInterrupt), Layer(tmp_path / "m", FORMATS[kind], FRAME, ABOUT) as layer:
        layer.add(houses(2))
        raise KeyboardInterrupt
    assert (tmp_path / f"m.{kind}").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_cannot_be_written(tmp_path: Path, kind: str):
    with pytest.raises(KitError, match=r"cannot write .*/gone/m\."):
        written(tmp_path / "gone", kind, houses(1))


def test_unknown_format():
    with pytest.raises(KitError, match="no format 'shp', expected gpkg, geojson, fgb, parquet"):
        check_format("shp")


def test_flatgeobuf_holds_what_a_geopackage_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its features are in the order of its spatial index."""
    monkeypatch.setattr(layers, "BATCH", 4)
    parts = houses(3), houses(3, 20), houses(2, 40)
    (_, _, geometry, fields), (_, _, expected, cells) = (
        pyogrio.raw.read(written(tmp_path, kind, *parts)) for kind in ("fgb", "gpkg")
    )
    info = pyogrio.read_info(tmp_path / "m.fgb")
    assert (info["driver"], info["crs"], info["layer_name"]) == ("FlatGeobuf", UTM, "buildings")
    assert sorted(zip(geometry, *fields, strict=True)) == sorted(zip(expected, *cells, strict=True))
    assert {file.name for file in tmp_path.iterdir()} == {"m.fgb", "m.gpkg"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_says_what_it_was_made_from(tmp_path: Path, kind: str):
    path = written(tmp_path, kind, houses(2))
    if kind == "geojson":
        assert json.loads(path.read_text())["metadata"] == ABOUT
    elif kind == "parquet":
        metadata = parquet(path)[0].schema.metadata
        assert {name: metadata[name.encode()].decode() for name in ABOUT} == ABOUT
    else:
        assert pyogrio.read_info(path)["layer_metadata"] == ABOUT


def test_ids_name_the_scene_and_a_pixel(tmp_path: Path):
    moved = replace(FRAME, transform=FRAME.transform @ Affine.translation(1, 0))
    codes = {scene_code(FRAME), scene_code(moved), scene_code(replace(FRAME, width=201))}
    assert len(codes) == 3
    assert scene_code(FRAME) == scene_code(replace(FRAME, crs=rasterio.crs.CRS.from_string(UTM).to_wkt()))
    parts = Buildings(houses(2).polygons, np.ones(2), np.array([(7, 9, 0), (7, 9, 1)]))
    found = json.loads(written(tmp_path, "geojson", parts).read_text())["features"]
    assert [each["properties"]["id"] for each in found] == [f"{scene_code(FRAME)}-7-9", f"{scene_code(FRAME)}-7-9-2"]


def test_geoparquet_holds_what_a_geopackage_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(layers, "BATCH", 4)
    parts = houses(3), houses(3, 20), houses(2, 40)
    table, geo = parquet(written(tmp_path, "parquet", *parts))
    _, _, expected, cells = pyogrio.raw.read(written(tmp_path, "gpkg", *parts))
    rows = table.to_pydict()
    polygons = shapely.from_wkb(np.array(rows["geometry"], dtype=object))
    assert shapely.equals_exact(polygons, shapely.from_wkb(expected)).all()
    assert [rows["id"], rows["area_m2"], rows["confidence"]] == [column.tolist() for column in cells]
    assert [tuple(box.values()) for box in rows["bbox"]] == list(map(tuple, shapely.bounds(polygons).tolist()))
    column = geo["columns"][geo["primary_column"]]
    assert (geo["version"], column["encoding"], column["geometry_types"]) == ("1.1.0", "WKB", ["Polygon"])
    assert pyproj.CRS.from_json_dict(column["crs"]) == pyproj.CRS(UTM)
    assert column["bbox"] == shapely.total_bounds(polygons).tolist()
    assert column["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]


def test_geoparquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "find_spec", lambda name: None)
    with pytest.raises(KitError, match="GeoParquet needs pyarrow") as error:
        check_format("parquet")
    assert "pip install pyarrow" in str(error.value.hint)
