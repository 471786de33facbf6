"""A small network, trained here on a city with right labels, finds the damage of another city."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from audit_city import BLOCK_M, SHIFTS_M, City, draw_city, placed
from factories import TINY_RECIPE, at_kampala, on_earth, prepare, write_footprints

from kit.audit.audit import AuditOptions, audit
from kit.data.audits import read_buildings
from kit.deploy.engine.backends import EngineOptions
from kit.models.pretrained import Source
from kit.paths import Paths
from kit.pipeline.run import RunOptions, run
from kit.training.fit import Setup
from kit.training.length import LengthOptions

RECIPE = TINY_RECIPE.replace("AUGMENT, 2)", "AUGMENT, 8)").replace("slice(1e-4, 1e-3)", "1e-2")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, City]:
    """The folder of the audit of a damaged city, and the city."""
    root = tmp_path_factory.mktemp("trained")
    clean = draw_city(root / "clean", seed=1)
    write_footprints(root / "clean/a.geojson", on_earth(clean.truth, at_kampala(pixel=0.5)))
    city = draw_city(root / "town")
    for name in ("clean", "town"):
        prepare(root / name, Paths(root), name, grid="native", side_px=240)
    (root / "recipes").mkdir()
    (root / "recipes/tiny.py").write_text(RECIPE)
    setup = Setup(LengthOptions(steps=60), Source(pretrained=False))
    run("tiny", Paths(root), RunOptions("clean", folds=("all",), setup=setup))
    options = AuditOptions(BLOCK_M, "clean", workers=1, engine=EngineOptions(tuning=False))
    audit("town", root / "weights/tiny.pt", Paths(root), options)
    return root / "data/town/audit", city


def test_shifts_are_near_the_damage(audited: tuple[Path, City]):
    blocks = pd.read_csv(audited[0] / "blocks.csv").set_index("block")
    for (row, column), (east, north) in SHIFTS_M.items():
        block = blocks.loc[f"town_a_b{row}_{column}"]
        assert block["trusted"]
        assert np.hypot(block["dx_m"] + east, block["dy_m"] + north) < 0.4


@pytest.mark.parametrize(("verdict", "part"), [("add", "missing"), ("drop", "invented")])
def test_missing_and_invented_buildings(audited: tuple[Path, City], verdict: str, part: str):
    folder, city = audited
    rows, outlines, _ = read_buildings(folder / "scenes/town/a.gpkg")
    reported = outlines[[row.verdict == verdict for row in rows]]
    true = placed(getattr(city, part))
    overlap = shapely.area(shapely.intersection(reported[:, None], true))
    agree = overlap / shapely.area(shapely.union(reported[:, None], true)) > 0.3
    assert agree.any(0).mean() >= 0.7
    assert agree.any(1).mean() >= 0.7
