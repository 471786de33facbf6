import csv
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from deploy_fakes import export_tiny, noise, write_tiff
from PIL import Image

from kit.data.rasters import read_image
from kit.deploy.engine import tuning
from kit.deploy.engine.backends import EngineOptions, NetworkSetting
from kit.deploy.engine.predict import predict_image
from kit.deploy.mosaics import wide
from kit.deploy.submission import submit as room
from kit.deploy.submission.mask_tiff import decode_mask
from kit.deploy.submission.score import score
from kit.deploy.submission.submit import SubmitOptions, Summary, check_submission, find_chips
from kit.deploy.weights.cleaning import Cleaning
from kit.deploy.weights.load import load_weights
from kit.errors import CatalogError, KitError, OutputError, RasterError, SubmissionError, WeightsError
from kit.pipeline.export import Exported
from kit.system.files import locked


def submit(test: Path, weights: Path, out: Path, tuning: bool = False) -> Summary:
    """As shipped: what a machine chooses to compute faster is no concern of most tests here."""
    return room.submit(test, weights, out, SubmitOptions(EngineOptions(tuning=tuning)))


def outputs(folder: Path) -> dict[str, str]:
    """Hashes of the files that a submission hands over."""
    files = [*folder.glob("*.*"), folder.with_name(f"{folder.name}.tgz")]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files if not p.name.startswith(".")}


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the chips that are read from here on."""
    names: list[str] = []

    def reading(path: Path) -> np.ndarray:
        names.append(path.stem)
        return read_image(path)

    monkeypatch.setattr(wide, "read_image", reading)
    monkeypatch.setattr(room, "read_image", reading)  # to be tuned on
    return names


def test_chips_of_a_folder(chips: Path):
    (chips / ".b.123.part.tif").write_bytes(b"")
    assert [(chip.id, chip.path) for chip in find_chips(chips)] == [(n, chips / f"{n}.tif") for n in "abcd"]


@pytest.mark.parametrize("asset", ["image", "visual"])
def test_chips_of_a_catalogue(catalog: Callable[..., Path], chips: Path, asset: str):
    root = catalog(asset)
    for test in (root, root / "catalog.json"):
        found = find_chips(test)
        assert [chip.id for chip in found] == list("abcd")
        assert all(chip.path.resolve() == chips / f"{chip.id}.tif" for chip in found)


def test_no_test_set(tmp_path: Path):
    with pytest.raises(CatalogError, match="no test set"):
        find_chips(tmp_path / "nowhere")
    with pytest.raises(CatalogError, match="no chips in"):
        find_chips(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not a STAC catalogue"), ('{"type": "Feature"}', "is not a STAC catalogue")]
)
def test_a_broken_catalogue(tmp_path: Path, text: str, message: str):
    (tmp_path / "catalog.json").write_text(text)
    with pytest.raises(CatalogError, match=message):
        find_chips(tmp_path)


def test_a_catalogue_whose_item_is_gone(catalog: Callable[..., Path]):
    root = catalog()
    (root / "b" / "b.json").unlink()
    with pytest.raises(CatalogError, match=r"b\.json"):
        find_chips(root)


def test_an_item_without_an_image(catalog: Callable[..., Path]):
    root = catalog()
    item = json.loads((root / "b" / "b.json").read_text())
    item["assets"].pop("image")
    (root / "b" / "b.json").write_text(json.dumps(item))
    with pytest.raises(CatalogError, match="item b has no asset `image`"):
        find_chips(root)


def test_an_id_twice_and_an_id_that_leaves_the_folder(catalog: Callable[..., Path]):
    root = catalog()
    text = (root / "b" / "b.json").read_text()
    (root / "b" / "b.json").write_text(text.replace('"id": "b"', '"id": "a"'))
    with pytest.raises(CatalogError, match=r"1 chip ids .* occur twice, first a"):
        find_chips(root)
    (root / "b" / "b.json").write_text(text.replace('"id": "b"', '"id": "../b"'))
    with pytest.raises(CatalogError, match=r"cannot name a mask, first '\.\./b'"):
        find_chips(root)


def test_what_submit_writes(chips: Path, tiny_weights: Exported, tmp_path: Path):
    out = tmp_path / "submissions" / "one"
    summary = submit(chips, tiny_weights.path, out)
    weights = load_weights(tiny_weights.path)
    rows = {row["chip"]: row for row in csv.DictReader((out / "submission.csv").open())}
    assert list(rows) == list("abcd")
    total = 0
    for name, row in rows.items():
        probability = predict_image(weights, read_image(chips / f"{name}.tif"))
        with rasterio.open(out / f"{name}.tif") as dataset:
            mask = dataset.read(1)
            assert (dataset.count, dataset.dtypes[0], dataset.compression.name) == (1, "uint8", "deflate")
        assert np.array_equal(mask, probability > 0.5)
        assert int(row["building_px"]) == mask.sum()
        assert float(row["building_fraction"]) == pytest.approx(mask.mean(), abs=1e-6)
        assert float(row["mean_confidence"]) == pytest.approx(np.maximum(probability, 1 - probability).mean(), abs=1e-6)
        total += mask.sum()
        if name == "c":
            assert mask[:, :12].max() == 0
    assert summary.path == tmp_path / "submissions" / "one.tgz"
    assert (summary.chips, summary.empty) == (4, 0)
    assert summary.building_fraction == pytest.approx(total / (33 * 50 + 64 * 64 + 40 * 31 + 17 * 90))
    assert check_submission(out, find_chips(chips)).chips == 4


def test_the_archive_is_flat_sorted_and_without_time(chips: Path, tiny_weights: Exported, tmp_path: Path):
    archive = submit(chips, tiny_weights.path, tmp_path / "one").path
    with tarfile.open(archive) as opened:
        assert [info.name for info in opened] == ["a.tif", "b.tif", "c.tif", "d.tif"]
        assert all((info.mtime, info.uid, info.gid, info.uname) == (0, 0, 0, "") for info in opened)
    assert archive.read_bytes()[4:8] == bytes(4)
    other = submit(chips, tiny_weights.path, tmp_path / "two").path
    assert archive.read_bytes() == other.read_bytes()


def test_no_warning_reaches_the_user(chips: Path, tiny_weights: Exported, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        submit(chips, tiny_weights.path, tmp_path / "one")


def test_a_rerun_predicts_nothing(chips: Path, tiny_weights: Exported, tmp_path: Path, predicted: list[str]):
    submit(chips, tiny_weights.path, tmp_path / "one")
    before = outputs(tmp_path / "one")
    predicted.clear()
    submit(chips, tiny_weights.path, tmp_path / "one")
    assert predicted == []
    assert outputs(tmp_path / "one") == before


def test_ctrl_c_loses_nothing(chips: Path, tiny_weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    submit(chips, tiny_weights.path, tmp_path / "whole")

    def stopping(path: Path) -> np.ndarray:
        if path.stem == "c":
            raise KeyboardInterrupt
        return read_image(path)

    out = tmp_path / "cut" / "whole"
    monkeypatch.setattr(wide, "read_image", stopping)
    with pytest.raises(KeyboardInterrupt):
        submit(chips, tiny_weights.path, out)
    assert sorted(p.name for p in out.iterdir()) == [".progress.csv", "a.tif", "b.tif"]
    with (out / ".progress.csv").open("a") as file:
        file.write("c,half a ro")  # as a kill leaves it
    (out / ".c.99.part.tif").write_bytes(b"half")
    read: list[str] = []
    monkeypatch.setattr(wide, "read_image", lambda path: (read.append(path.stem), read_image(path))[1])
    submit(chips, tiny_weights.path, out)
    assert read == ["c", "d"]
    assert outputs(out) == outputs(tmp_path / "whole")
    assert not list(out.glob("*.part.*"))


@pytest.mark.parametrize(("stands", "read_again"), [(True, "cd"), (False, "bcd")])
def test_a_mask_that_stands_is_never_predicted_again(
    chips: Path, tiny_weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predicted: list[str],
    stands: bool, read_again: str,
):  # fmt: skip
    replace, written = Path.replace, []

    def cut(temporary: Path, target: Path) -> Path:
        written.append(target.name)
        if "b.tif" not in written or (stands and target.name == "b.tif"):
            replace(temporary, target)
        if "b.tif" in written:
            raise KeyboardInterrupt
        return target

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            submit(chips, tiny_weights.path, tmp_path / "one")
    assert (tmp_path / "one/b.tif").is_file() == stands
    predicted.clear()
    submit(chips, tiny_weights.path, tmp_path / "one")
    assert predicted == list(read_again)


def test_other_weights_predict_all_again(chips: Path, tiny_weights: Exported, tmp_path: Path, predicted: list[str]):
    other = export_tiny(tmp_path / "weights", views="none").path
    submit(chips, tiny_weights.path, tmp_path / "one")
    predicted.clear()
    submit(chips, other, tmp_path / "one")
    assert predicted == list("abcd")
    submit(chips, other, tmp_path / "fresh" / "one")
    assert outputs(tmp_path / "one") == outputs(tmp_path / "fresh" / "one")


def test_a_changed_image_and_a_lost_mask_are_predicted_again(
    chips: Path, tiny_weights: Exported, tmp_path: Path, predicted: list[str]
):
    submit(chips, tiny_weights.path, tmp_path / "one")
    predicted.clear()
    write_tiff(chips / "b.tif", noise(20, 30, 3, 9))
    (tmp_path / "one" / "d.tif").unlink()
    submit(chips, tiny_weights.path, tmp_path / "one")
    assert predicted == ["b", "d"]


def test_a_broken_chip_is_named_and_the_others_kept(chips: Path, tiny_weights: Exported, tmp_path: Path):
    data = (chips / "c.tif").read_bytes()
    (chips / "c.tif").write_bytes(data[:400])
    with pytest.raises(RasterError, match=r"cannot read .*c\.tif"):
        submit(chips, tiny_weights.path, tmp_path / "one")
    assert sorted(p.name for p in (tmp_path / "one").glob("*.*") if p.name[0] != ".") == ["a.tif", "b.tif"]
    assert not (tmp_path / "one.tgz").exists()


def test_a_chip_that_is_not_there(catalog: Callable[..., Path], chips: Path, tiny_weights: Exported, tmp_path: Path):
    root = catalog()
    (chips / "b.tif").unlink()
    with pytest.raises(CatalogError, match=r"1 of 4 chips in .* are not regular files, first .*b\.tif"):
        submit(root, tiny_weights.path, tmp_path / "one")


def test_missing_weights_leave_no_folder(chips: Path, tmp_path: Path):
    with pytest.raises(WeightsError, match="no weights"):
        submit(chips, tmp_path / "none.pt", tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_another_test_set_of_that_name(chips: Path, tiny_weights: Exported, tmp_path: Path):
    submit(chips, tiny_weights.path, tmp_path / "one")
    write_tiff(tmp_path / "others" / "z.tif", noise(20, 20))
    with pytest.raises(SubmissionError, match=r"4 masks of another test set, first a\.tif") as error:
        submit(tmp_path / "others", tiny_weights.path, tmp_path / "one")
    assert "--name" in error.value.hint


def mask(height: int = 20, width: int = 30) -> np.ndarray:
    return (noise(height, width, 1)[..., 0] > 128).astype(np.uint8)


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Masks for the chips x and y, as yet without fault."""
    for name in "xy":
        write_tiff(tmp_path / "images" / f"{name}.tif", noise(20, 30))
        write_tiff(tmp_path / "masks" / f"{name}.tif", mask())
    return tmp_path / "masks"


