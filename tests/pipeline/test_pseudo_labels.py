"""`kit pseudo`: labels, the data set that they make, the ledger, resuming, and what it refuses."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
import rasterio
from deploy_fakes import export_tiny, noise, record, write_tiff
from factories import TINY_RECIPE, UTM, at_kampala, write_bands
from rasterio.transform import Affine
from test_postprocess import draw, write_tiles

from kit.data.added import AddedSet
from kit.data.dataset import TileDataset
from kit.data.folds.leaks import NO_FOLD
from kit.data.index import read_index
from kit.data.masks import IGNORE
from kit.data.rasters import read_image
from kit.data.sources.chips import Chip
from kit.deploy.engine.backends import EngineOptions
from kit.deploy.engine.predict import predict_image
from kit.deploy.mosaics import wide
from kit.deploy.mosaics.mosaic import Mosaic, PlacedChip
from kit.deploy.submission.submit import SubmitOptions
from kit.deploy.weights.load import load_weights
from kit.errors import CatalogError, DataError, KitError, OutputError, RunError, WeightsError
from kit.paths import Paths
from kit.pipeline import pseudo_labels, pseudo_set
from kit.pipeline.export import Exported
from kit.pipeline.pseudo_labels import (
    LEDGER_COLUMNS,
    LabelledChip,
    PseudoOptions,
    hard_labels,
    parse_ignore,
    soft_labels,
)
from kit.pipeline.pseudo_quality import expected_quality, quality_line
from kit.pipeline.pseudo_set import ALONE, PseudoLabels
from kit.pipeline.run import _report_labels_of_validation
from kit.system.files import locked, sha256_of

pytestmark = pytest.mark.usefixtures("one_thread")

Cli = Callable[..., tuple[int, str, str]]
AS_SHIPPED = SubmitOptions(EngineOptions(tuning=False))
NARROW = (0.49, 0.51)  # the tiny networks are sure of nothing


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_tiny(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    """Four chips: c is transparent on its left, d shows nothing."""
    for seed, (name, size) in enumerate({"a": (33, 50), "b": (64, 64), "c": (40, 31)}.items()):
        image = noise(*size, 4 if name == "c" else 3, seed)
        if name == "c":
            image[..., 3] = 255
            image[:, :12] = 0
        write_tiff(tmp_path / "test" / f"{name}.tif", image)
    write_tiff(tmp_path / "test" / "d.tif", np.zeros((30, 30, 3), np.uint8))
    return tmp_path / "test"


def label(test: Path, weights: Exported, root: Path, name: str = "pseudo1", **options: object) -> PseudoLabels:
    given = PseudoOptions(**{"prediction": AS_SHIPPED, "ignore": NARROW} | options)
    return pseudo_set.label_chips(test, weights.path, Paths(root), name, given)


def outputs(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def ledger(root: Path, name: str = "pseudo1") -> dict[str, dict[str, str]]:
    with (root / "data" / name / "pseudo.csv").open(newline="", encoding="utf-8") as file:
        return {row["chip"]: row for row in csv.DictReader(file)}


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read(1)


def test_hard_and_soft_labels():
    probability = np.array([[0.1, 0.35, 0.5], [0.65, 0.66, 1.0]])
    shown = np.array([[True, True, True], [True, True, False]])
    labels = hard_labels(probability, shown, (0.35, 0.65))
    assert labels.tolist() == [[0, 255, 255], [255, 1, 255]]
    assert hard_labels(probability, shown, None).tolist() == [[0, 0, 0], [1, 1, 255]]
    assert soft_labels(probability, labels).tolist() == [[25, 255, 255], [255, 168, 255]]
    assert soft_labels(np.ones((1, 1)), np.ones((1, 1), np.uint8)).item() == 254


def test_the_data_set(chips: Path, weights: Exported, tmp_path: Path):
    labels = label(chips, weights, tmp_path, soft=True)
    assert (labels.chips, labels.kept, labels.left_out) == (4, 3, {"no imagery": 1})
    name, index = read_index(Paths(tmp_path))
    assert (name, list(index["tile"])) == ("pseudo1", ["pseudo1_a", "pseudo1_b", "pseudo1_c"])
    constant = {"area": "pseudo1", "scene": ALONE, "tier": 3, "fold": NO_FOLD, "gsd_m": 0.15, "crs": ""}
    assert all((index[column] == value).all() for column, value in constant.items())
    assert set(index["width_px"]) == set(index["height_px"]) == {64}  # the largest chip
    loaded = load_weights(weights.path)
    for row, (image, mask) in zip(index.itertuples(), TileDataset(index), strict=True):
        chip = read_image(chips / f"{row.tile[-1]}.tif")
        height, width = chip.shape[:2]
        shown = chip[..., 3] > 0 if chip.shape[2] == 4 else np.ones((height, width), bool)
        probability = predict_image(loaded, chip)
        expected = np.full((64, 64), IGNORE, np.uint8)
        expected[:height, :width] = hard_labels(probability, shown, NARROW)
        assert np.array_equal(mask.numpy(), expected)
        pixels = image.numpy().transpose(1, 2, 0)
        assert np.array_equal(pixels[:height, :width][shown], chip[..., :3][shown])
        assert not pixels[height:].any()
        assert not pixels[:, width:].any()
        soft = read(row.soft)
        assert np.array_equal(soft == IGNORE, expected == IGNORE)
        known = soft[:height, :width][soft[:height, :width] != IGNORE] / 254
        assert np.abs(known - probability[expected[:height, :width] != IGNORE]).max() <= 0.5 / 254 + 1e-6
        assert row.valid_fraction == pytest.approx((expected != IGNORE).mean(), abs=1e-6)
        assert row.building_fraction == pytest.approx((expected == 1).sum() / (expected != IGNORE).sum(), abs=1e-6)


def test_the_ledger(chips: Path, weights: Exported, tmp_path: Path):
    label(chips, weights, tmp_path, round=2)
    rows = ledger(tmp_path)
    assert tuple(rows["a"]) == LEDGER_COLUMNS
    assert [row["kept"] for row in rows.values()] == ["true", "true", "true", "false"]
    assert (rows["d"]["reason"], rows["d"]["confidence"]) == ("no imagery", "")
    assert {row["round"] for row in rows.values()} == {"2"}
    assert {row["weights_sha256"] for row in rows.values()} == {sha256_of(weights.path)}
    probability = predict_image(load_weights(weights.path), read_image(chips / "b.tif"))
    mask = hard_labels(probability, np.ones(probability.shape, bool), NARROW)
    assert float(rows["b"]["confidence"]) == pytest.approx(np.maximum(probability, 1 - probability).mean(), abs=1e-6)
    assert float(rows["b"]["ignored_fraction"]) == pytest.approx((mask == IGNORE).mean(), abs=1e-6)
    assert float(rows["b"]["building_fraction"]) == pytest.approx((mask == 1).sum() / (mask != IGNORE).sum(), abs=1e-6)


def test_chips_are_left_out_without_predicting_again(
    chips: Path, weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    label(chips, weights, tmp_path)
    before = outputs(tmp_path / "data/pseudo1")
    confidences = {chip: float(row["confidence"] or 0) for chip, row in ledger(tmp_path).items()}
    best = max(confidences, key=confidences.__getitem__)
    monkeypatch.setattr(wide, "read_image", None)
    labels = label(chips, weights, tmp_path, min_confidence=confidences[best] - 1e-5)
    assert labels.kept == 1
    assert list(read_index(Paths(tmp_path))[1]["tile"]) == [f"pseudo1_{best}"]
    assert all(row["kept"] == str(chip == best).lower() for chip, row in ledger(tmp_path).items())
    with pytest.raises(DataError, match=r"none of 4 chips is kept: 3 confidence below 0\.9, 1 no imagery; the highest"):
        label(chips, weights, tmp_path, min_confidence=0.9)
    assert labels.kept == len(read_index(Paths(tmp_path))[1])  # the index stays
    label(chips, weights, tmp_path)
    assert outputs(tmp_path / "data/pseudo1") == before


def test_chips_without_building_are_kept_unless_dropped(chips: Path, weights: Exported, tmp_path: Path):
    probability = predict_image(load_weights(weights.path), read_image(chips / "a.tif"))
    ignore = (0.01, float(probability.max()) + 1e-4)  # certain of background alone, if of anything
    row = LabelledChip("a", "", "", 10, 10, 0, 0.9, 0.1, "", 0, 0, 0, 0)
    assert row.left_out(PseudoOptions(ignore=ignore)) == ""
    assert row.left_out(PseudoOptions(ignore=ignore, drop_empty=True)) == "no building"
    assert replace(row, labelled_px=0).left_out(PseudoOptions()) == "no certain pixel"


def test_groups_are_the_mosaics(chips: Path, weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def finding(found: list[Chip], _: Path) -> list[Mosaic]:
        a, b, c, d = (PlacedChip(chip, 0, 0, *read_image(chip.path).shape[:2], 1.0) for chip in found)
        return [Mosaic("m000", (a, replace(b, col=1)), ()), Mosaic("m001", (c,), ()), Mosaic("m002", (d,), ())]

    monkeypatch.setattr(pseudo_set, "known_mosaics", finding)
    label(chips, weights, tmp_path)
    assert list(read_index(Paths(tmp_path))[1]["scene"]) == ["m000", "m000", ALONE]


def test_a_killed_call_is_resumed(chips: Path, weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Wherever it ends: before any file of a chip, between its files, before its row and behind it."""
    label(chips, weights, tmp_path / "whole", soft=True)
    before = outputs(tmp_path / "whole/data/pseudo1")
    folder, write, append = tmp_path / "data/pseudo1", pseudo_labels.write_bytes, pseudo_labels._append
    killed = 0
    for place in range(9):
        left = iter(range(place % 4))

        def writing(path: Path, content: bytes, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            write(path, content)

        def appending(row: LabelledChip, progress: TextIO, place: int = place) -> None:
            if place != 3:
                append(row, progress)
            if place in (3, 7):
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(pseudo_labels, "write_bytes", writing)
            patch.setattr(pseudo_labels, "_append", appending)
            with suppress(KeyboardInterrupt):
                label(chips, weights, tmp_path, soft=True)
                continue
        killed += 1
        assert not (folder / "index.csv").exists()
    assert killed > 5
    label(chips, weights, tmp_path, soft=True)
    assert outputs(folder) == before
    monkeypatch.setattr(wide, "read_image", None)
    label(chips, weights, tmp_path, soft=True)
    assert outputs(folder) == before


def test_a_finished_call_loads_no_weights(
    chips: Path, weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    labels = label(chips, weights, tmp_path)
    before = outputs(tmp_path / "data/pseudo1")
    loads = []
    monkeypatch.setattr(pseudo_set, "load_weights", lambda *given: (loads.append(given), load_weights(*given))[1])
    assert label(chips, weights, tmp_path) == labels
    assert not loads
    assert "nothing to label: this data set is finished" in capsys.readouterr().err
    record = tmp_path / "data/pseudo1/.finished.json"
    for spoil in (
        lambda: label(chips, weights, tmp_path, round=2),
        lambda: write_tiff(chips / "a.tif", read_image(chips / "a.tif")),
        (tmp_path / "data/pseudo1/masks/b.tif").unlink,
        lambda: record.write_text(record.read_text().replace('"kept": 3', '"kept": "3"')),
    ):
        spoil()
        loads.clear()
        assert label(chips, weights, tmp_path) == labels
        assert len(loads) == 1
        assert outputs(tmp_path / "data/pseudo1") == before


def test_what_is_lost_or_changed_comes_again(
    chips: Path, weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    label(chips, weights, tmp_path)
    folder, names = tmp_path / "data/pseudo1", []
    before = outputs(folder)
    monkeypatch.setattr(wide, "read_image", lambda path: (names.append(path.stem), read_image(path))[1])
    (folder / "masks/a.tif").unlink()
    (folder / "index.csv").write_text("spoilt")
    label(chips, weights, tmp_path)
    assert names == ["a"]
    assert outputs(folder) == before
    names.clear()
    label(chips, weights, tmp_path, ignore=None)  # other labels: all are made again
    assert names == ["a", "b", "c", "d"]
    assert not (read(folder / "masks/b.tif") == IGNORE).any()
    write_tiff(chips / "b.tif", np.zeros((64, 64, 3), np.uint8))
    label(chips, weights, tmp_path, ignore=None)
    assert not (folder / "masks/b.tif").exists()
    assert list(read_index(Paths(tmp_path))[1]["tile"]) == ["pseudo1_a", "pseudo1_c"]


def test_places_and_resolution_of_georeferenced_chips(weights: Exported, tmp_path: Path):
    for number in range(2):
        transform = at_kampala(pixel=0.15) @ Affine.translation(64 * number, 0)
        write_bands(tmp_path / f"test/{number}.tif", noise(64, 64, seed=number).transpose(2, 0, 1), transform)
    label(tmp_path / "test", weights, tmp_path)
    index = read_index(Paths(tmp_path))[1]
    assert set(index["crs"]) == {UTM}
    assert index["left"][1] == index["right"][0] == pytest.approx(index["left"][0] + 64 * 0.15)
    assert index["gsd_m"].tolist() == pytest.approx([0.15, 0.15])
    with rasterio.open(index["mask"][1]) as mask:
        assert (mask.crs.to_string(), mask.transform.c) == (UTM, index["left"][1])
    write_bands(tmp_path / "far/0.tif", noise(64, 64).transpose(2, 0, 1), at_kampala(pixel=0.5))
    with pytest.raises(DataError, match=r"chip 0 has 0\.5 m per pixel, and the weights were trained at 0\.15"):
        label(tmp_path / "far", weights, tmp_path, "far")
    resized = replace(AS_SHIPPED, gsd_m=0.5)
    assert label(tmp_path / "far", weights, tmp_path, "far", prediction=resized).kept == 1
    assert read_index(Paths(tmp_path), "far")[1]["gsd_m"][0] == pytest.approx(0.5)


def test_folders_of_others_are_refused(chips: Path, weights: Exported, tmp_path: Path):
    other = tmp_path / "data/tier1/index.csv"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    with pytest.raises(OutputError, match=r"was not written by kit pseudo: it holds index\.csv"):
        label(chips, weights, tmp_path, "tier1")
    assert other.read_text() == "mine"
    with pytest.raises(OutputError, match="lies inside the input"):
        pseudo_set.label_chips(chips, weights.path, Paths(tmp_path / "test"), "pseudo1", PseudoOptions(AS_SHIPPED))
    label(chips, weights, tmp_path)
    (chips / "a.tif").rename(chips / "z.tif")
    with pytest.raises(DataError, match=r"holds 1 labels of another test set, first a\.tif"):
        label(chips, weights, tmp_path)
    with locked(tmp_path / "data/new"), pytest.raises(KitError, match="another process writes"):
        label(chips, weights, tmp_path, "new")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"ignore": (0.6, 0.4)}, r"--ignore 0\.6,0\.4 is not a range"), ({"ignore": (0.5, 0.5)}, "is not a range"),
     ({"ignore": (-0.1, 0.5)}, "is not a range"), ({"ignore": (float("nan"), 0.5)}, "is not a range"),
     ({"min_confidence": 1.5}, r"--min-confidence 1\.5 is out of range"), ({"round": 0}, "--round 0 is out of range"),
     ({"images": "jpg"}, "image format 'jpg' is unknown")],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, object], message: str, chips: Path, tmp_path: Path):
    """They are refused before anything is read: here there are no weights."""
    with pytest.raises(DataError, match=message):
        pseudo_set.label_chips(chips, tmp_path / "none.pt", Paths(tmp_path), "pseudo1", PseudoOptions(**options))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("text", ["", "0.5", "a,b", "0.1,0.2,0.3"])
