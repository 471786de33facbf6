"""What a fit tells while it trains: a line for each epoch, log.csv; also where a part was cancelled."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback, CancelTrainException, CancelValidException
from fastai.callback.training import ShortEpochCallback
from safetensors.torch import load_file
from tiny_fit import AREAS, tiny_learner
from torch import Tensor

from kit.models.losses import CrossEntropy
from kit.training.length import Length
from kit.training.runlog import clock

pytestmark = pytest.mark.usefixtures("one_thread")

COLUMNS = ["epoch", "train_loss", "valid_loss", "jaccard", "jaccard_kam", "jaccard_znz", "lr", "steps", "seconds"]


class Watch(Callback):
    """Validates by itself, when training is done: what the log should say."""

    order = 55  # the recorder has its figures, the log is not written yet

    def before_fit(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.validated: list[bool] = []
        self.weights: list[dict[str, Tensor]] = []

    def after_epoch(self) -> None:
        images, masks = (torch.stack(part) for part in zip(*(self.dls.valid.dataset[i] for i in range(6)), strict=True))
        with torch.no_grad():
            logits = self.model(images)
            loss = float(CrossEntropy()(logits, masks))
        found = {"valid_loss": loss, "jaccard": jaccard(logits, masks)}
        for area in ("kam", "znz"):
            own = torch.tensor([name == area for name in AREAS])
            found[f"jaccard_{area}"] = jaccard(logits[own], masks[own])
        self.rows.append(found)
        self.weights.append({name: weight.clone() for name, weight in self.model.state_dict().items()})


def jaccard(logits: Tensor, masks: Tensor) -> float:
    found, truth = logits.argmax(dim=1) == 1, masks == 1
    return float((found & truth).sum() / (found | truth).sum())


def learner(folder: Path, epochs: int, *cbs: Callback, valid: int = 6) -> Any:
    return tiny_learner(folder, epochs, Length([epochs]), Watch(), *cbs, valid=valid)


def fitted(folder: Path, epochs: int, *cbs: Callback, **options: Any) -> tuple[Any, pd.DataFrame]:
    """The Learner after its fit, and the log."""
    learn = learner(folder, epochs, *cbs, **options)
    learn.fit(epochs)
    return learn, pd.read_csv(folder / "log.csv")


def table_of(err: str) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of the table, whose columns end below each other."""
    lines = [line for line in err.splitlines() if not line.startswith("tiny fold 0")]
    assert all(len(line) == len(lines[0]) for line in lines)
    ends = [[match.end() for match in re.finditer(r"\S+", line)] for line in lines]
    assert all(each == ends[0] for each in ends)
    rows = [line.split() for line in lines]
    assert all(cell and "\x1b" not in cell for row in rows for cell in row)
    return rows[0], rows[1:]


def test_the_log_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    learn, log = fitted(tmp_path, 3)
    assert list(log.columns) == COLUMNS
    assert log["epoch"].tolist() == [0, 1, 2]
    for key in ("valid_loss", "jaccard", "jaccard_kam", "jaccard_znz"):
        assert log[key].tolist() == pytest.approx([row[key] for row in learn.watch.rows], rel=1e-6), key
    assert log["train_loss"].tolist() == pytest.approx([values[0] for values in learn.recorder.values])
    assert log["lr"].tolist() == pytest.approx([0.1] * 3)
    assert log["seconds"].is_monotonic_increasing
    out, err = capsys.readouterr()
    assert out == ""
    head, rows = table_of(err)
    assert head == ["epoch", "train", "validation", "jaccard", "kam", "znz", "rate", "time", "left"]
    assert len(rows) == 3
    for number, row in enumerate(rows):
        logged = log.iloc[number]
        assert row[0] == f"{number + 1}/3"
        assert row[1:6] == [f"{logged[key]:.4f}" for key in COLUMNS[1:6]]
        assert row[6:8] == ["1.0e-01", clock(logged["seconds"])]
    assert rows[-1][-1] == "0:00"


def test_the_time_that_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kit.training.runlog.monotonic", lambda: 0.0)  # a busy machine adds nothing

    class Slow(Callback):
        def after_train(self) -> None:
            self.learn.run_log.start -= 1000.0  # an epoch takes 1000 s

    fitted(tmp_path, 4, Slow())
    _, rows = table_of(capsys.readouterr().err)
    assert [row[-2] for row in rows] == ["16:40", "33:20", "50:00", "1:06:40"]
    assert [row[-1] for row in rows] == ["50:00", "33:20", "16:40", "0:00"]


def test_epochs_of_two_fits_are_one_log_and_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    learn = learner(tmp_path, 3)
    learn.fit(1)
    learn.fit(2)
    assert pd.read_csv(tmp_path / "log.csv")["epoch"].tolist() == [0, 1, 2]
    _, rows = table_of(capsys.readouterr().err)
    assert [row[0] for row in rows] == ["1/3", "2/3", "3/3"]  # the head comes once
    assert rows[-1][-1] == "0:00"


