"""TensorBoard, MLflow and Trackio: the numbers of the log, one run across a resume, a training that goes on without."""

import json
import math
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from fastai.callback.core import Callback
from tiny_fit import tiny_learner

from kit.errors import RunError
from kit.training.checkpoint import Checkpoint, read_checkpoint
from kit.training.length import Length
from kit.training.tracking import TRACKERS, Opening, Tracking

pytestmark = pytest.mark.usefixtures("one_thread")

Cli = Callable[..., tuple[int, str, str]]
Series = dict[str, list[tuple[int, float]]]
EPOCHS = 4


class Interrupt(Callback):
    """As Ctrl-C, in the second step of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.at = epoch

    def after_batch(self) -> None:
        if self.training and self.epoch == self.at and self.iter == 1:
            raise KeyboardInterrupt


def fit(folder: Path, *names: str, cbs: tuple[Callback, ...] = (), **options: Any) -> pd.DataFrame:
    """Trains or resumes with trackers, as `fit_fold` does; returns the log."""
    folder.mkdir(parents=True, exist_ok=True)
    tracking, finished = Tracking(names, folder), False
    cbs = (Length([EPOCHS]), tracking, Checkpoint(folder, 0), *cbs)
    with suppress(KeyboardInterrupt):
        try:
            tiny_learner(folder, EPOCHS, *cbs, saved=read_checkpoint(folder), **options).fit(EPOCHS)
            finished = True
        finally:
            tracking.close(finished)
    return pd.read_csv(folder / "log.csv") if (folder / "log.csv").exists() else pd.DataFrame()


def of_log(log: pd.DataFrame) -> Series:
    """What a tracker should hold of a log."""
    names = [name for name in log.columns if name != "epoch"]
    return {f"epoch/{name}": list(zip(log["epoch"].astype(int), log[name], strict=True)) for name in names}


def check(found: Series, log: pd.DataFrame) -> None:
    expected = of_log(log)
    assert set(found) == {*expected, "step/train_loss"}
    for name, points in expected.items():
        assert found[name] == [(step, pytest.approx(value, rel=1e-6, nan_ok=True)) for step, value in points], name
    assert [step for step, _ in found["step/train_loss"]] == [10, 20]


def of_tensorboard(folder: Path) -> Series:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.fixture
def mlflow_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[Any, Series]]]:
    """Reads the runs of an MLflow database of this test's own, newest first."""
    pytest.importorskip("sqlalchemy")
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")

    def read() -> list[tuple[Any, Series]]:
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name("kit")
        runs = client.search_runs([experiment.experiment_id])
        return [
            (
                run,
                {
                    name: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))
                    for name in run.data.metrics
                },
            )
            for run in runs
        ]

    return read


@pytest.fixture
def trackio_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of Trackio's databases, read when it is imported."""
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    own = [name for name in sys.modules if name.split(".")[0] == "trackio"]
    for name in own:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path / "trackio"
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        del sys.modules[name]


def of_trackio(folder: Path) -> dict[str, Series]:
    """The series of each run in Trackio's database."""
    runs: dict[str, Series] = {}
    with sqlite3.connect(folder / "kit.db") as database:
        for run, step, text in database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id"):
            for name, value in json.loads(text).items():
                number = math.nan if value == "NaN" else value
                runs.setdefault(run, {}).setdefault(name, []).append((step, number))
    return runs


def test_tensorboard_has_the_log_across_a_resume(tmp_path: Path):
    pytest.importorskip("tensorboard")
    fit(tmp_path, "tensorboard", cbs=(Interrupt(2),))
    log = fit(tmp_path, "tensorboard")
    check(of_tensorboard(tmp_path), log)


@pytest.mark.slow
def test_mlflow_has_the_log_across_a_resume(tmp_path: Path, mlflow_runs: Callable[[], list[tuple[Any, Series]]]):
    fit(tmp_path / "tiny" / "fold0", "mlflow", cbs=(Interrupt(2),))
    [(run, _)] = mlflow_runs()
    assert (run.info.run_name, run.info.status) == ("tiny/fold0", "FAILED")
    log = fit(tmp_path / "tiny" / "fold0", "mlflow")
    [(run, found)] = mlflow_runs()
    check(found, log)
    assert run.info.status == "FINISHED"
    assert run.data.params["recipe"] == "tiny"
    assert run.data.params["precision"].startswith("fp32")
    fit(tmp_path / "again" / "fold0", "mlflow", valid=0)  # without a score: nan
    assert [run.info.run_name for run, _ in mlflow_runs()] == ["again/fold0", "tiny/fold0"]


