"""`kit audit` from weights to files: what it writes, that it resumes, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import shapely
from audit_city import BLOCK_M, GSD_M, City, draw_city, placed, write_weights
from deploy_fakes import write_tiff
from factories import UTM, at_kampala, prepare

from kit.audit import audit as audits
from kit.audit.audit import AuditOptions, AuditSummary, audit
from kit.data.audits import BlockShift, BuildingFinding, TileFinding, check_audit, read_buildings
from kit.data.tiles.ledger import Ledger
from kit.deploy.engine.backends import EngineOptions
from kit.errors import DataError, KitError, OutputError, WeightsError
from kit.paths import Paths
from kit.system.workers import on_cluster

OPTIONS = AuditOptions(BLOCK_M, workers=1, engine=EngineOptions(tuning=False))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, City]:
    """A root with weights, a data set and its audit. Read only."""
    root = tmp_path_factory.mktemp("audit")
    city = draw_city(root / "town")
    write_weights(root)
    prepare(root / "town", Paths(root), "town", grid="native", side_px=240)
    audited(root)
    return root, city


def audited(root: Path, **changes: object) -> AuditSummary:
    return audit("town", root / "weights/bright.pt", Paths(root), replace(OPTIONS, **changes))


@pytest.fixture
def root(first: tuple[Path, City], tmp_path: Path) -> Path:
    """A copy of it to change."""
    shutil.copytree(first[0], tmp_path / "root")
    ledger = Ledger(tmp_path / "root/data/town")
    record = ledger.read("town", "a")
    assert record
    town = tmp_path / "root/town"
    ledger.write(replace(record, image=str(town / "a.tif"), labels=[str(town / "a.geojson")]))
    return tmp_path / "root"


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_tables_have_their_columns(first: tuple[Path, City]):
    folder = first[0] / "data/town/audit"
    for name, kind in (("blocks", BlockShift), ("buildings", BuildingFinding), ("tiles", TileFinding)):
        assert list(pd.read_csv(folder / f"{name}.csv")) == [field.name for field in fields(kind)]
    tiles = pd.read_csv(folder / "tiles.csv").set_index("tile")
    assert tiles["verdict"].to_dict() == {
        "town_a_r0_c0": "repair", "town_a_r0_c1": "train", "town_a_r1_c0": "repair", "town_a_r1_c1": "train"
    }  # fmt: skip
    assert (tiles["repaired"] > 0.95).all()
    check_audit(folder, first[0] / "data/town/index.csv")


@pytest.mark.parametrize(("name", "part"), [("missing", "missing"), ("invented", "invented")])
def test_geojson_opens_in_other_programs(first: tuple[Path, City], name: str, part: str):
    root, city = first
    file = root / f"data/town/audit/{name}.geojson"
    meta, _, wkb, columns = pyogrio.raw.read(file)
    assert meta["crs"] == "EPSG:4326"
    assert {"building", "verdict", "reason", "confidence"} <= set(meta["fields"])
    assert len(wkb) == len(getattr(city, part))
    lon, lat = shapely.get_coordinates(shapely.from_wkb(wkb)).mean(axis=0)
    assert (lon, lat) == pytest.approx((32.5945, 0.3505), abs=0.01)
    reasons = dict(zip(meta["fields"], columns, strict=True))["reason"]
    assert all(reasons)


def test_shifted_labels_are_drawn_where_they_belong(first: tuple[Path, City]):
    root, city = first
    meta, _, wkb, columns = pyogrio.raw.read(root / "data/town/audit/shifted.geojson")
    values = dict(zip(meta["fields"], columns, strict=True))
    assert np.hypot(values["dx_m"], values["dy_m"]).min() > 1
    moved = shapely.transform(shapely.from_wkb(wkb), _to_utm, interleaved=False)
    truth = shapely.STRtree(placed(city.truth))
    for outline in moved:
        near = truth.geometries[truth.query(outline)]
        assert (
            max(shapely.area(shapely.intersection(outline, near)) / shapely.area(shapely.union(outline, near))) > 0.85
        )


def _to_utm(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import pyproj

    return pyproj.Transformer.from_crs("EPSG:4326", UTM, always_xy=True).transform(x, y)


def test_a_picture_of_the_worst_tiles(first: tuple[Path, City]):
    with rasterio.open(first[0] / "data/town/audit/worst/worst_1.png") as source:
        assert source.width <= 1366  # a laptop's screen
        assert source.height <= 1000
        colours = source.read().reshape(3, -1).T
    for colour in ((255, 225, 0), (0, 225, 255)):  # outlines of labels and of the prediction
        assert (colours == colour).all(axis=1).sum() > 200


def test_nothing_else_of_the_data_set_changes(tmp_path: Path):
    draw_city(tmp_path / "town")
    write_weights(tmp_path)
    prepare(tmp_path / "town", Paths(tmp_path), "town", grid="native", side_px=240)
    before = content(tmp_path / "data") | content(tmp_path / "town")
    audited(tmp_path)
    after = content(tmp_path / "data") | content(tmp_path / "town")
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[1] for name in after if name not in before} == {"audit"}


def test_a_finished_audit_is_not_computed_again(root: Path, monkeypatch: pytest.MonkeyPatch):
    audited(root)  # the labels lie elsewhere now
    before = content(root / "data")
    monkeypatch.setattr(audits, "compare_scene", None)
    monkeypatch.setattr(audits, "predict_raster", None)
    audited(root)
    assert content(root / "data") == before


def test_another_block_does_not_predict_again(root: Path, monkeypatch: pytest.MonkeyPatch):
    audited(root)
    monkeypatch.setattr(audits, "predict_raster", None)
    audited(root, block_m=60.0)
    assert len(pd.read_csv(root / "data/town/audit/blocks.csv")) == 16


def test_several_processes_write_the_same_bytes(root: Path):
    audited(root)
    before = content(root / "data/town/audit")
    shutil.rmtree(root / "data/town/audit")
    audited(root, workers=2)
    assert content(root / "data/town/audit") == before


def test_changed_labels_are_compared_again(root: Path):
    labels = json.loads((root / "town/a.geojson").read_text())
    labels["features"] = labels["features"][1:]
    (root / "town/a.geojson").write_text(json.dumps(labels))
    audited(root)
    rows = pd.read_csv(root / "data/town/audit/buildings.csv")
    assert (rows["origin"] == "label").sum() == len(labels["features"])


def test_the_score_is_a_rank_among_right_tiles(root: Path):
    """Calibrated on a city without damage, its own tiles are as good as the others'."""
    city = draw_city(root / "right", seed=3)
    from audit_city import write_footprints
    from factories import on_earth

    write_footprints(root / "right/a.geojson", on_earth(city.truth, at_kampala(pixel=GSD_M)))
    prepare(root / "right", Paths(root), "right", grid="native", side_px=240)
    summary = audited(root, calibrate_on="right")
    assert not summary.notices
    tiles = pd.read_csv(root / "data/town/audit/tiles.csv").set_index("tile")
    assert tiles.loc["town_a_r0_c0", "score"] == 0
    assert tiles.loc["town_a_r1_c1", "score"] == 1  # nothing there, and nothing predicted
    settings = json.loads((root / "data/town/audit/settings.json").read_text())
    assert settings["calibrated_on"] == "4 tiles of right"