def test_ranges_that_cannot_be_read(text: str):
    with pytest.raises(DataError, match="is not a range of probabilities"):
        parse_ignore(text)
    assert (parse_ignore("none"), parse_ignore("0.2,0.8")) == (None, (0.2, 0.8))


def test_no_chips_and_weights_of_other_classes(
    chips: Path, weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CatalogError, match="no chips in"):
        label(tmp_path / "empty", weights, tmp_path)
    loaded = load_weights(weights.path)
    roads = replace(loaded, card=replace(loaded.card, classes=("background", "road")))
    monkeypatch.setattr(pseudo_set, "load_weights", lambda *_: roads)
    with pytest.raises(WeightsError, match="trained on the classes background, road, expected background, building"):
        label(chips, weights, tmp_path)


def test_expected_quality(weights: Exported, tmp_path: Path):
    tiles = {f"t{seed}": draw(seed) for seed in range(3)}
    folder = write_tiles(tmp_path, "tiny/fold0", tiles)
    (folder / "best.safetensors").write_bytes(b"network")
    member = replace(record(0), sha256=sha256_of(folder / "best.safetensors"))
    card = replace(load_weights(weights.path).card, members=(member,))
    quality = expected_quality(card, Paths(tmp_path), PseudoOptions())
    kept = agreeing = known = hit = union = 0
    for truth, found in tiles.values():
        shown, probability = truth != IGNORE, found / 255
        labelled = shown & ((probability < 0.35) | (probability > 0.65))
        building = probability > 0.65
        known, kept = known + shown.sum(), kept + labelled.sum()
        agreeing += (labelled & (building == (truth == 1))).sum()
        hit += (labelled & building & (truth == 1)).sum()
        union += (labelled & (building | (truth == 1))).sum()
    assert (quality.tiles, quality.kept_tiles, quality.runs) == (3, 3, ("tiny/fold0",))
    assert quality.kept_fraction == pytest.approx(kept / known)
    assert quality.agreement == pytest.approx(agreeing / kept)
    assert quality.jaccard == pytest.approx(hit / union)
    assert "expected quality, from 3 validation tiles: " in str(quality)
    assert "0 tiles kept" in quality_line(card, Paths(tmp_path), PseudoOptions(min_confidence=0.999))
    (folder / "best.safetensors").write_bytes(b"trained again")
    with pytest.raises(RunError, match=r"no out-of-fold predictions of the runs .* \(tiny/fold0\)"):
        expected_quality(card, Paths(tmp_path), PseudoOptions())


