import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
from deploy_fakes import write_tiff

from kit.data.masks import Counts
from kit.deploy.submission.score import score
from kit.errors import ScoreError


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and truth of two 4 x 4 px chips; a: tp 4, fp 2, fn 2, two pixels ignored; b: both empty."""
    truth, mask = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    truth[0], mask[0] = 1, 1  # 4 found
    truth[1, :2] = 1  # 2 missed
    mask[2, :2] = 1  # 2 invented
    truth[3, :2], mask[3, :2] = 255, 1  # 2 without data
    for name, arrays in {"a": (mask, truth), "b": (mask * 0, truth * 0)}.items():
        for folder, array in zip(("predictions", "truth"), arrays, strict=True):
            write_tiff(tmp_path / folder / f"{name}.tif", array)
    return tmp_path / "predictions", tmp_path / "truth"


def test_counts_and_pooled(folders: tuple[Path, Path]):
    scored = score(*folders)
    assert scored.chips == {"a": Counts(4, 2, 2), "b": Counts(0, 0, 0)}
    assert scored.pooled == 0.5
    assert scored.chips["b"].jaccard == 1.0
    assert scored.lines() == ["pooled 0.5000"]


def test_scenes(folders: tuple[Path, Path]):
    (folders[1] / "chips.csv").write_text("chip,scene\na,south\nb,north\n")
    scored = score(*folders)
    assert scored.lines() == ["scene north 1.0000", "scene south 0.5000", "pooled 0.5000"]
    found = json.loads(scored.to_json())
    assert found["pooled"] == 0.5
    assert found["scenes"]["south"] == {"jaccard": 0.5, "tp": 4, "fp": 2, "fn": 2}
    assert found["chips"]["b"]["jaccard"] == 1.0


def test_a_scene_table_with_other_columns(folders: tuple[Path, Path]):
    (folders[1] / "chips.csv").write_text("id,scene\na,south\n")
    with pytest.raises(ScoreError, match=r"chips\.csv has columns id, scene"):
        score(*folders)


def test_archives_are_matched_by_stem(folders: tuple[Path, Path], tmp_path: Path):
    for folder in folders:
        with tarfile.open(folder.with_suffix(".tgz"), "w:gz") as archive:
            archive.add(folder, folder.name)
    assert score(tmp_path / "predictions.tgz", tmp_path / "truth.tgz").pooled == 0.5
    assert score(tmp_path / "predictions.tgz", folders[1]).pooled == 0.5


def test_masks_may_be_png(folders: tuple[Path, Path], tmp_path: Path):
    for folder in folders:
        (tmp_path / f"png-{folder.name}").mkdir()
        for file in folder.iterdir():
            with rasterio.open(file) as source:
                cv2.imwrite(str(tmp_path / f"png-{folder.name}" / f"{file.stem}.png"), source.read(1))
    assert score(tmp_path / "png-predictions", tmp_path / "png-truth").pooled == 0.5
    assert score(folders[0], tmp_path / "png-truth").pooled == 0.5
    (folders[0] / "a.png").write_bytes(b"a picture for people, beside a.tif")
    assert score(*folders).pooled == 0.5
    (tmp_path / "png-truth/a.png").write_bytes(b"\x89PNG")
    with pytest.raises(ScoreError, match="truth a is not a readable TIFF or PNG"):
        score(folders[0], tmp_path / "png-truth")


def test_what_macos_adds_to_archives_is_left_out(folders: tuple[Path, Path], tmp_path: Path):
    for folder in folders:
        with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
            for file in folder.iterdir():
                archive.write(file, file.name)
                archive.writestr(f"__MACOSX/._{file.name}", b"\0\5\x16\7")
            archive.writestr(".DS_Store", b"")
    assert score(tmp_path / "predictions.zip", tmp_path / "truth.zip").lines() == ["pooled 0.5000"]


def test_a_zip_with_windows_separators(folders: tuple[Path, Path], tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for file in folders[0].iterdir():
            info = zipfile.ZipInfo("x")
            info.filename = f"masks\\{file.name}"
            archive.writestr(info, file.read_bytes())
    assert score(tmp_path / "p.zip", folders[1]).pooled == 0.5


def test_predictions_of_other_names_are_shown(folders: tuple[Path, Path]):
    (folders[0] / "b.tif").rename(folders[0] / "b_mask.tif")
    with pytest.raises(ScoreError, match="first b; 1 masks there have other names, first b_mask"):
        score(*folders)


def test_predictions_without_truth_are_told(folders: tuple[Path, Path]):
    (folders[1] / "b.tif").unlink()
    scored = score(*folders)
    assert scored.lines() == ["without truth: 1 predictions", "pooled 0.5000"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p, t: (p / "b.tif").unlink(), "1 of 2 chips have no prediction in .*, first b"),
        (lambda p, t: write_tiff(p / "b.tif", np.zeros((5, 4), np.uint8)), "1 of 2 .* b is 4 x 5 px, its truth 4 x 4"),
        (
            lambda p, t: write_tiff(p / "b.tif", np.full((4, 4), 255, np.uint8)),
            "prediction a, and 1 hold the value 255",
        ),
        (
            lambda p, t: write_tiff(t / "b.tif", np.full((4, 4), 7, np.uint8)),
            "truth b holds the value 7, expected 0",
        ),
        (lambda p, t: write_tiff(p / "b.tif", np.zeros((4, 4, 3), np.uint8)), "prediction b has 3 bands"),
        (lambda p, t: (t / "b.tif").write_bytes(b"no"), "truth b is not a readable TIFF"),
        (lambda p, t: [file.unlink() for file in t.iterdir()], r"no \.tif or \.png in .*truth"),
    ],
)
def test_what_cannot_be_compared(folders: tuple[Path, Path], spoil, message: str):
    spoil(*folders)
    with pytest.raises(ScoreError, match=message):
        score(*folders)


def test_no_predictions(folders: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(ScoreError, match="no folder or archive"):
        score(tmp_path / "none", folders[1])
    (tmp_path / "a.tgz").write_bytes(b"no")
    with pytest.raises(ScoreError, match="not a readable"):
        score(tmp_path / "a.tgz", folders[1])


def write_masks(folder: Path, masks: dict[str, list[int]]) -> Path:
    """Masks of one row of pixels."""
    for name, values in masks.items():
        write_tiff(folder / f"{name}.tif", np.array([values], np.uint8))
    return folder


TRUTH = {"a": [0, 1, 1, 0], "b": [1, 0, 0, 0]}
FOUND = {"a": [0, 1, 0, 0], "b": [1, 1, 0, 0]}
IN_255 = {"a": [0, 255, 255, 0], "b": [255, 0, 0, 0]}


@pytest.mark.parametrize("times", [1, 255])
@pytest.mark.parametrize("truth", [TRUTH, IN_255])
def test_building_is_255_where_no_mask_holds_1(tmp_path: Path, times: int, truth: dict[str, list[int]]):
    found = {name: [times * value for value in values] for name, values in FOUND.items()}
    scored = score(write_masks(tmp_path / "found", found), write_masks(tmp_path / "truth", truth))
    assert scored.chips == {"a": Counts(1, 0, 1), "b": Counts(1, 1, 0)}
    assert scored.pooled == 0.5


def test_an_empty_prediction_scores_0_against_buildings_of_255(tmp_path: Path):
    found = write_masks(tmp_path / "found", {name: [0, 0, 0, 0] for name in TRUTH})
    assert score(found, write_masks(tmp_path / "truth", IN_255)).pooled == 0


def test_255_is_no_data_where_a_mask_holds_both(tmp_path: Path):
    found = write_masks(tmp_path / "found", FOUND)
    truth = write_masks(tmp_path / "truth", {"a": [0, 1, 255, 255], "b": [255, 0, 255, 255]})
    assert score(found, truth).chips == {"a": Counts(1, 0, 0), "b": Counts(0, 1, 0)}


@pytest.mark.parametrize("kind", ["prediction", "truth"])
def test_masks_of_two_kinds_are_named(tmp_path: Path, kind: str):
    mixed = write_masks(tmp_path / "mixed", TRUTH | {"c": [0, 255, 0, 0]})
    plain = write_masks(tmp_path / "plain", TRUTH | {"c": [0, 1, 0, 0]})
    pair = (mixed, plain) if kind == "prediction" else (plain, mixed)
    with pytest.raises(ScoreError, match=f"2 masks hold 1, first {kind} a, and 1 hold the value 255, first {kind} c"):
        score(*pair)


def test_a_prediction_knows_no_255_beside_1(tmp_path: Path):
    found, truth = write_masks(tmp_path / "found", {"a": [1, 255]}), write_masks(tmp_path / "truth", {"a": [1, 0]})
    with pytest.raises(ScoreError, match="1 masks hold 1, first prediction a, and 1 hold the value 255"):
        score(found, truth)


def test_folders_within_a_folder(tmp_path: Path):
    write_masks(tmp_path / "truth" / "north", {"a": TRUTH["a"]})
    write_masks(tmp_path / "truth" / "south", {"b": TRUTH["b"]})
    found = write_masks(tmp_path / "found", FOUND)
    assert score(found, tmp_path / "truth").pooled == 0.5
    write_masks(tmp_path / "truth" / "south", {"a": TRUTH["a"]})
    with pytest.raises(ScoreError, match=r"truth holds two masks of a: north/a\.tif and south/a\.tif"):
        score(found, tmp_path / "truth")


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"chip,scene\na,\xff\n", "cannot be read"), (b"", ""), (b"chip,scene\na\n", ""), (b"\0", "has columns"),
     (b"chip,scene\n\"a\",x\x00\n", "")],
)  # fmt: skip
def test_damaged_tables_of_scenes(tmp_path: Path, data: bytes, message: str):
    found, truth = write_masks(tmp_path / "found", FOUND), write_masks(tmp_path / "truth", TRUTH)
    (truth / "chips.csv").write_bytes(data)
    if message:
        with pytest.raises(ScoreError, match=rf"chips\.csv {message}"):
            score(found, truth)
    else:
        assert score(found, truth).pooled == 0.5


def test_buildings_stand_between_the_lines_of_pixels(folders: tuple[Path, Path], cli: Callable[..., Any]):
    """Chip a: one of two buildings matches, one is invented; without scenes, pooled is the first line and the last."""
    code, out, _ = cli("score", *folders)
    assert code == 0
    first, columns, row, last = out.splitlines()
    assert first == last == "pooled 0.5000"
    assert columns.split()[:3] == ["objects", "true", "predicted"]
    assert row.split()[:5] == ["pooled", "1", "2", "0.5000", "1.0000"]  # the true rows 0 and 1 touch
    (folders[1] / "chips.csv").write_text("chip,scene\na,south\nb,north\n")
    lines = cli("score", *folders, "--gsd", 1)[1].splitlines()
    assert lines[:2] == ["scene north 1.0000", "scene south 0.5000"]
    assert [line.split()[0] for line in lines[2:]] == ["objects", "north", "south", "pooled", "pooled"]
    assert lines[3].split()[1:] == ["0", "0", *["1.0000"] * 6, "+0.0%", "0", "0"]


@pytest.mark.parametrize("times", [1, 255])
def test_buildings_of_masks_in_255_and_without_data(tmp_path: Path, times: int):
    """Building is 255 in the prediction, or 1; in the truth 255 is no data beside 1."""
    found = write_masks(tmp_path / "found", {"a": [times, times, 0, times, 0, times]})
    truth = write_masks(tmp_path / "truth", {"a": [1, 1, 0, 0, 0, 255]})
    objects = score(found, truth, gsd_m=1.0).objects["a"]
    assert (objects.true, objects.predicted, objects.matched[-1]) == (1, 2, 1)
    assert (objects.boundary_hit, objects.boundary_union) == (2, 3)
    in_255 = write_masks(tmp_path / "in_255", {"a": [255, 255, 0, 0, 0, 0]})
    assert score(found, in_255).objects["a"].true == 1
