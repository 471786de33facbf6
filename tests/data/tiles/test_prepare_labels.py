"""Scenes with labels of every kind, cut as a whole."""

import zipfile
from pathlib import Path

import pandas as pd
import pyproj
import pytest
import rasterio
import shapely
from factories import prepare, write_catalog, write_footprints, write_scene
from rasterio.transform import Affine

from kit.errors import CutError, FootprintError
from kit.paths import Paths

LOCAL = 'LOCAL_CS["plan",UNIT["metre",1]]'
NATIVE = {"grid": "native", "side_px": 64}


def write_city(root: Path, *names: str, **options: object) -> Path:
    """Writes scenes with footprints of the same names, apart from each other."""
    for seed, name in enumerate(names):
        write_footprints(root / f"{name}.geojson", write_scene(root / f"{name}.tif", seed=seed, **options))
    return root


def relocate(file: Path, crs: str) -> None:
    """Gives a raster another coordinate system."""
    with rasterio.open(file) as source:
        pixels, profile = source.read(), source.profile
    with rasterio.open(file, "w", **{**profile, "crs": rasterio.crs.CRS.from_wkt(crs)}) as target:
        target.write(pixels)


def test_one_scene_without_a_real_crs_stops_no_other(tmp_path: Path):
    city = write_city(tmp_path / "city", "a", "b", "plan")
    relocate(city / "plan.tif", LOCAL)
    with pytest.raises(CutError, match=r"1 of 3 scenes .* first city/plan: the coordinate system of .* has no place"):
        prepare(city, Paths(tmp_path), **NATIVE)
    (failed,) = pd.read_csv(tmp_path / "data/city/failed.csv").itertuples()
    assert (failed.tile, "LOCAL_CS" in failed.reason) == ("city/plan", True)
    assert "gdal_edit.py -a_srs" in failed.hint
    assert set(pd.read_csv(tmp_path / "data/city/index.csv")["scene"]) == {"a", "b"}


def test_the_causes_own_hint_reaches_the_user(tmp_path: Path):
    city = write_city(tmp_path / "city", "plan")
    relocate(city / "plan.tif", LOCAL)
    with pytest.raises(CutError, match="no scene could be cut") as caught:
        prepare(city, Paths(tmp_path), **NATIVE)
    assert caught.value.hint == "assign the real one: gdal_edit.py -a_srs EPSG:..."


def test_a_scene_without_buildings_is_background(tmp_path: Path):
    city = write_city(tmp_path / "city", "a", "bare")
    write_footprints(city / "bare.geojson", [])
    made = prepare(city, Paths(tmp_path), **NATIVE)
    assert made.notices == ["1 of 2 scenes have no footprints and are kept as background, first city/bare"]
    rows = made.index[made.index["scene"] == "bare"]
    assert len(rows)
    assert not rows["building_fraction"].any()
    again = prepare(city, Paths(tmp_path), **NATIVE)
    assert (again.kept, again.notices) == (2, made.notices)


def test_labels_of_a_city_without_any_in_a_scene(tmp_path: Path):
    """The same file labels all scenes; b lies between the others."""
    polygons = {}
    for seed, name in enumerate("abc"):
        polygons[name] = write_scene(tmp_path / "scenes" / f"{name}.tif", seed=seed)
    write_footprints(tmp_path / "city.geojson", polygons["a"] + polygons["c"])
    rows = [f"scenes/{name}.tif,city.geojson,{name}" for name in "abc"]
    (tmp_path / "list.csv").write_text("\n".join(["image,labels,scene", *rows]))
    made = prepare(tmp_path / "list.csv", Paths(tmp_path), **NATIVE)
    assert made.notices == ["1 of 3 scenes have no footprints and are kept as background, first list/b"]
    assert [record.counts["beyond"] for record in made.scenes] == [3, 6, 3]


def test_no_footprint_in_any_scene_is_an_error(tmp_path: Path):
    city = write_city(tmp_path / "city", "a", "b")
    for name in "ab":
        write_footprints(city / f"{name}.geojson", [])
    with pytest.raises(FootprintError, match="none of the 2 scenes has a footprint, first city/a"):
        prepare(city, Paths(tmp_path), **NATIVE)


def test_a_condition_chooses_labels_and_cuts_again(tmp_path: Path):
    city = write_city(tmp_path / "city", "a")
    text = (city / "a.geojson").read_text()
    for kind in ("building", "road"):
        text = text.replace('"properties": {}', f'"properties": {{"kind": "{kind}"}}', 1)
    (city / "a.geojson").write_text(text)
    made = prepare(city, Paths(tmp_path), **NATIVE)
    assert ["field kind holds building (1), road (1)" in notice for notice in made.notices] == [True]
    assert made.scenes[0].counts["used"] == 3
    chosen = prepare(city, Paths(tmp_path), where="kind = 'building'", **NATIVE)
    assert (chosen.kept, chosen.notices, chosen.scenes[0].counts["used"]) == (0, [], 1)
    assert prepare(city, Paths(tmp_path), where="kind = 'building'", **NATIVE).kept == 1
    assert prepare(city, Paths(tmp_path), **NATIVE).kept == 0


