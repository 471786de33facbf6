"""Audit, repair, audit again: the repaired masks are near the truth, and little is left to repair."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from audit_city import BLOCK_M, City, draw_city, write_weights
from factories import prepare
from rasterio.features import rasterize

from kit.audit.audit import AuditOptions, audit
from kit.data.masks import Counts, count, pool
from kit.data.tiles.repair import RepairOptions, repair
from kit.deploy.engine.backends import EngineOptions
from kit.paths import Paths

OPTIONS = AuditOptions(BLOCK_M, workers=1, engine=EngineOptions(tuning=False))
SIDE_PX = 240


@pytest.fixture(scope="module")
def repaired(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, City]:
    """A root with an audited data set, its repair, and the audit of the repair. Read only."""
    root = tmp_path_factory.mktemp("round_trip")
    city = draw_city(root / "town")
    weights = write_weights(root)
    prepare(root / "town", Paths(root), "town", grid="native", side_px=SIDE_PX)
    audit("town", weights, Paths(root), OPTIONS)
    repair(Paths(root), "town")
    audit("town_repaired", weights, Paths(root), replace(OPTIONS, calibrate_on="town"))
    return root, city


def jaccard(folder: Path, city: City) -> tuple[float, float]:
    """Returns the Jaccard index of the masks and the truth, and the share of pixels that they ignore."""
    truth = rasterize(city.truth, (2 * SIDE_PX, 2 * SIDE_PX), dtype=np.uint8)
    counts: list[Counts] = []
    ignored = []
    for row, column in np.ndindex(2, 2):
        with rasterio.open(folder / f"masks/town/a/r{row}_c{column}.tif") as raster:
            mask = raster.read(1)
        at = np.s_[row * SIDE_PX : (row + 1) * SIDE_PX, column * SIDE_PX : (column + 1) * SIDE_PX]
        counts.append(count(truth[at] == 1, mask))
        ignored.append((mask == 255).mean())
    return pool(counts).jaccard, float(np.mean(ignored))


def test_repaired_masks_are_near_the_truth(repaired: tuple[Path, City]):
    root, city = repaired
    before, _ = jaccard(root / "data/town", city)
    after, ignored = jaccard(root / "data/town_repaired", city)
    assert before < 0.65
    assert after > 0.95
    assert ignored < 0.02


def test_the_audit_of_the_repaired_set_finds_little(repaired: tuple[Path, City]):
    root, _ = repaired
    before, after = (
        pd.read_csv(root / f"data/{name}/audit/buildings.csv")["verdict"].value_counts()
        for name in ("town", "town_repaired")
    )
    assert before["add"] >= 6
    assert before["drop"] >= 6
    assert before["shift"] >= 20
    assert after.drop("keep").sum() <= 1
    blocks = pd.read_csv(root / "data/town_repaired/audit/blocks.csv")
    assert np.hypot(blocks["dx_m"], blocks["dy_m"])[blocks["trusted"]].max() < 0.3
    assert set(pd.read_csv(root / "data/town_repaired/audit/tiles.csv")["verdict"]) == {"train"}


def test_everything_undone_is_the_audited_data_set(repaired: tuple[Path, City]):
    root, _ = repaired
    folder = repair(Paths(root), "town", RepairOptions("undone")).folder
    ledger = pd.read_csv(folder / "repairs.csv", keep_default_na=False).assign(apply="no")
    ledger.to_csv(folder / "repairs.csv", index=False)
    repair(Paths(root), "town", RepairOptions("undone"))
    for mask in sorted((folder / "masks").rglob("*.tif")):
        with rasterio.open(mask) as one, rasterio.open(root / "data/town" / mask.relative_to(folder)) as other:
            np.testing.assert_array_equal(one.read(1), other.read(1))