def test_ready_made_masks_are_judged_by_tile(tmp_path: Path):
    city = draw_city(tmp_path / "town")
    write_weights(tmp_path)
    prepare(tmp_path / "town", Paths(tmp_path), "town", grid="native", side_px=240)
    folder, index = tmp_path / "data/town", pd.read_csv(tmp_path / "data/town/index.csv")
    for row in index.itertuples():
        for part, file in (("images", row.image), ("masks", row.mask)):
            with rasterio.open(folder / file) as source:
                bands = source.read()
            write_tiff(tmp_path / "pairs" / part / f"{row.tile}.tif", bands.transpose(1, 2, 0))
    prepare(tmp_path / "pairs", Paths(tmp_path), "pairs", side_px=240, gsd_m=GSD_M)
    summary = audit("pairs", tmp_path / "weights/bright.pt", Paths(tmp_path), OPTIONS)
    assert any("ready-made masks" in notice for notice in summary.notices)
    tiles = pd.read_csv(summary.folder / "tiles.csv")
    assert sorted(tiles["verdict"]) == ["leave_out", "leave_out", "train", "train"]
    assert pd.isna(tiles["repaired"]).all()
    assert not len(pd.read_csv(summary.folder / "blocks.csv"))
    assert list((summary.folder / "worst").glob("*.png"))
    assert city.labels


def test_buildings_keep_their_outlines(first: tuple[Path, City]):
    root, city = first
    rows, outlines, crs = read_buildings(root / "data/town/audit/scenes/town/a.gpkg")
    assert crs == UTM
    labels = [outline for row, outline in zip(rows, outlines, strict=True) if row.origin == "label"]
    areas = sorted(outline.area for outline in placed(city.labels))
    assert sorted(shapely.area(labels)) == pytest.approx(areas, rel=1e-3)
    assert len(rows) == len(pd.read_csv(root / "data/town/audit/buildings.csv"))


def _no_weights(root: Path) -> None:
    write_weights(root, "bright", gsd_m=3.0)


def _older(root: Path) -> None:
    ledger = Ledger(root / "data/town")
    record = ledger.read("town", "a")
    assert record
    ledger.write(replace(record, image="", labels=[]))


def _foreign(root: Path) -> None:
    shutil.rmtree(root / "data/town/audit")
    (root / "data/town/audit").mkdir()
    (root / "data/town/audit/notes.txt").write_text("mine")


def _no_labels(root: Path) -> None:
    (root / "town/a.geojson").unlink()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [(_no_weights, DataError, r"0\.5 m per pixel, the weights were trained at 3 m: 6\.0 times"),
     (_older, DataError, "does not say where the labels of town/a lie"),
     (_foreign, OutputError, "was not written by kit audit"),
     (_no_labels, KitError, r"a\.geojson")],
)  # fmt: skip
def test_what_is_refused(root: Path, change: Callable[[Path], None], error: type[KitError], message: str):
    change(root)
    with pytest.raises(error, match=message):
        audited(root)


def test_weights_of_other_classes(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audits, "CLASSES", ("water", "land"))
    with pytest.raises(WeightsError, match="knows the classes background, building"):
        audited(root)


@pytest.mark.parametrize("block_m", [0.0, 5.0, float("nan"), 1e6])
def test_impossible_blocks(root: Path, block_m: float):
    with pytest.raises(KitError, match=r"blocks of .* m"):
        audited(root, block_m=block_m)


@pytest.mark.slow
def test_a_cluster_gives_the_same_audit(root: Path):
    found = []
    for cluster in ("", "local:1"):
        shutil.rmtree(root / "data/town/audit")
        with on_cluster(cluster):
            audited(root)
        found.append(content(root / "data/town/audit"))
    assert found[0] == found[1]