def test_names_of_every_script(tmp_path: Path):
    city = write_city(tmp_path / "市", "東区", "Süd", "Ольга")
    made = prepare(city, Paths(tmp_path), **NATIVE)
    assert made.name == "市"
    assert set(made.index["scene"]) == {"東区", "Süd", "Ольга"}
    assert all((tmp_path / "data/市" / file).is_file() for file in made.index["mask"])


@pytest.mark.parametrize(("grid", "fits"), [("z19", False), ("native", True), ("0.5m", True)])
def test_a_scene_across_180_degrees(tmp_path: Path, grid: str, fits: bool):
    """Tiles of web mercator end there: without a word a row of them would reach around the world."""
    crs = "EPSG:32760"
    x, y = pyproj.Transformer.from_crs(4326, crs, always_xy=True).transform(180, -17.5)
    city = write_city(tmp_path / "fiji", "a")
    with rasterio.open(city / "a.tif") as source:
        pixels, profile = source.read(), source.profile
    with rasterio.open(
        city / "a.tif", "w", **{**profile, "crs": crs, "transform": Affine(1, 0, x - 48, 0, -1, y)}
    ) as f:
        f.write(pixels)
    back = pyproj.Transformer.from_crs(crs, 4326, always_xy=True).transform
    write_footprints(
        city / "a.geojson", [shapely.transform(shapely.box(x - 9, y - 30, x + 9, y - 10), back, interleaved=False)]
    )
    if not fits:
        with pytest.raises(CutError, match="lies across 180 degrees, where the tiles of --grid z19 end"):
            prepare(city, Paths(tmp_path), grid=grid, side_px=64)
        return
    made = prepare(city, Paths(tmp_path), grid=grid, side_px=64, by="scene")
    assert made.scenes[0].counts["used"] == 1
    px = made.index["valid_fraction"] * made.index["width_px"] * made.index["height_px"] * made.index["gsd_m"] ** 2
    assert (px * made.index["building_fraction"]).sum() == pytest.approx(18 * 20, rel=0.02)


def test_a_scene_of_a_wrong_scale_is_not_cut_into_millions_of_tiles(tmp_path: Path):
    city = write_city(tmp_path / "city", "a", "b")
    with rasterio.open(city / "b.tif", "r+") as scene:
        scene.transform = scene.transform @ Affine.scale(100_000)
    with pytest.raises(CutError, match=r"1 of 2 scenes .*b\.tif covers [\d,]+ tiles of --grid z19") as error:
        prepare(city, Paths(tmp_path), side_px=64)
    assert "is its georeference right?" in error.value.hint


def test_a_catalogue_of_pipes_and_vrts_is_refused(tmp_path: Path):
    root = write_catalog(tmp_path / "c", {"kam": {"a": {}}})
    (root / "kam/a/a.tif").write_text("<VRTDataset><SourceFilename>/etc/passwd</SourceFilename></VRTDataset>")
    with pytest.raises(Exception, match="is a VRT that reads"):
        prepare(root, Paths(tmp_path), **NATIVE)


def test_damaged_settings_are_written_again(tmp_path: Path):
    city = write_city(tmp_path / "city", "a")
    prepare(city, Paths(tmp_path), **NATIVE)
    settings = tmp_path / "data/city/settings.json"
    whole = settings.read_bytes()
    for content in (b"[]", b"{", b'{"a": ' * 100_000, b"\xff", whole[:-9]):
        settings.write_bytes(content)
        assert prepare(city, Paths(tmp_path), **NATIVE).kept == 1
        assert settings.read_bytes() == whole


def test_scenes_and_labels_in_an_archive(tmp_path: Path):
    city = write_city(tmp_path / "city", "a")
    with zipfile.ZipFile(tmp_path / "my city.zip", "w") as archive:
        for file in city.iterdir():
            archive.write(file, f"in/{file.name}")
    inside = f"/vsizip/{tmp_path}/my city.zip/in"
    (tmp_path / "list.csv").write_text(f"image,labels\n{inside}/a.tif,{inside}/a.geojson\n")
    made = prepare(tmp_path / "list.csv", Paths(tmp_path), **NATIVE)
    assert made.scenes[0].counts["used"] == 3
    assert prepare(tmp_path / "list.csv", Paths(tmp_path), **NATIVE).kept == 1
    (tmp_path / "my city.zip").touch()
    assert prepare(tmp_path / "list.csv", Paths(tmp_path), **NATIVE).kept == 0
