"""`kit score` of polygons: formats, coordinate systems, repairs, and what cannot be compared."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from factories import LATITUDE, LONGITUDE, UTM

from kit.cli.printing import OBJECTS
from kit.deploy.submission.score_polygons import score_polygons
from kit.errors import FootprintError, KitError, ScoreError
from kit.measures.object_counts import ObjectCounts

Cli = Callable[..., tuple[int, str, str]]
X, Y = pyproj.Transformer.from_crs("EPSG:4326", UTM, always_xy=True).transform(LONGITUDE, LATITUDE)


def house(x: float, y: float, width: float = 10, height: float = 8) -> shapely.Polygon:
    return shapely.box(X + x, Y + y, X + x + width, Y + y + height)


TRUE = [house(0, 0), house(30, 0), house(60, 0), house(0, 40)]


def write(path: Path, polygons: list[shapely.Polygon], crs: str = UTM) -> Path:
    """Writes polygons that are given in UTM."""
    change = pyproj.Transformer.from_crs(UTM, crs, always_xy=True)
    moved = shapely.transform(np.array(polygons, dtype=object), change.transform, interleaved=False)
    wkb = np.array(shapely.to_wkb(moved), dtype=object)
    pyogrio.raw.write(path, wkb, field_data=[], fields=[], geometry_type="Polygon", crs=crs)
    return path


@pytest.mark.parametrize(
    ("name", "crs"), [("t.geojson", "EPSG:4326"), ("t.gpkg", UTM), ("t.fgb", "EPSG:3857"), ("t.shp", "EPSG:32736")]
)
def test_formats_and_coordinate_systems(tmp_path: Path, name: str, crs: str):
    truth = write(tmp_path / name, TRUE, crs)
    found = write(tmp_path / "found.gpkg", [house(0, 0), house(29, 0, 10), house(90, 90)])
    scored = score_polygons(found, truth)
    assert scored.pooled == pytest.approx((80 + 72) / (320 + 240 - 80 - 72), rel=1e-4)
    objects = scored.objects
    assert (objects.true, objects.predicted, objects.matched[0]) == (4, 3, 2)
    assert objects.boundary_iou is not None
    assert objects.count_error == -0.25
    assert scored.notices == ()


def test_invalid_true_polygons_are_repaired_and_counted(tmp_path: Path, cli: Cli):
    bow = shapely.Polygon([(X, Y), (X + 10, Y + 8), (X + 10, Y), (X, Y + 8)])
    truth = write(tmp_path / "truth.gpkg", [bow, *TRUE[1:]])
    found = write(tmp_path / "found.geojson", TRUE, "EPSG:4326")
    code, out, err = cli("score", found, truth)
    assert code == 0, err
    assert "1 true footprints repaired" in err
    lines = out.splitlines()
    assert lines[0] == lines[-1] == "pooled 0.8750"  # half of a house is missing in the truth
    assert lines[1].split() == ["objects", "true", "predicted", *lines[1].split()[3:]]
    code, out, err = cli("score", found, truth, "--json")
    assert json.loads(out)["objects"]["true"] == 4


def test_empty_sides(tmp_path: Path):
    none, some = write(tmp_path / "none.geojson", [], "EPSG:4326"), write(tmp_path / "some.gpkg", TRUE)
    assert score_polygons(none, none).pooled == 1.0
    for sides in ((none, some), (some, none)):
        scored = score_polygons(*sides)
        assert (scored.pooled, scored.objects.f1, scored.objects.panoptic_quality) == (0.0, 0.0, 0.0)
    assert score_polygons(some, none).objects.count_error is None


def test_what_cannot_be_compared(tmp_path: Path):
    some = write(tmp_path / "some.gpkg", TRUE)
    with pytest.raises(ScoreError, match=r"no file .*none\.geojson"):
        score_polygons(some, tmp_path / "none.geojson")
    (tmp_path / "broken.geojson").write_text("{")
    with pytest.raises(FootprintError, match="cannot be read"):
        score_polygons(some, tmp_path / "broken.geojson")
    (tmp_path / "text.fgb").write_bytes(b"no")
    with pytest.raises(KitError):
        score_polygons(some, tmp_path / "text.fgb")


def test_polygons_and_masks_do_not_mix(tmp_path: Path, cli: Cli):
    some = write(tmp_path / "some.gpkg", TRUE)
    (tmp_path / "masks").mkdir()
    code, _, err = cli("score", some, tmp_path / "masks")
    assert code == 1
    assert "holds polygons, and" in err


def test_the_page_names_all_measures():
    page = (Path(__file__).parents[3] / "docs/scores.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and line.count(" | ") == 3]
    columns, keys = ([row[place].strip("| `") for row in rows[1:]] for place in (0, 1))
    assert [name for name in columns if name] == list(OBJECTS[1:])
    assert [name for name in keys if name] == sorted(ObjectCounts().measures(), key=keys.index)
