"""Repaired data sets: each verdict's effect on the masks, the ledger, undoing, resuming, bad input."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from factories import UTM, at_kampala, prepare, write_catalog

from kit.data.audits import (
    BLOCKS,
    BUILDINGS,
    SETTINGS,
    TILES,
    AuditSettings,
    BlockShift,
    BuildingFinding,
    TileFinding,
    data_checksum,
    write_findings,
)
from kit.data.index import read_table
from kit.data.instances import ids_file, read_ids
from kit.data.tiles import repair as repairing
from kit.data.tiles.ledger import Ledger
from kit.data.tiles.repair import RepairOptions, repair
from kit.errors import DataError, OutputError
from kit.paths import Paths
from kit.system.files import write_json

# in pixels of 1 m, from the upper left corner; the first three are the scene's labels
MOVED, DROPPED, KEPT = (16, 10, 36, 30), (50, 30, 74, 54), (70, 4, 82, 16)
ADDED, DOUBTED = (14, 44, 26, 56), (40, 6, 50, 14)


def outline(left, top, right, bottom):
    """Returns a rectangle of pixels in the scene's CRS."""
    to_crs = at_kampala() @ rasterio.Affine.translation(1000, 0)  # where a scene of seed 1 lies
    return shapely.Polygon([to_crs @ corner for corner in ((left, top), (right, top), (right, bottom), (left, bottom))])


def finding(name, verdict, jaccard=0.9, dx_m=0.0, dy_m=0.0):
    origin = "prediction" if name.startswith("p") else "label"
    return BuildingFinding(
        f"kam_a_{name}", "kam", "a", "kam_a_b0_0", origin, 100.0, jaccard, 0.9, 0.01, dx_m, dy_m, verdict, "=why",
    )  # fmt: skip


FINDINGS = {
    MOVED: finding("l0", "shift", dx_m=3.0, dy_m=-2.0),
    DROPPED: finding("l1", "drop", jaccard=0.0),
    KEPT: finding("l2", "keep"),
    ADDED: finding("p0", "add", jaccard=0.0),
    DOUBTED: finding("p1", "ignore", jaccard=0.0),
}


def write_prediction(file: Path, boxes):
    """Writes the raster of an audit, which sees a building in each box."""
    level = np.zeros((70, 96), np.uint8)
    for box in boxes:
        level[patch(box)] = 240
    transform = at_kampala() @ rasterio.Affine.translation(1000, 0)
    with rasterio.open(
        file, "w", driver="GTiff", width=96, height=70, count=1, dtype="uint8", crs=UTM, transform=transform
    ) as raster:
        raster.write(level, 1)


