import json
from collections.abc import Callable
from pathlib import Path

import pytest
import shapely
from factories import at_kampala, on_earth, write_catalog, write_footprints

from kit.cli.printing import COLUMNS

Cli = Callable[..., tuple[int, str, str]]
KEYS = [
    *("area", "scene", "tiles", "skipped", "failed", "km2", "footprints", "crossing", "beyond", "repaired", "dropped"),
    *("building_fraction", "folds"),
]
SCENE = {"pixel": 0.5, "alpha": False}  # 96 x 70 px: 48 x 35 m


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Two scenes; the first with each kind of footprint."""
    root = write_catalog(tmp_path / "train_tier_1", {"kam": {"a": SCENE, "b": {**SCENE, "seed": 1}}})
    transform = at_kampala(pixel=0.5)
    inside = [shapely.box(10, 10, 30, 20), shapely.box(40, 40, 60, 50)]
    crossing = [shapely.box(-5, 30, 10, 40), shapely.box(90, 60, 200, 90), shapely.box(60, 0, 70, 10)]  # the last at it
    beyond = [shapely.box(200, 10, 230, 20)] * 4
    bow = shapely.Polygon([(40, 10), (60, 25), (60, 10), (40, 25)])
    write_footprints(root / "kam/a-labels/a.geojson", on_earth([*inside, *crossing, *beyond, bow], transform))
    file = root / "kam/a-labels/a.geojson"
    told = json.loads(file.read_text())
    empty = [None, {"type": "Point", "coordinates": [32.5945, 0.3505]}, {"type": "Polygon", "coordinates": []}]
    told["features"] += [{"type": "Feature", "properties": {}, "geometry": geometry} for geometry in empty]
    file.write_text(json.dumps(told))
    return root


def test_json_tells_all_of_each_scene(tmp_path: Path, catalog: Path, cli: Cli):
    code, out, err = cli("prepare", catalog, "--root", tmp_path, "--grid", "native", "--side", 32, "--json",
                         "--min-valid", 0.5, "-k", 2, "--by", "scene")  # fmt: skip
    assert code == 0
    first, second = json.loads(out)
    assert list(first) == KEYS
    assert (first["area"], first["scene"], first["failed"]) == ("kam", "a", 0)
    assert (first["footprints"], first["crossing"], first["beyond"]) == (6, 3, 4)
    assert (first["repaired"], first["dropped"]) == (1, 3)
    assert first["tiles"] == 6
    assert first["skipped"] == {"imagery below 0.5": 3}
    assert first["km2"] == pytest.approx(48 * 32 / 1e6, abs=1e-4)
    assert second["footprints"] == 3
    assert second["building_fraction"] == pytest.approx((20**2 + 24**2 - 24 * 0 + 12**2) / (96 * 64), rel=0.01)
    assert sorted(first["folds"] + second["folds"]) == [0, 1]
    assert "cut tiles 18/18" in err


def test_km2_is_the_ground_that_is_seen(tmp_path: Path, cli: Cli):
    """Of imagery, whatever the grid: a scene of 2000 x 1000 pixels of 1 m, of which a strip is empty."""
    options = {"width": 2000, "height": 1000}
    catalog = write_catalog(tmp_path / "train_tier_1", {"kam": {"a": options, "b": {**options, "seed": 1}}})
    for grid, side in (("native", 512), ("z16", 512), ("1.7m", 512)):
        _, out, _ = cli("prepare", catalog, "--root", tmp_path, "--grid", grid, "--side", side, "--json",
                        "--name", grid, "--min-valid", 0)  # fmt: skip
        for row in json.loads(out):
            assert row["km2"] == pytest.approx(1992 * 1000 / 1e6, rel=0.01)


def test_the_piped_table_has_every_column(tmp_path: Path, catalog: Path, cli: Cli):
    command = ("prepare", catalog, "--root", tmp_path, "--grid", "native", "--side", 32, "--min-valid", 0.5)
    code, out, _ = cli(*command)
    assert code == 0
    head, *rows, total, last = out.splitlines()
    assert total.split()[0] == "all"
    assert tuple(head.split()) == COLUMNS
    assert [row.split()[0] for row in rows] == ["kam/a", "kam/b"]
    starts = [head.index(name) for name in COLUMNS]
    cells = [rows[0][start:stop].strip() for start, stop in zip(starts, [*starts[1:], None], strict=True)]
    told = dict(zip(COLUMNS, cells, strict=True))
    assert told["why"] == "3 imagery below 0.5"
    numbers = ("tiles", "skipped", "failed", "footprints", "crossing", "beyond", "repaired", "dropped")
    assert [told[name] for name in numbers] == ["6", "3", "0", "6", "3", "4", "1", "3"]
    assert told["km2"] == "0.002"
    assert last == str(tmp_path / "data/train_tier_1")
    _, again, err = cli(*command)
    assert again == out
    assert "2 of 2 scenes were cut before and are unchanged" in err