def test_the_command_and_a_training_on_its_data(chips: Path, weights: Exported, tmp_path: Path, cli: Cli):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/tiny.py").write_text(TINY_RECIPE)
    asked = (chips, "--weights", weights.path, "--name", "pseudo1", "--ignore", "none", "--no-tune", "--root", tmp_path)
    code, out, err = cli("pseudo", *asked)
    assert (code, out.strip()) == (0, str(tmp_path / "data/pseudo1"))
    assert "3 of 4 chips kept, 1 left out (no imagery)" in err
    assert "expected quality unknown: no out-of-fold predictions" in err
    code, _, err = cli("run", "tiny", "--root", tmp_path, "--no-pretrained")
    assert code == 1
    assert "no tile of the data set belongs to a fold" in err
    assert cli("folds", "pseudo1", "--by", "tile", "-k", 2, "--root", tmp_path)[0] == 0
    folds = read_index(Paths(tmp_path))[1]["fold"].tolist()
    assert set(folds) == {0, 1}
    assert cli("pseudo", *asked, "--round", 2)[0] == 0
    assert read_index(Paths(tmp_path))[1]["fold"].tolist() == folds  # those of kit folds stay
    assert cli("run", "tiny", "--fold", 0, "--root", tmp_path, "--no-pretrained", "--no-export")[0] == 0
    settings = json.loads((tmp_path / "runs/tiny/fold0/settings.json").read_text())
    assert settings["data"] == "pseudo1"