def write_audit(folder: Path, findings, leave_out=(), predicted=()):
    """Writes the files of an audit of `folder`."""
    audit, index = folder / "audit", read_table(folder / "index.csv")
    rows = list(findings.values())
    gpkg = audit / "scenes" / "kam" / "a.gpkg"
    gpkg.parent.mkdir(parents=True, exist_ok=True)
    names = list(BuildingFinding.__dataclass_fields__)
    columns = [np.array([getattr(row, name) for row in rows], None) for name in names]
    columns = [column.astype(object) if column.dtype.kind == "U" else column for column in columns]
    geometries = shapely.to_wkb(np.array([outline(*box) for box in findings], dtype=object))
    gpkg.unlink(missing_ok=True)
    pyogrio.raw.write(gpkg, geometries, columns, names, driver="GPKG", geometry_type="Polygon", crs=UTM)
    write_findings(audit / BUILDINGS, rows, BuildingFinding)
    write_prediction(gpkg.with_suffix(".tif"), predicted)
    tiles = [
        TileFinding(tile, "kam", "a", 0.5, 0.9, 0.5, "leave_out" if tile in leave_out else "repair", "=poor")
        for tile in index["tile"]
    ]
    write_findings(audit / TILES, tiles, TileFinding)
    write_findings(audit / BLOCKS, [], BlockShift)
    write_json(
        audit / SETTINGS, AuditSettings("tier2", data_checksum(folder / "index.csv"), "w", "0" * 64, 1, 100).__dict__
    )


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A root with the audited data set `tier2`, native tiles of 48 px."""
    root = tmp_path_factory.mktemp("audited")
    catalog = write_catalog(root / "catalog", {"kam": {"a": {"seed": 1}}})
    prepare(catalog, Paths(root), "tier2", grid="native", side_px=48, by="tile", k=2)
    write_audit(root / "data/tier2", FINDINGS)
    return root


@pytest.fixture
def root(audited, tmp_path):
    return Path(shutil.copytree(audited, tmp_path / "root"))


def mosaic(folder: Path):
    """Returns the masks of a data set as one, (96, 144) uint8; 254 where there is no tile."""
    whole = np.full((96, 144), 254, np.uint8)
    for file in (folder / "masks/kam/a").glob("*.tif"):
        row, column = (int(part[1:]) for part in file.stem.split("_"))
        with rasterio.open(file) as raster:
            whole[row * 48 : (row + 1) * 48, column * 48 : (column + 1) * 48] = raster.read(1)
    return whole[:70, :96]


def patch(box, grow=0):
    left, top, right, bottom = box
    return np.s_[top - grow : bottom + grow, left - grow : right + grow]


def digest(folder: Path):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_masks_show_each_verdict(root):
    before = digest(root / "data/tier2")
    repaired = repair(Paths(root), "tier2")
    expected = mosaic(root / "data/tier2")
    nodata = expected == 255
    expected[~nodata] = 0
    expected[patch((19, 12, 39, 32))] = 1  # 3 m east, 2 m south
    expected[patch(KEPT)] = 1
    expected[patch(ADDED, grow=1)] = 255  # the band along its edge, 1 m to both sides
    expected[patch(ADDED, grow=-1)] = 1
    expected[patch(DOUBTED)] = 255
    expected[nodata] = 255
    found = mosaic(repaired.folder)
    ring = np.zeros_like(nodata)
    ring[patch(DOUBTED, grow=1)] = ring[patch(ADDED, grow=2)] = True
    ring[patch(DOUBTED)] = ring[patch(ADDED, grow=-2)] = False  # half pixels of the bands
    np.testing.assert_array_equal(found[~ring], expected[~ring])
    assert (found[patch(ADDED)] == 1).sum() >= 100
    assert (found[patch(ADDED, grow=2)] == 255).sum() > 40
    assert digest(root / "data/tier2") == before
    assert repaired.changes == {"moved": 1, "removed": 1, "added": 1, "ignored": 1}


def test_missing_buildings_can_be_ignored_instead(root):
    folder = repair(Paths(root), "tier2", RepairOptions("other", missing="ignore", edge_m=0.0)).folder
    assert folder == root / "data/other"
    found = mosaic(folder)
    assert (found[patch(ADDED)] == 255).all()
    assert found[patch(ADDED, grow=1)].sum() == 255 * 144


def test_merged_labels_become_the_buildings_that_are_predicted(root):
    findings = FINDINGS | {DROPPED: finding("l1", "reshape", jaccard=0.6)}
    halves = (50, 30, 60, 54), (63, 30, 75, 54), (77, 30, 90, 54)  # the last one is none of the label
    write_audit(root / "data/tier2", findings, predicted=halves)
    repaired = repair(Paths(root), "tier2", RepairOptions(edge_m=0.0))
    found = mosaic(repaired.folder)
    assert (found[patch(halves[0])] == 1).all()
    assert (found[patch(halves[1])] == 1).all()
    assert (found[30:54, 60:63] == 0).all()
    assert (found[patch(halves[2])] == 0).all()
    assert repaired.changes["reshaped"] == 1


def test_loose_labels_get_unsure_edges_and_outlines_without_a_prediction_are_ignored(root):
    findings = FINDINGS | {KEPT: finding("l2", "keep", jaccard=0.6), DROPPED: finding("l1", "reshape", jaccard=0.4)}
    write_audit(root / "data/tier2", findings)
    found = mosaic(repair(Paths(root), "tier2", RepairOptions(edge_m=1.0)).folder)
    assert (found[patch(KEPT, grow=-1)] == 1).all()
    assert (found[patch(KEPT)] == 255).sum() == 144 - 100
    assert (found[patch(DROPPED, grow=1)] == 255).sum() >= 26 * 26 - 4  # round corners


def test_the_ledger_lists_every_change_and_undoes_it(root):
    folder = repair(Paths(root), "tier2").folder
    ledger = pd.read_csv(folder / "repairs.csv", keep_default_na=False)
    rows = {row["id"]: row for row in ledger.to_dict("records")}
    assert {name: row["change"] for name, row in rows.items()} == {
        "kam_a_l0": "moved", "kam_a_l1": "removed", "kam_a_p0": "added", "kam_a_p1": "ignored",
    }  # fmt: skip
    assert (rows["kam_a_l0"]["dx_m"], rows["kam_a_l0"]["dy_m"], rows["kam_a_l0"]["reason"]) == (3, -2, "'=why")
    whole = digest(folder / "masks")
    ledger["apply"] = "no"
    ledger.to_csv(folder / "repairs.csv", index=False)
    repaired = repair(Paths(root), "tier2")
    assert (repaired.changes, repaired.undone) == ({}, 4)
    np.testing.assert_array_equal(mosaic(folder), mosaic(root / "data/tier2"))
    ledger.loc[ledger["id"] != "kam_a_l1", "apply"] = "yes"
    ledger.to_csv(folder / "repairs.csv", index=False)
    repair(Paths(root), "tier2")
    assert (mosaic(folder)[patch(DROPPED)] == 1).all()
    (folder / "repairs.csv").unlink()
    repair(Paths(root), "tier2")
    assert digest(folder / "masks") == whole


def test_tiles_that_are_left_out_are_listed_and_can_be_taken_back(root):
    source = read_table(root / "data/tier2/index.csv")
    gone = source["tile"].iloc[0]
    write_audit(root / "data/tier2", FINDINGS, leave_out={gone})
    folder = repair(Paths(root), "tier2").folder
    index = read_table(folder / "index.csv")
    assert list(index["tile"]) == [tile for tile in source["tile"] if tile != gone]
    assert list(index["fold"]) == list(source["fold"][source["tile"] != gone])
    assert pd.read_csv(folder / "skipped.csv")[["tile", "reason"]].values.tolist() == [[gone, "audit: =poor"]]
    ledger = (folder / "repairs.csv").read_text()
    assert ledger.count("left out") == 1
    (folder / "repairs.csv").write_text("\n".join(
        line[: -len("yes")] + "no" if "left out" in line else line for line in ledger.splitlines()
    ))  # fmt: skip
    repair(Paths(root), "tier2")
    assert list(read_table(folder / "index.csv")["tile"]) == list(source["tile"])


def test_the_index_counts_what_the_masks_show(root):
    folder = repair(Paths(root), "tier2").folder
    for row in read_table(folder / "index.csv").itertuples():
        with rasterio.open(folder / row.mask) as raster:
            mask = raster.read(1)
        assert row.valid_fraction == pytest.approx((mask != 255).mean(), abs=1e-6)
        assert row.building_fraction == pytest.approx((mask == 1).sum() / (mask != 255).sum(), abs=1e-6)
        assert (folder / row.image).samefile(root / "data/tier2" / row.image)


def test_footprints_are_a_map_in_longitude_and_latitude(root):
    folder = repair(Paths(root), "tier2").folder
    meta, _, wkb, columns = pyogrio.raw.read(folder / "footprints.gpkg")
    fields = dict(zip(meta["fields"], columns, strict=True))
    placed = dict(zip(fields["building"].tolist(), shapely.from_wkb(wkb), strict=True))
    assert sorted(placed) == ["kam_a_l0", "kam_a_l2", "kam_a_p0", "kam_a_p1"]
    assert meta["crs"] == "EPSG:4326"
    back = pyproj.Transformer.from_crs("EPSG:4326", UTM, always_xy=True)
    moved = shapely.transform(placed["kam_a_l0"], back.transform, interleaved=False)
    assert moved.symmetric_difference(outline(19, 12, 39, 32)).area < 0.01
    assert dict(zip(fields["building"].tolist(), fields["sure"].tolist(), strict=True))["kam_a_p1"] == 0


def test_the_ledger_of_tiles_names_the_repaired_labels(root):
    write_audit(root / "data/tier2", FINDINGS | {DROPPED: finding("l1", "ignore", jaccard=0.2)})
    folder = repair(Paths(root), "tier2").folder
    record = Ledger(folder).read("kam", "a")
    assert record.labels == [str((folder / "footprints/kam/a.gpkg").absolute())]
    from kit.data.footprints import read_footprints

    labels = read_footprints(tuple(record.labels), UTM, record.where)
    assert len(labels.polygons) == 4  # all but the doubtful prediction: what is not sure stays a label


def test_a_second_call_draws_nothing(root, monkeypatch):
    folder = repair(Paths(root), "tier2").folder
    before = digest(folder)
    monkeypatch.setattr(repairing, "repair_scene", None)
    assert repair(Paths(root), "tier2").folder == folder
    assert digest(folder) == before


def test_layers_are_drawn_from_the_repaired_outlines(tmp_path):
    catalog = write_catalog(tmp_path / "catalog", {"kam": {"a": {"seed": 1}}})
    prepare(catalog, Paths(tmp_path), "tier2", grid="native", side_px=48, by="tile", k=2, layers=True)
    write_audit(tmp_path / "data/tier2", {KEPT: finding("l2", "keep"), DOUBTED: finding("p1", "ignore")})
    folder = repair(Paths(tmp_path), "tier2").folder
    for file in (folder / "masks/kam/a").glob("*.tif"):
        with rasterio.open(file) as raster:
            assert raster.descriptions == ("footprint", "boundary", "contact")
            layers = raster.read()
        assert ((layers[0] == 255) == (layers[1] == 255)).all()
        assert not (layers[1][layers[0] == 0] == 1).any()


@pytest.mark.parametrize("layers", [False, True])
def test_ids_tell_repaired_buildings_apart(tmp_path, layers):
    """A recipe that splits buildings trains on a repaired set with the repaired walls."""
    catalog = write_catalog(tmp_path / "catalog", {"kam": {"a": {"seed": 1}}})
    prepare(catalog, Paths(tmp_path), "tier2", grid="native", side_px=48, by="tile", k=2, layers=layers)
    beside = (82, 4, 90, 16)  # shares a wall with KEPT
    write_audit(tmp_path / "data/tier2", {**FINDINGS, beside: finding("l3", "keep", jaccard=0.6)})
    folder = repair(Paths(tmp_path), "tier2", RepairOptions(edge_m=0.0)).folder
    files = sorted((folder / "masks").rglob("*.tif"))
    assert len(files) == len(list((folder / "ids").rglob("*.tif"))) == 4
    for file in files:
        with rasterio.open(file) as raster, rasterio.open(ids_file(file)) as numbers:
            mask, ids = raster.read(1), numbers.read(1)
            assert (numbers.transform, numbers.crs, numbers.dtypes) == (raster.transform, raster.crs, ("uint16",))
        np.testing.assert_array_equal((ids > 0) & (mask != 255), mask == 1)
        np.testing.assert_array_equal(read_ids(file, mask), np.where(mask == 1, ids, 0))  # not the components
    with rasterio.open(ids_file(folder / "masks/kam/a/r0_c1.tif")) as numbers:
        ids = numbers.read(1)
    left, right = (np.unique(ids[4:16, columns]) for columns in (slice(70 - 48, 82 - 48), slice(82 - 48, 90 - 48)))
    assert len(left) == len(right) == 1
    assert left[0] != right[0]


def test_another_version_of_the_data_set_is_refused(root):
    index = root / "data/tier2/index.csv"
    index.write_text(index.read_text().replace("0.", "0.1", 1))
    index.with_suffix(".sha256").unlink()  # changed on purpose
    with pytest.raises(DataError, match="another version of tier2"):
        repair(Paths(root), "tier2")
    assert not (root / "data/tier2_repaired").exists()


def test_without_an_audit_there_is_nothing_to_repair(root):
    (root / "data/tier2/audit" / SETTINGS).unlink()
    with pytest.raises(DataError, match="cannot be read") as error:
        repair(Paths(root), "tier2")
    assert "kit audit" in error.value.hint
    with pytest.raises(DataError, match="no data set 'tier3'"):
        repair(Paths(root), "tier3")


def test_ready_made_masks_are_refused(root):
    (root / "data/tier2/audit/scenes/kam/a.gpkg").unlink()
    with pytest.raises(DataError, match="kam/a has no footprints in the audit"):
        repair(Paths(root), "tier2")


def test_damaged_findings_are_refused(root):
    file = root / "data/tier2/audit/scenes/kam/a.gpkg"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"a\.gpkg"):
        repair(Paths(root), "tier2")


@pytest.mark.parametrize("name", ["tier2", "mine", "tier1"])
def test_other_data_is_not_replaced(root, name):
    if name == "mine":
        (root / "data/mine").mkdir()
        (root / "data/mine/notes.txt").write_text("mine")
    if name == "tier1":
        prepare(root / "catalog", Paths(root), "tier1", grid="native", side_px=48, by="tile", k=2)
    before = digest(root)
    with pytest.raises(OutputError):
        repair(Paths(root), "tier2", RepairOptions(name))
    after = digest(root)
    assert {file: after[file] for file in before} == before


@pytest.mark.parametrize(("text", "message"), [("id\nx\n", "lacks the columns"), ("id,apply\nx,nein\n", "'nein'")])
def test_a_damaged_ledger_is_refused(root, text, message):
    folder = repair(Paths(root), "tier2").folder
    (folder / "repairs.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        repair(Paths(root), "tier2")
    assert (folder / "repairs.csv").read_text() == text


def test_undone_changes_of_an_earlier_audit_are_not_lost(root):
    folder = repair(Paths(root), "tier2").folder
    ledger = (folder / "repairs.csv").read_text().replace("yes", "no")
    (folder / "repairs.csv").write_text(ledger)
    write_audit(root / "data/tier2", FINDINGS | {KEPT: finding("l2", "drop")})
    with pytest.raises(DataError, match="4 changes of another audit"):
        repair(Paths(root), "tier2")
    assert (folder / "repairs.csv").read_text() == ledger


def test_options_out_of_range(root):
    with pytest.raises(DataError, match="'delete'"):
        repair(Paths(root), "tier2", RepairOptions(missing="delete"))
    with pytest.raises(DataError, match="out of range"):
        repair(Paths(root), "tier2", RepairOptions(edge_m=11))


def test_the_command_prints_the_changes(root, cli):
    code, out, err = cli("repair", "tier2", "--root", root)
    assert code == 0, err
    assert out.splitlines()[-1].endswith("data/tier2_repaired")
    assert "removed" in out
