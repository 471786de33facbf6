"""`kit runs`: finished, unfinished, pooled and broken runs in one listing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from factories import write_run

from kit.paths import Paths
from kit.pipeline.runs import COLUMNS, list_runs, tile_weights, vote_name

Cli = Callable[..., tuple[int, str, str]]
LOG = "epoch,train_loss,valid_loss,jaccard,lr,seconds\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two finished folds, one at its third epoch, and a model of all folds."""
    write_run(tmp_path / "runs/lite0/fold10", {"kam/b": (10, 60, 30)}, seed=5)
    write_run(tmp_path / "runs/lite0/fold2", {"kam/a": (50, 20, 30), "znz/c": (200, 0, 0)})
    write_run(tmp_path / "runs/lite0/foldall", {})
    write_run(tmp_path / "runs/lite0/fold3", None)
    (tmp_path / "runs/lite0/fold3/log.csv").write_text(
        f"{LOG}0,0.9,0.8,0.4,0.1,60.0\n1,0.7,0.6,0.75,0.1,120.5\n2,0.6,0.7,0.5,0.1,180.0\n"
    )
    (tmp_path / "runs/lite0/check.png").touch()
    return tmp_path


def test_the_table_when_piped(root: Path, cli: Cli):
    write_run(root / "runs/dpn92/fold0", None, encoder="dpn92", epochs=30)
    code, out, err = cli("runs", "--root", root)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "run            state          score   epoch  minutes  data   encoder                seed",
        "dpn92/fold0    no epoch yet                           tier1  dpn92                  0",
        "lite0/fold2    finished       0.8333  8/12   1.5      tier1  tf_efficientnet_lite0  0",
        "lite0/fold3    epoch 3 of 12  0.7500  2/12   3.0      tier1  tf_efficientnet_lite0  0",
        "lite0/fold10   finished       0.1000  8/12   1.5      tier1  tf_efficientnet_lite0  5",
        "lite0/foldall  finished               8/12   1.5      tier1  tf_efficientnet_lite0  0",
        "lite0          2 folds        0.6500         3.0      tier1  tf_efficientnet_lite0",
    ]


def test_json_holds_nulls_where_nothing_is_known(root: Path, cli: Cli):
    code, out, _ = cli("runs", "--json", "--root", root)
    assert code == 0
    runs = {run["run"]: run for run in json.loads(out)}
    assert list(runs) == ["lite0/fold2", "lite0/fold3", "lite0/fold10", "lite0/foldall", "lite0"]
    assert [run["state"] for run in runs.values()] == ["finished", "unfinished", "finished", "finished", "pooled"]
    assert runs["lite0"]["score"] == 260 / 400  # over the pixels; the mean of the two folds is 0.4667
    assert runs["lite0"]["counts"] == {"tp": 260, "fp": 80, "fn": 60}
    assert (runs["lite0"]["folds"], runs["lite0"]["minutes"], runs["lite0"]["seed"]) == (2, 3.0, None)
    assert (runs["lite0/fold3"]["epoch"], runs["lite0/fold3"]["epochs_done"], runs["lite0/fold3"]["epochs"]) == (
        2,
        3,
        12,
    )
    assert runs["lite0/foldall"]["score"] is None
    assert runs["lite0/fold2"]["problem"] is None


@pytest.mark.parametrize(
    ("log", "score", "epoch", "done"),
    [
        (f"{LOG}0,0.9,nan,nan,0.1,60\n", None, None, 1),
        (f"{LOG}0,0.9,nan,nan,0.1,60\n1,0.9,0.5,0.25,0.1,60\n", 0.25, 2, 2),
        ("epoch,train_loss,seconds\n0,0.9,60\n", None, None, 1),
        (LOG, None, None, 0),
    ],
)
def test_a_log_without_scores(tmp_path: Path, log: str, score: float | None, epoch: int | None, done: int):
    write_run(tmp_path / "runs/lite0/fold0", None)
    (tmp_path / "runs/lite0/fold0/log.csv").write_text(log)
    (run,) = list_runs(Paths(tmp_path))
    assert (run.state, run.score, run.epoch, run.epochs_done) == ("unfinished", score, epoch, done)
    assert run.minutes == (1.0 if done else None)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("result.json", '{"recipe": "lite0", "fo'),
        ("result.json", '{"score": 0.9}'),
        ("result.json", "[]"),
        ("settings.json", ""),
        ("settings.json", "[1, 2]"),
        ("log.csv", ""),
        ("log.csv", f"{LOG}0,0.9,0.8,much,0.1,60\n"),
        ("log.csv", b"epoch,jaccard\n\xff\xfe,1\n"),
    ],
)
def test_a_broken_run_does_not_end_the_listing(root: Path, cli: Cli, file: str, text: str | bytes):
    broken = root / "runs/lite0/fold3" / file
    broken.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, out, err = cli("runs", "--root", root)
    assert code == 0
    assert f"{broken} is " in err
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert rows["lite0/fold3"] == ["lite0/fold3", "unreadable"]
    assert rows["lite0/fold10"][1] == "finished"
    assert rows["lite0"][1:4] == ["2", "folds", "0.6500"]


def test_one_finished_fold_is_not_pooled_and_a_copy_is_no_fold(tmp_path: Path):
    for name in ("fold0", "fold0-before"):
        write_run(tmp_path / "runs/lite0" / name, {"kam/a": (1, 1, 0)})
    assert [run.run for run in list_runs(Paths(tmp_path))] == ["lite0/fold0", "lite0/fold0-before"]


def test_folds_of_several_data_sets_share_no_data(tmp_path: Path):
    write_run(tmp_path / "runs/lite0/fold0", {"kam/a": (1, 1, 0)}, data="tier1")
    write_run(tmp_path / "runs/lite0/fold1", {"kam/b": (1, 1, 0)}, data="tier2")
    *_, pooled = list_runs(Paths(tmp_path))
    assert (pooled.data, pooled.encoder) == (None, "tf_efficientnet_lite0")


def test_no_runs_yet(tmp_path: Path, cli: Cli):
    code, out, err = cli("runs", "--root", tmp_path)
    assert (code, out.split()) == (0, list(COLUMNS))
    assert "kit run RECIPE" in err
    assert json.loads(cli("runs", "--json", "--root", tmp_path)[1]) == []
    assert list(tmp_path.iterdir()) == []


def test_folds_of_a_recipe_vote_as_one():
    runs = ["lite0/fold0", "lite0/fold1", "lite0/fold0-seed1", "b4/foldall"]
    assert [vote_name(run) for run in runs] == ["lite0", "lite0", "lite0-seed1", "b4"]
    assert tile_weights(runs, [0.1, 0.2, 0.3, 0.4]) == pytest.approx([0.3, 0.3, 0.3, 0.4])
    assert tile_weights(runs, ()) == []
