"""A map's record: damaged, fuzzed, of kit 0.1.0, or somebody else's file."""

import json
from pathlib import Path

import numpy as np
import pytest
from factories import at_kampala, write_bands
from map_fakes import brightness, map_with

from kit.deploy.mapping.map_files import MapFiles, MapRecord, name_of
from kit.errors import OutputError


@pytest.mark.parametrize(
    ("href", "name"),
    [
        ("a/b c.tif", "b-c"),
        ("https://example.org/x/y.tif?sig=a/b.c", "y"),
        ("s3://bucket/z.cog.tif", "z.cog"),
        (".tif", "tif"),
        ("scenes/東区.tif", "東区"),
        ("a\nb\x1b[31m.tif", "a-b--31m"),
    ],
)
def test_names(href: str, name: str):
    assert name_of(href) == name


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    bands = np.random.default_rng(0).integers(30, 220, (3, 90, 80), dtype=np.uint8)
    return write_bands(tmp_path / "s.tif", bands, at_kampala())


def test_a_record_comes_back(tmp_path: Path, scene: Path):
    made = map_with(brightness, scene, tmp_path)
    record = MapFiles(tmp_path / "m").read()
    assert record.prediction.scene == str(scene)
    assert record.prediction.size == (80, 90)
    assert record.files == ["m.gpkg", "m_mask.tif", "m_overlay.png", "m_probability.tif"]
    assert json.loads((tmp_path / "m.json").read_text())["buildings"] == made.buildings


def test_a_fuzzed_record_is_refused_or_predicts_the_same(tmp_path: Path, scene: Path):
    """A record with changed or lost bytes: one error that names it, or the same map again."""
    mask, text = map_with(brightness, scene, tmp_path).mask.read_bytes(), (tmp_path / "m.json").read_bytes()
    random, errors = np.random.default_rng(0), []
    for trial in range(40):
        fuzzed = bytearray(text if trial % 4 else text[: random.integers(len(text))])
        for place in random.integers(0, max(1, len(fuzzed)), random.integers(0, 3)):
            fuzzed[place : place + 1] = bytes([random.integers(0, 128)])
        (tmp_path / "m.json").write_bytes(fuzzed)
        try:
            MapFiles(tmp_path / "m").check(str(scene))
            assert map_with(brightness, scene, tmp_path).mask.read_bytes() == mask
        except OutputError as error:
            errors.append(error)
    assert 5 < len(errors) < 35
    assert all(str(tmp_path / "m") in error.message and "--name or --out" in error.hint for error in errors)


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '{"mine": 1}', '{"files": 3}', '{"files": [1]}'])
def test_somebody_elses_record(tmp_path: Path, text: str):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(
        OutputError, match=r"m\.json exists, and (is not a record of kit map: |kit map did not write it)"
    ):
        MapFiles(tmp_path / "m").check("s.tif")
    assert (tmp_path / "m.json").read_text() == text


def test_a_record_of_kit_0_1_0(tmp_path: Path, scene: Path):
    """It names no files: all that a map may have were kit's. Its prediction is not used again."""
    assert MapFiles(tmp_path / "m").read() == MapRecord(files=[])
    map_with(brightness, scene, tmp_path)
    record = json.loads((tmp_path / "m.json").read_text())
    del record["files"]
    record["prediction"]["kit"] = 1
    (tmp_path / "m.json").write_text(json.dumps(record))
    MapFiles(tmp_path / "m").check(str(scene))
    assert map_with(brightness, scene, tmp_path).windows > 0


def test_another_scene_under_the_name_is_predicted(tmp_path: Path, scene: Path):
    map_with(brightness, scene, tmp_path)
    other = write_bands(tmp_path / "t.tif", np.full((3, 90, 80), 200, np.uint8), at_kampala())
    assert map_with(brightness, other, tmp_path).windows > 0