def packed(folder: Path, kind: str, prefix: str = "") -> Path:
    """The folder as an archive of one kind."""
    path = folder.with_suffix(kind)
    if kind == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.iterdir():
                archive.write(file, prefix + file.name)
    else:
        with tarfile.open(path, "w:gz") as tarred:
            for file in folder.iterdir():
                tarred.add(file, prefix + file.name)
    return path


@pytest.mark.parametrize("kind", [".zip", ".tgz", ".tar.gz"])
def test_archives_are_checked(masks: Path, kind: str):
    (masks / "y.tif").unlink()
    write_tiff(masks / "y.tif", np.zeros((20, 30), np.uint8))
    summary = check_submission(packed(masks, kind), find_chips(masks.parent / "images"))
    assert (summary.chips, summary.empty) == (2, 1)
    assert summary.building_fraction == pytest.approx(mask().mean() / 2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: (m / "x.tif").unlink(), r"1 fault:\n  x.tif is missing"),
        (lambda m: write_tiff(m / "z.tif", mask()), "z.tif is not <chip>.tif of the test set"),
        (lambda m: write_tiff(m / "x.tif", mask(21)), "x.tif is 30 x 21 px, its chip 30 x 20"),
        (lambda m: write_tiff(m / "x.tif", mask() * 255), "x.tif holds the value 255"),
        (lambda m: write_tiff(m / "x.tif", mask().astype(np.uint16)), "x.tif is uint16, expected uint8"),
        (lambda m: write_tiff(m / "x.tif", noise(20, 30)), "x.tif has 3 bands, expected 1"),
        (lambda m: (m / "x.tif").write_bytes(b"no"), "x.tif is not a readable TIFF"),
    ],
)
@pytest.mark.parametrize("kind", ["", ".zip"])
def test_faults_are_listed(masks: Path, spoil, message: str, kind: str):
    spoil(masks)
    found = packed(masks, kind) if kind else masks
    with pytest.raises(SubmissionError, match=message):
        check_submission(found, find_chips(masks.parent / "images"))


