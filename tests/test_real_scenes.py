"""Real drone scenes, where they lie beside the project: never copied into it."""

from pathlib import Path

import numpy as np
import pytest
from alignment import Pair, agreements, best_shift, read_pair, ring
from factories import prepare

from kit.data.sources.stac import read_scenes
from kit.data.tiles.prepare import Prepared
from kit.deploy.submission.submit import find_chips
from kit.paths import Paths

MINI = Path(__file__).parents[2] / "shared" / "open_cities_mini"
SCENES = ["kam_a", "vir_a", "vir_b", "znz_a"]
pytestmark = pytest.mark.skipif(not MINI.is_dir(), reason="open_cities_mini does not lie beside the project")


def test_scenes_and_chips_are_found():
    name, scenes = read_scenes(MINI / "train_tier_1")
    assert name == "train_tier_1"
    assert [f"{s.area}/{s.scene}" for s in scenes] == ["kam/kam_a", "vir/vir_a", "vir/vir_b", "znz/znz_a"]
    assert len(find_chips(MINI / "test")) == 15


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return Paths(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def made(root: Paths) -> Prepared:
    return prepare(MINI / "train_tier_1", root, workers=1)


@pytest.fixture(scope="module")
def pairs(made: Prepared, root: Paths) -> dict[str, list[Pair]]:
    """Image and mask of the tiles with buildings, by scene; every third one of znz_a, which has many."""
    folder = root.data(made.name)
    built = made.index[made.index["building_fraction"] > 0]
    return {
        scene: [
            read_pair(folder / tile.image, folder / tile.mask)
            for tile in tiles.iloc[:: 3 if scene == "znz_a" else 1].itertuples()
        ]
        for scene, tiles in built.groupby("scene")
    }


def test_scenes_are_cut_on_the_xyz_grid(made: Prepared):
    counts = made.index["scene"].value_counts().to_dict()
    assert counts["znz_a"] == 32  # 8192 x 4096 px on the grid itself
    assert sum(counts.values()) + sum(made.skipped.values()) == 72
    assert made.index["gsd_m"].between(0.0724, 0.0747).all()
    assert (made.index.groupby("scene")["building_fraction"].mean() > 0.05).all()
    no_buildings = made.index[(made.index["scene"] == "znz_a") & (made.index["n_footprints"] == 0)]
    assert len(no_buildings) == 9


@pytest.mark.parametrize("scene", SCENES)
def test_masks_lie_on_the_roofs(pairs: dict[str, list[Pair]], scene: str):
    """Moved by 3 px and more, in any direction, each scene's masks agree less with the edges in its image."""
    moves = [shift for length_px in (3, 4, 6, 8) for shift in ring(length_px)]
    here, *there = agreements(pairs[scene], [(0, 0), *moves])
    assert max(there) < here - 0.01, moves[np.argmax(there)]  # least losses measured: 0.024 to 0.052


@pytest.mark.parametrize("scene", SCENES)
def test_masks_beside_the_roofs_are_found(pairs: dict[str, list[Pair]], scene: str):
    """What is asked above can fail: after a move by 4 px to the right, going back agrees more than staying."""
    moved = [(image, np.roll(mask, 4, axis=1)) for image, mask in pairs[scene]]
    best = best_shift(moved)
    assert best is not None
    assert abs(best.dx + 4) <= 1
    assert abs(best.dy) <= 1
    assert best.gain > 0.01
    here, *there = agreements(moved, [(0, 0), *ring(3)])
    assert max(there) > here