def test_trackio_has_the_log_across_a_resume(tmp_path: Path, trackio_folder: Path):
    fit(tmp_path / "tiny" / "fold0", "trackio", cbs=(Interrupt(2),))
    fit(tmp_path / "root" / "tiny" / "fold0", "trackio", valid=0)  # of the same name, in between
    log = fit(tmp_path / "tiny" / "fold0", "trackio")
    runs = of_trackio(trackio_folder)
    assert [name[:-5] for name in runs] == ["tiny/fold0", "tiny/fold0"]
    check(next(iter(runs.values())), log)


class Recorded:
    """A tracker that keeps what it is given, and may fail."""

    module, failing = "json", ""

    def __init__(self, opening: Opening) -> None:
        self.opening, self.closed = opening, ""
        self.run = opening.run or "run-1"
        self.series: Series = {}
        self.fail("open")

    def fail(self, at: str) -> None:
        if self.failing == at:
            raise ConnectionError("the server is gone\nand more")

    def log(self, values: dict[str, float], step: int) -> None:
        self.fail("log")
        for name, value in values.items():
            self.series.setdefault(name, []).append((step, value))

    def close(self, finished: bool) -> None:
        self.fail("close")
        self.closed = "finished" if finished else "interrupted"


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """The sessions of a tracker named `recorded`."""
    opened: list[Recorded] = []

    class Kept(Recorded):
        def __init__(self, opening: Opening) -> None:
            super().__init__(opening)
            opened.append(self)

    monkeypatch.setitem(TRACKERS, "recorded", Kept)
    return opened


def test_a_resumed_training_continues_its_run(tmp_path: Path, sessions: list[Recorded]):
    fit(tmp_path, "recorded", cbs=(Interrupt(2),))
    log = fit(tmp_path, "recorded")
    first, second = sessions
    assert (first.opening.run, second.opening.run) == ("", "run-1")
    assert (first.closed, second.closed) == ("interrupted", "finished")
    check({name: first.series.get(name, []) + points for name, points in second.series.items()}, log)
    assert first.opening.settings["precision"].startswith("fp32")
    fit(tmp_path, "recorded")  # interrupted after its last epoch
    assert (sessions[2].opening.run, sessions[2].series, sessions[2].closed) == ("run-1", {}, "finished")


@pytest.mark.parametrize("at", ["open", "log", "close"])
def test_a_tracker_that_fails_is_left_out(
    tmp_path: Path, at: str, sessions: list[Recorded], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.setitem(TRACKERS, "broken", type("Broken", (Recorded,), {"failing": at}))
    log = fit(tmp_path, "broken", "recorded")
    check(sessions[0].series, log)
    said = [line for line in capsys.readouterr().err.splitlines() if "tracking" in line]
    assert said == ["tracking with broken failed, the training goes on without: the server is gone"]


def test_what_tensorboard_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whether it is installed or not."""
    given: Series = {}

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            given.setdefault(name, []).append((step, value))

        def flush(self) -> None:
            pass

        close = flush

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    check(given, fit(tmp_path, "tensorboard"))


@pytest.mark.parametrize(
    ("name", "title"), [("tensorboard", "TensorBoard"), ("mlflow", "MLflow"), ("trackio", "Trackio")]
)
def test_a_missing_tracker_is_an_error(
    name: str, title: str, workplace: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, TRACKERS[name].module, None)
    with pytest.raises(RunError, match=f"{title} is not installed") as caught:
        Tracking([name], workplace)
    assert f"pip install {name}" in caught.value.hint
    option = ["--tensorboard"] if name == "tensorboard" else ["--track", name]
    code, out, err = cli("run", "tiny", "--root", workplace, "--no-pretrained", "--fold", "0", *option)
    assert (code, out) == (1, "")
    assert f"error: {title} is not installed" in err
    assert f"leave --track {name} out" in err
    assert not list((workplace / "runs").rglob("log.csv"))


def test_an_unknown_tracker_is_a_usage_error(workplace: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KIT_TRACK", "tensorbord")
    code, _, err = cli("run", "tiny", "--root", workplace)
    assert code == 2
    assert "'tensorbord', expected tensorboard, mlflow, trackio" in " ".join(err.split())