def test_an_archive_must_be_flat(masks: Path):
    with pytest.raises(SubmissionError, match=r"4 faults:\n  x.tif is missing(?s:.*)masks/x.tif lies in a folder"):
        check_submission(packed(masks, ".tgz", "masks/"), find_chips(masks.parent / "images"))


def test_a_doubled_name(masks: Path):
    path = packed(masks, ".tgz")
    with tarfile.open(path, "w:gz") as archive:
        for name in ("x.tif", "y.tif", "x.tif"):
            archive.add(masks / name, name)
    with pytest.raises(SubmissionError, match=r"x.tif occurs 2 times"):
        check_submission(path, find_chips(masks.parent / "images"))


def test_no_archive(masks: Path, tmp_path: Path):
    images = find_chips(tmp_path / "images")
    with pytest.raises(SubmissionError, match="no folder or archive"):
        check_submission(tmp_path / "none.tgz", images)
    path = packed(masks, ".tgz")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(KitError, match=r"not a readable \.tgz or \.zip"):
        check_submission(path, images)


def test_a_tuned_submission_is_not_mixed_with_another(
    chips: Path, tiny_weights: Exported, tmp_path: Path, predicted: list[str], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    submit(chips, tiny_weights.path, out)
    shipped = outputs(out)
    assert predicted == list("abcd")
    setting = NetworkSetting("channels_last", views=4)
    monkeypatch.setattr(tuning, "choose", lambda weights, core, images, engine: setting)
    predicted.clear()
    submit(chips, tiny_weights.path, out, tuning=True)
    assert predicted == [*"abc", *"abcd"]  # three to tune on, and all again
    assert {name: found for name, found in outputs(out).items() if name.endswith(".tif")}.items() <= shipped.items()
    predicted.clear()
    submit(chips, tiny_weights.path, out, tuning=True)
    assert predicted == []  # finished


def test_another_engine_untuned(chips: Path, tiny_weights: Exported, tmp_path: Path):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    submit(chips, tiny_weights.path, tmp_path / "torch")
    room.submit(
        chips, tiny_weights.path, tmp_path / "openvino", SubmitOptions(EngineOptions(engine="openvino", tuning=False))
    )
    for name in "abcd":
        files = [tmp_path / engine / f"{name}.tif" for engine in ("torch", "openvino")]
        first, second = (decode_mask(file.read_bytes(), file.name) for file in files)
        assert (first == second).mean() > 0.999


def test_ranks_share_the_chips(
    chips: Path, tiny_weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predicted: list[str]
):
    submit(chips, tiny_weights.path, tmp_path / "alone" / "one")
    out = tmp_path / "one"
    out.mkdir()
    monkeypatch.setattr(room, "ranks", lambda: 2)
    monkeypatch.setattr(room, "rank", lambda: 1)
    said = iter([None, [], {}, list("abcd"), None])  # by rank 0: finished, mosaics, factors, missing chips, summary
    monkeypatch.setattr(room, "agreed", lambda _: next(said))
    predicted.clear()
    submit(chips, tiny_weights.path, out)
    assert predicted == ["c", "d"]
    assert sorted(path.name for path in out.iterdir()) == [".progress.1.csv", "c.tif", "d.tif"]
    monkeypatch.setattr(room, "rank", lambda: 0)
    monkeypatch.setattr(room, "ranks", lambda: 1)
    monkeypatch.setattr(room, "agreed", lambda value: value)
    predicted.clear()
    submit(chips, tiny_weights.path, out)
    assert predicted == ["a", "b"]
    assert outputs(out) == outputs(tmp_path / "alone" / "one")
    assert not list(out.glob(".progress.*.csv"))


@pytest.mark.parametrize("kind", ["transparent", "black"])
def test_chips_without_ground_cost_nothing(
    chips: Path, tiny_weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    empty = noise(20, 30, 4)
    empty[..., 3] = 0
    write_tiff(chips / "c.tif", empty if kind == "transparent" else np.zeros((20, 30, 3), np.uint8))
    weights = load_weights(tiny_weights.path)
    asked: list[tuple[int, ...]] = []
    whole = weights.module.__call__
    monkeypatch.setattr(room, "load_weights", lambda *_: dataclasses.replace(weights, module=counted(whole, asked)))
    summary = submit(chips, tiny_weights.path, tmp_path / "one")
    assert (summary.chips, len(asked)) == (4, 3)
    assert not decode_mask((tmp_path / "one/c.tif").read_bytes(), "c").any()
    row = next(row for row in csv.DictReader((tmp_path / "one/submission.csv").open()) if row["chip"] == "c")
    assert (row["building_px"], row["mean_confidence"]) == ("0", "1.000000")


def counted(module: Callable[..., torch.Tensor], asked: list[tuple[int, ...]]) -> Callable[..., torch.Tensor]:
    """Returns the module, and notes the shapes that it is asked for."""

    def run(x: torch.Tensor) -> torch.Tensor:
        asked.append(tuple(x.shape))
        return module(x)

    return run


def test_tuning_looks_at_ground(chips: Path, tiny_weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_tiff(chips / "a.tif", np.zeros((20, 30, 3), np.uint8))
    seen: list[int] = []
    monkeypatch.setattr(tuning, "tune", lambda weights, samples, engine: (seen.append(len(samples())), weights)[1])
    submit(chips, tiny_weights.path, tmp_path / "one", tuning=True)
    assert seen == [3]


@pytest.mark.slow
def test_two_processes_hand_over_what_one_does(chips: Path, tiny_weights: Exported, tmp_path: Path):
    made = []
    for nproc in ("1", "2"):
        root = tmp_path / nproc
        command = [sys.executable, "-m", "kit", "submit", str(chips), "--weights", str(tiny_weights.path), "--no-tune"]
        subprocess.run(
            [*command, "--root", str(root), "--nproc", nproc],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=240, capture_output=True,
        )  # fmt: skip
        made.append(outputs(root / "submissions" / "tiny-chips"))
    assert made[0] == made[1]
    assert len(made[0]) == 6  # four masks, the table, the archive


@pytest.mark.parametrize(("number", "looked"), [(3, 3), (20, 8), (100, 10), (11_481, 24)])
def test_chips_that_are_looked_at_are_evenly_spread(number: int, looked: int):
    chips = [room.Chip(str(place), Path(f"{place}.tif")) for place in range(number)]
    places = [int(chip.id) for chip in room._sample(chips)]
    assert (len(places), places[0], places[-1]) == (looked, 0, number - 1)
    assert max(np.diff(places)) - min(np.diff(places)) <= 1


def test_chips_are_never_replaced_by_masks(chips: Path, tiny_weights: Exported):
    before = {path.name: path.read_bytes() for path in chips.iterdir()}
    for out in (chips, chips / "masks", chips.parent):
        with pytest.raises(OutputError, match=r"would replace the input|lies inside the input"):
            submit(chips, tiny_weights.path, out)
    assert {path.name: path.read_bytes() for path in chips.iterdir()} == before


def test_a_folder_or_an_archive_of_somebody_else(chips: Path, tiny_weights: Exported, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.tif").write_text("mine")
    with pytest.raises(OutputError, match=r"was not written by kit submit: it holds a\.tif"):
        submit(chips, tiny_weights.path, tmp_path / "out")
    assert (tmp_path / "out" / "a.tif").read_text() == "mine"
    (tmp_path / "packed.tgz").write_text("mine")
    with pytest.raises(OutputError, match=r"packed\.tgz exists"):
        submit(chips, tiny_weights.path, tmp_path / "packed")
    assert (tmp_path / "packed.tgz").read_text() == "mine"


ALL_WAYS = SubmitOptions(EngineOptions(adaptive=True), mosaic=True, scale=True)


@pytest.mark.parametrize("options", [SubmitOptions(EngineOptions(tuning=False)), ALL_WAYS], ids=["plain", "all"])
def test_a_finished_submission_returns_at_once(
    chips: Path, tiny_weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: SubmitOptions
):
    first = room.submit(chips, tiny_weights.path, tmp_path / "one", options)

    def needless(*_: object) -> None:
        raise AssertionError("work on a finished submission")

    for name in ("load_weights", "known_mosaics", "find_resolutions", "read_image", "write_tgz", "check_submission"):
        monkeypatch.setattr(room, name, needless)
    with locked(tmp_path / "one"):  # it writes nothing, so it need not wait for anybody
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert room.submit(chips, tiny_weights.path, tmp_path / "one", options) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(AssertionError, match="work on"):
        changed = SubmitOptions(options.engine, cleaning=Cleaning(0.4), mosaic=options.mosaic, scale=options.scale)
        room.submit(chips, tiny_weights.path, tmp_path / "one", changed)


@pytest.mark.parametrize("lost", ["one.tgz", "one/submission.csv", "one/.finished.json", "one/.progress.csv"])
def test_what_is_lost_of_a_finished_submission_comes_again(
    chips: Path, tiny_weights: Exported, tmp_path: Path, predicted: list[str], lost: str
):
    submit(chips, tiny_weights.path, tmp_path / "one")
    before = outputs(tmp_path / "one")
    predicted.clear()
    (tmp_path / lost).unlink()
    submit(chips, tiny_weights.path, tmp_path / "one")
    assert outputs(tmp_path / "one") == before
    assert predicted == []  # without .progress.csv, too: the submission is still whole


def test_run_lengths_are_added_without_packing_again(chips: Path, tiny_weights: Exported, tmp_path: Path):
    submit(chips, tiny_weights.path, tmp_path / "one")
    before = (tmp_path / "one.tgz").stat().st_mtime_ns
    room.submit(chips, tiny_weights.path, tmp_path / "one", SubmitOptions(EngineOptions(tuning=False), rle=True))
    assert (tmp_path / "one/rle.csv").is_file()
    assert (tmp_path / "one.tgz").stat().st_mtime_ns == before


def test_a_damaged_progress_file_changes_nothing(chips: Path, tiny_weights: Exported, tmp_path: Path):
    submit(chips, tiny_weights.path, tmp_path / "one")
    before = outputs(tmp_path / "one")
    data = (tmp_path / "one/.progress.csv").read_bytes()
    for spoilt in (b"", data[:200], data.replace(b"a,", b"\xff,"), data.replace(b"33,50", b"33,5"), b'"' + data):
        (tmp_path / "one/.finished.json").unlink()
        (tmp_path / "one/.progress.csv").write_bytes(spoilt)
        submit(chips, tiny_weights.path, tmp_path / "one")
        assert outputs(tmp_path / "one") == before


def test_two_at_once(chips: Path, tiny_weights: Exported, tmp_path: Path):
    with locked(tmp_path / "one"), pytest.raises(KitError, match=r"another process writes .*one"):
        submit(chips, tiny_weights.path, tmp_path / "one")
    assert not (tmp_path / "one").exists()
    submit(chips, tiny_weights.path, tmp_path / "one")


NAMES = ["a,b", 'say "x"', "=1+1", "-2", "ü ß", "北"]


def test_names_of_chips(tiny_weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where the run is interrupted: rows are read again."""
    for seed, name in enumerate(NAMES):
        write_tiff(tmp_path / "chips" / f"{name}.tif", noise(20, 30, 3, seed))
    expected = sorted(NAMES)

    def stopping(path: Path) -> np.ndarray:
        if path.stem == expected[4]:
            raise KeyboardInterrupt
        return read_image(path)

    with monkeypatch.context() as patch:
        patch.setattr(wide, "read_image", stopping)
        with pytest.raises(KeyboardInterrupt):
            submit(tmp_path / "chips", tiny_weights.path, tmp_path / "one")
    read: list[str] = []
    monkeypatch.setattr(wide, "read_image", lambda path: (read.append(path.stem), read_image(path))[1])
    options = SubmitOptions(EngineOptions(tuning=False), rle=True)
    room.submit(tmp_path / "chips", tiny_weights.path, tmp_path / "one", options)
    assert read == expected[4:]
    with (tmp_path / "one/submission.csv").open(newline="", encoding="utf-8") as file:
        assert [row["chip"] for row in csv.DictReader(file)] == expected
    chips = find_chips(tmp_path / "chips")
    assert check_submission(tmp_path / "one/rle.csv", chips) == dataclasses.replace(
        check_submission(tmp_path / "one.tgz", chips), path=tmp_path / "one/rle.csv"
    )


@pytest.mark.parametrize("kind", ["file", "link", "file above"])
def test_what_stands_in_the_way_of_the_folder(chips: Path, tmp_path: Path, kind: str):
    """It is noticed before the weights are loaded: here there are none."""
    out = tmp_path / "submissions" / "one"
    if kind == "file above":
        out.parent.write_text("mine")
    else:
        out.parent.mkdir()
        out.write_text("mine") if kind == "file" else out.symlink_to(tmp_path / "nowhere")
    message = "is a dangling link" if kind == "link" else "is a file, expected a folder"
    with pytest.raises(OutputError, match=message):
        submit(chips, tmp_path / "none.pt", out)


def test_pictures_in_folders(tiny_weights: Exported, tmp_path: Path):
    """PNG and JPEG chips: masks are .tif, of the size that a picture has once it is upright."""
    images = {"north/a.png": noise(20, 30), "south/b.jpg": noise(33, 17), "c.jpeg": noise(18, 40)}
    for name, image in images.items():
        (tmp_path / "chips" / name).parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[274] = 6 if name == "c.jpeg" else 1
        Image.fromarray(image).save(tmp_path / "chips" / name, exif=exif)
    submit(tmp_path / "chips", tiny_weights.path, tmp_path / "one")
    sizes = {}
    for name in "abc":
        sizes[name] = decode_mask((tmp_path / f"one/{name}.tif").read_bytes(), name).shape
    assert sizes == {"a": (20, 30), "b": (33, 17), "c": (40, 18)}
    assert check_submission(tmp_path / "one.tgz", find_chips(tmp_path / "chips")).chips == 3
    assert score(tmp_path / "one.tgz", tmp_path / "one").pooled == 1


def test_a_test_set_that_changed(chips: Path, tiny_weights: Exported, tmp_path: Path, predicted: list[str]):
    submit(chips, tiny_weights.path, tmp_path / "one")
    write_tiff(chips / "e.tif", noise(20, 20))
    predicted.clear()
    assert submit(chips, tiny_weights.path, tmp_path / "one").chips == 5
    assert predicted == ["e"]
    (chips / "e.tif").unlink()
    with pytest.raises(SubmissionError, match=r"1 masks of another test set, first e\.tif"):
        submit(chips, tiny_weights.path, tmp_path / "one")


def test_a_mask_that_was_damaged_is_named_with_the_remedy(chips: Path, tiny_weights: Exported, tmp_path: Path):
    submit(chips, tiny_weights.path, tmp_path / "one")
    before = outputs(tmp_path / "one")
    (tmp_path / "one/b.tif").write_bytes(b"no")
    with pytest.raises(SubmissionError, match=r"b\.tif is not a readable TIFF") as error:
        submit(chips, tiny_weights.path, tmp_path / "one")
    assert error.value.hint == f"remove these masks from {tmp_path / 'one'}, and run kit submit again"
    (tmp_path / "one/b.tif").unlink()
    submit(chips, tiny_weights.path, tmp_path / "one")
    assert outputs(tmp_path / "one") == before


def test_a_resolution_cannot_be_given_and_estimated():
    with pytest.raises(KitError, match="--scale estimates the resolution that --gsd gives"):
        SubmitOptions(scale=True, gsd_m=0.1)
