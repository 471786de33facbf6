"""Real drone scenes, where they lie beside the project: never copied into it."""

from pathlib import Path

import pytest

from kit.data.catalog import read_scenes
from kit.data.prepare import prepare
from kit.deploy.submit import find_chips
from kit.paths import Paths

MINI = Path(__file__).parents[2] / "shared" / "open_cities_mini"
pytestmark = pytest.mark.skipif(not MINI.is_dir(), reason="open_cities_mini does not lie beside the project")


def test_scenes_and_chips_are_found():
    name, scenes = read_scenes(MINI / "train_tier_1")
    assert name == "train_tier_1"
    assert [f"{s.area}/{s.scene}" for s in scenes] == ["kam/kam_a", "vir/vir_a", "vir/vir_b", "znz/znz_a"]
    assert len(find_chips(MINI / "test")) == 15


def test_scenes_are_cut_on_the_xyz_grid(tmp_path: Path):
    made = prepare(MINI / "train_tier_1", Paths(tmp_path))
    counts = made.index["scene"].value_counts().to_dict()
    assert counts["znz_a"] == 32  # 8192 x 4096 px on the grid itself
    assert sum(counts.values()) + sum(made.skipped.values()) == 72
    assert made.index["gsd_m"].between(0.0724, 0.0747).all()
    assert (made.index.groupby("scene")["building_fraction"].mean() > 0.05).all()
    no_buildings = made.index[(made.index["scene"] == "znz_a") & (made.index["n_footprints"] == 0)]
    assert len(no_buildings) == 9