def test_the_quality_is_that_of_the_weights_own_runs(chips: Path, workplace: Path, cli: Cli):
    assert cli("run", "tiny", "--fold", 0, "--no-pretrained", "--root", workplace)[0] == 0
    tiles = int((read_index(Paths(workplace))[1]["fold"] == 0).sum())
    asked = (chips, "--weights", "tiny", "--ignore", "none", "--no-tune", "--gsd", 1, "--root", workplace)
    code, _, err = cli("pseudo", *asked, "--name", "pseudo1")
    assert code == 0
    assert f"expected quality, from {tiles} validation tiles: 100.0% of the pixels labelled, " in err


def test_labels_by_networks_that_held_the_fold_out_are_no_leak(
    chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    label(chips, export_tiny(tmp_path / "weights", seeds=(3,)), tmp_path)  # a member of fold 0
    capsys.readouterr()
    _report_labels_of_validation([AddedSet("pseudo1")], (0,), Paths(tmp_path))
    assert capsys.readouterr().err == ""
    _report_labels_of_validation([AddedSet("pseudo1")], (0, 1), Paths(tmp_path))
    assert "the validation tiles of fold 1: " in capsys.readouterr().err


@pytest.mark.parametrize("soft", [False, True])
def test_pseudo_labels_train_beside_the_true_ones(
    chips: Path, weights: Exported, workplace: Path, cli: Cli, soft: bool
):
    label(chips, weights, workplace, soft=soft, prediction=replace(AS_SHIPPED, gsd_m=0.5))
    asked = ("--data", "train_tier_1", "--add", "pseudo1", "--fold", 0, "--no-export", "--no-pretrained")
    code, _, err = cli("run", "tiny", *asked, "--steps", 2, "--root", workplace)
    assert code == 0, err
    folder = workplace / "runs/tiny/fold0"
    assert "pseudo1" in (folder / "settings.json").read_text()
    assert "pseudo1 was labelled by networks that may have been trained on the validation tiles of fold 0: " in err
    held_out = {path.stem for path in (folder / "oof").iterdir()}
    assert held_out
    assert not {tile for tile in held_out if tile.startswith("pseudo1")}
