import json
from pathlib import Path

import pytest
from factories import write_catalog

from kit.data.catalog import read_scenes
from kit.errors import CatalogError


def test_scenes_come_sorted_with_their_labels(catalog: Path):
    name, scenes = read_scenes(catalog)
    assert name == "train_tier_1"
    assert [(s.area, s.scene, s.tier) for s in scenes] == [("kam", "a", 1), ("kam", "b", 1), ("znz", "c", 1)]
    assert all(Path(s.image).is_file() and Path(s.labels[0]).is_file() for s in scenes)


def test_the_catalogue_may_be_a_file(catalog: Path):
    assert read_scenes(catalog / "catalog.json") == read_scenes(catalog)


def test_labels_are_matched_by_their_source_link(catalog: Path):
    file = catalog / "kam" / "a-labels" / "a-labels.json"
    label = json.loads(file.read_text()) | {"id": "some-other-name"}
    file.write_text(json.dumps(label))
    assert read_scenes(catalog)[1][0].labels[0].endswith("a.geojson")


def test_tier_two_is_read_from_the_name(tmp_path: Path):
    root = write_catalog(tmp_path / "c", {"kam": {"a": {}}})
    file = root / "catalog.json"
    file.write_text(file.read_text().replace("train_tier_1", "train_tier_2"))
    assert read_scenes(root)[1][0].tier == 2


def test_missing_catalogue(tmp_path: Path):
    with pytest.raises(CatalogError, match="no STAC catalogue at"):
        read_scenes(tmp_path / "nowhere")


def test_a_file_that_is_no_catalogue(tmp_path: Path):
    (tmp_path / "catalog.json").write_text('{"type": "FeatureCollection"}')
    with pytest.raises(CatalogError, match="is no STAC catalogue"):
        read_scenes(tmp_path)
    (tmp_path / "catalog.json").write_text("not json")
    with pytest.raises(CatalogError, match="is no STAC catalogue"):
        read_scenes(tmp_path)


def test_scene_without_labels_is_named(tmp_path: Path):
    root = write_catalog(tmp_path / "c", {"kam": {"a": {}, "b": {}}}, labels=False)
    with pytest.raises(CatalogError, match="2 of 2 scenes have no labels, first kam/a"):
        read_scenes(root)


@pytest.mark.parametrize("lost", ["kam/a/a.tif", "kam/a-labels/a.geojson"])
def test_lost_file_is_named(catalog: Path, lost: str):
    (catalog / lost).unlink()
    with pytest.raises(CatalogError, match=f"scene kam/a: no file .*{Path(lost).name}"):
        read_scenes(catalog)


def test_lost_item_is_named(catalog: Path):
    (catalog / "kam/a/a.json").unlink()
    with pytest.raises(CatalogError, match="item cannot be read"):
        read_scenes(catalog)
