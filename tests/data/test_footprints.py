import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from factories import write_footprints
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import Affine

from kit.data.footprints import draw_mask, read_footprints
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


@pytest.mark.parametrize("content", ['{"type": "FeatureCollection", "features": []}', "no json at all"])
def test_nothing_to_draw_is_an_error(tmp_path: Path, content: str):
    file = tmp_path / "empty.geojson"
    file.write_text(content)
    with pytest.raises(FootprintError, match=r"empty\.geojson"):
        read_footprints((str(file),), "EPSG:4326")


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
