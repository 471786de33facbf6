import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
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
        (lambda p, t: [file.unlink() for file in t.iterdir()], r"no \.tif in .*truth"),
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
