"""The scenes of a collection: catalogues, searches, folders, lists; their order, and those that are left out."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from factories import UTM, at_kampala, write_bands, write_catalog, write_scene
from web import serve

from kit.deploy.country.collection import default_name, is_collection, list_scenes, place_scenes
from kit.errors import CatalogError, KitError


def ids(collection: object) -> list[str]:
    return [scene.id for scene in collection.scenes]


def test_what_is_a_collection(tmp_path: Path):
    assert is_collection([str(tmp_path)])
    assert is_collection(["a.tif", "b.tif"])
    assert is_collection(["https://example.org/catalog.json"])
    assert is_collection(["https://example.org/api/search?collections=x"])
    assert is_collection(["list.txt"])
    assert not is_collection(["a.tif"])
    assert not is_collection(["https://example.org/a.tif"])
    assert default_name([str(tmp_path / "city" / "catalog.json")]) == "city"


def test_a_catalogue_a_folder_and_a_list_name_the_same_scenes(tmp_path: Path):
    catalog = write_catalog(tmp_path / "city", {"kam": {"a": {"seed": 1}, "b": {"seed": 2}}})
    assert [scene.id for scene in list_scenes([str(catalog)])] == ["kam/a", "kam/b"]
    by_folder = list_scenes([str(tmp_path / "city" / "kam")])
    (tmp_path / "list.txt").write_text("# mine\ncity/kam/a/a.tif\ncity/kam/b/b.tif\n")
    by_list = list_scenes([str(tmp_path / "list.txt")])
    assert [Path(scene.href).name for scene in by_list] == ["a.tif", "b.tif"]
    assert [Path(scene.href).name for scene in by_folder] == ["a.tif", "b.tif"]


def test_a_search_is_asked_for_its_scenes(tmp_path: Path):
    write_scene(tmp_path / "api" / "a.tif")
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": "a", "collection": "c", "geometry": None, "links": [],
        "properties": {"datetime": "2020-05-01T00:00:00Z", "cloud": 3},
        "assets": {"thumb": {"href": "a.png"}, "ortho": {"href": "a.tif"}},
    }  # fmt: skip
    (tmp_path / "api" / "search").write_text(json.dumps({"type": "FeatureCollection", "features": [item], "links": []}))
    with serve(tmp_path / "api", tmp_path) as web:
        (scene,) = list_scenes([f"{web.url}/search"], bbox="32,0,33,1", time="2020-01-01/2020-12-31")
        (placed,) = place_scenes([scene]).scenes
    assert (placed.id, placed.href, placed.date) == ("c/a", f"{web.url}/a.tif", "2020-05-01T00:00:00Z")
    with pytest.raises(KitError, match="--bbox '1,2'"):
        list_scenes([f"{web.url}/search"], bbox="1,2")
    with pytest.raises(CatalogError, match="the search failed"):
        list_scenes([f"{web.url}/search"])
    with pytest.raises(CatalogError, match="is not a STAC API search"):
        list_scenes([str(tmp_path)], bbox="1,2,3,4")


def test_the_preferred_scenes_come_first(tmp_path: Path):
    write_scene(tmp_path / "a.tif", pixel=1.0)
    write_scene(tmp_path / "b.tif", pixel=0.5, TIFFTAG_DATETIME="x")
    write_scene(tmp_path / "c.tif", pixel=2.0)
    for name, date in (("a", "2019:01:02 03:04:05"), ("c", "2021:01:02 03:04:05")):
        with rasterio.open(tmp_path / f"{name}.tif", "r+") as target:
            target.update_tags(TIFFTAG_DATETIME=date)
    listed = list_scenes([str(tmp_path)])
    assert ids(place_scenes(listed)) == ["a.tif", "b.tif", "c.tif"]
    assert ids(place_scenes(listed, "newest")) == ["c.tif", "a.tif", "b.tif"]
    assert ids(place_scenes(listed, "finest")) == ["b.tif", "a.tif", "c.tif"]
    with pytest.raises(CatalogError, match="--prefer cloud: no scene has a property 'cloud'"):
        place_scenes(listed, "cloud")


def test_a_scene_without_a_coordinate_system_is_left_out(tmp_path: Path):
    write_scene(tmp_path / "a.tif")
    write_bands(tmp_path / "b.tif", np.zeros((3, 9, 9), np.uint8), crs=None)
    collection = place_scenes(list_scenes([str(tmp_path)]))
    assert ids(collection) == ["a.tif"]
    (refused,) = collection.refused
    assert refused.id == "b.tif"
    assert "has no coordinate system" in refused.reason
    (tmp_path / "a.tif").unlink()
    with pytest.raises(CatalogError, match=r"none of 1 scenes can be mapped, first b\.tif"):
        place_scenes(list_scenes([str(tmp_path)]))


def test_an_empty_folder_is_no_collection(tmp_path: Path):
    with pytest.raises(CatalogError, match="no scenes in"):
        list_scenes([str(tmp_path)])


def test_two_items_of_one_id_are_refused(tmp_path: Path):
    catalog = write_catalog(tmp_path / "city", {"kam": {"a": {"seed": 1}, "b": {"seed": 2}}})
    item = tmp_path / "city" / "kam" / "b" / "b.json"
    item.write_text(item.read_text().replace('"id": "b"', '"id": "a"'))
    with pytest.raises(CatalogError, match="1 scene ids occur twice, first kam/a"):
        list_scenes([str(catalog)])


def test_scenes_of_an_earlier_plan_are_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_bands(tmp_path / "a.tif", np.zeros((3, 9, 9), np.uint8), at_kampala(), UTM)
    listed = list_scenes([str(tmp_path)])
    first = place_scenes(listed)
    monkeypatch.setattr("kit.deploy.country.collection.open_scene", None)
    assert place_scenes(listed, known=first.scenes) == first