def test_where_nothing_is_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    learn, log = fitted(tmp_path, 2, valid=0)
    assert list(log.columns) == ["epoch", "train_loss", "valid_loss", "jaccard", "lr", "steps", "seconds"]
    assert log[["valid_loss", "jaccard"]].isna().all(axis=None)
    assert log["train_loss"].notna().all()
    _, rows = table_of(capsys.readouterr().err)
    assert [row[2:4] for row in rows] == [["nan", "nan"]] * 2
    assert learn.run_log.best_epoch == 1


class NoTraining(Callback):
    """Cancels the training part of some epochs; `before` it begins, or in its second step."""

    def __init__(self, *epochs: int, before: bool = True) -> None:
        self.which, self.before = epochs, before

    def before_train(self) -> None:
        if self.before and self.epoch in self.which:
            raise CancelTrainException

    def after_batch(self) -> None:
        if self.training and not self.before and self.epoch in self.which and self.iter == 1:
            raise CancelTrainException


class NoValidation(Callback):
    """Cancels the validation of some epochs; `order` says whether the metrics know of its beginning."""

    def __init__(self, *epochs: int, order: int = 0, before: bool = True) -> None:
        self.which, self.order, self.before = epochs, order, before

    def before_validate(self) -> None:
        if self.before and self.epoch in self.which:
            raise CancelValidException

    def after_batch(self) -> None:
        if not self.training and not self.before and self.epoch in self.which:
            raise CancelValidException


VALID = ["valid_loss", "jaccard", "jaccard_kam", "jaccard_znz"]
CANCELLED: dict[str, tuple[Callable[[], Callback], set[int], set[int]]] = {  # callback, trained whole, validated
    "short training": (lambda: ShortEpochCallback(0.3, short_valid=False), set(), {0, 1, 2}),
    "short epochs": (lambda: ShortEpochCallback(0.3), set(), set()),
    "no training": (lambda: NoTraining(1), {0, 2}, {0, 1, 2}),
    "training cut": (lambda: NoTraining(0, 2, before=False), {1}, {0, 1, 2}),
    "validation cut": (lambda: NoValidation(1, before=False), {0, 1, 2}, {0, 2}),
    "no validation": (lambda: NoValidation(0, 1, 2, order=52), {0, 1, 2}, set()),
    "no validation before the metrics": (lambda: NoValidation(0, 1, 2), {0, 1, 2}, set()),
    "a later one left out": (lambda: NoValidation(1, order=52), {0, 1, 2}, {0, 2}),
    "a later one left out before the metrics": (lambda: NoValidation(1), {0, 1, 2}, {0, 2}),
    "the first one left out": (lambda: NoValidation(0, order=52), {0, 1, 2}, {1, 2}),
    "the first one left out before the metrics": (lambda: NoValidation(0), {0, 1, 2}, {1, 2}),
    "the first one cut": (lambda: NoValidation(0, before=False), {0, 1, 2}, {1, 2}),
}


@pytest.mark.parametrize("case", CANCELLED)
def test_what_was_cancelled_moves_no_column(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]):
    make, trained, validated = CANCELLED[case]
    learn, log = fitted(tmp_path, 3, make())
    assert log["epoch"].tolist() == [0, 1, 2]
    assert log["lr"].tolist() == pytest.approx([0.1] * 3)
    assert log["seconds"].notna().all()
    for epoch, row in log.iterrows():
        assert math.isnan(row["train_loss"]) != (epoch in trained)
        if epoch in validated:
            assert row[VALID].tolist() == pytest.approx([learn.watch.rows[epoch][key] for key in VALID], rel=1e-6)
        else:
            assert row[[key for key in VALID if key in log]].isna().all()
    if validated:
        assert list(log.columns) == COLUMNS
    head, rows = table_of(capsys.readouterr().err)
    assert len(rows) == 3
    assert all(len(row) == len(head) for row in rows)
    assert rows[-1][-1] == "0:00"


@pytest.mark.parametrize("left_out", [(0,), (1,), (2,), (0, 2)])
def test_the_best_weights_are_those_of_a_validated_epoch(tmp_path: Path, left_out: tuple[int, ...]):
    """Validating every other epoch is common where it takes long; an epoch without a score has not beaten one."""
    learn, _ = fitted(tmp_path, 3, NoValidation(*left_out, before=False))
    scores = {n: row["jaccard"] for n, row in enumerate(learn.watch.rows) if n not in left_out}
    best = max(scores, key=lambda n: scores[n])
    assert learn.run_log.best_epoch == best
    kept = load_file(tmp_path / "best.safetensors")
    assert all(torch.equal(kept[name], weight) for name, weight in learn.watch.weights[best].items())


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (59.6, "1:00"),
        (185, "3:05"),
        (3599.4, "59:59"),
        (3600, "1:00:00"),
        (7385, "2:03:05"),
    ],
)
def test_clock(seconds: float, shown: str):
    assert clock(seconds) == shown
