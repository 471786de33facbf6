"""How long a fold trains: epochs, steps, and minutes that hold while the machine becomes slower or faster."""

import json
import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from factories import TINY_RECIPE
from fastai.callback.core import Callback
from tiny_fit import tiny_learner

from kit.errors import RunError
from kit.training import length, runlog
from kit.training.checkpoint import Checkpoint, read_checkpoint
from kit.training.length import StepPlan, TimeBudget, _recounted, share_out
from kit.training.runlog import clock
from kit.training.schedules import fit_cosine

pytestmark = pytest.mark.usefixtures("one_thread")

Cli = Callable[..., tuple[int, str, str]]


class StubClock:
    """`time.monotonic` that the callback `Work` moves."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def stub_clock(monkeypatch: pytest.MonkeyPatch) -> StubClock:
    clock = StubClock()
    monkeypatch.setattr(runlog, "monotonic", clock)
    monkeypatch.setattr(length, "validation_seconds", lambda learn: 2.0)
    return clock


class Work(Callback):
    """Lets the clock run: the first step of a session takes 5 s more, a validation as long as three steps."""

    order = -50  # before the budget looks at the clock

    def __init__(self, clock: StubClock, step_seconds: Callable[[float], float], stop_at: float) -> None:
        self.clock, self.step_seconds, self.stop_at, self.steps = clock, step_seconds, stop_at, 0
        self.rates: list[float] = []

    def after_batch(self) -> None:
        if not self.training:
            self.clock.seconds += 3 * self.step_seconds(self.learn.run_log.seconds) * (self.iter == 0)
            return
        self.rates.append(float(self.opt.hypers[-1]["lr"]))
        self.clock.seconds += self.step_seconds(self.learn.run_log.seconds) + 5 * (self.steps == 0)
        self.steps += 1
        if self.learn.run_log.seconds >= self.stop_at:
            raise KeyboardInterrupt


Train = Callable[..., tuple[Any, pd.DataFrame, pd.DataFrame]]
MINUTES, BUDGET_S = 2, 120


@pytest.fixture
def train(tmp_path: Path, stub_clock: StubClock) -> Train:
    """Trains a tiny network for two minutes of the stub clock, and returns the Learner, the log and the plans."""

    def run(
        step_seconds: Callable[[float], float],
        *fits: int,
        minutes: float = MINUTES,
        stop_at: float = math.inf,
        folder: str = "run",
        resume: bool = False,
    ) -> tuple[Any, pd.DataFrame, pd.DataFrame]:
        run_folder = tmp_path / folder
        run_folder.mkdir(exist_ok=True)
        saved = read_checkpoint(run_folder) if resume else None
        learn = tiny_learner(
            run_folder, sum(fits), TimeBudget(minutes, fits, run_folder), Work(stub_clock, step_seconds, stop_at),
            Checkpoint(run_folder, 1e-9 if folder != "run" else 0), saved=saved,
        )  # fmt: skip
        with pytest.raises(KeyboardInterrupt) if stop_at < math.inf else nullcontext():
            for epochs in fits:
                fit_cosine(learn, epochs, 1e-3)
        log, plans = (run_folder / name for name in ("log.csv", "plan.csv"))
        return learn, pd.read_csv(log) if log.exists() else None, pd.read_csv(plans)

    return run


SPEEDS: dict[str, Callable[[float], float]] = {  # seconds of the run -> seconds that a step takes
    "even": lambda s: 1.0,
    "busy at the start": lambda s: 4.0 if s < 20 else 1.0,
    "busy in the middle": lambda s: 4.0 if 40 < s < 80 else 1.0,
    "busy in the end": lambda s: 3.0 if s > 90 else 1.0,
    "busy at the very end": lambda s: 3.0 if s > 100 else 0.75,
    "slower and slower": lambda s: 0.5 + s / 60,
    "faster and faster": lambda s: 0.2 + 80 / (s + 20),
}


@pytest.mark.parametrize("fits", [(1,), (4,), (1, 11)], ids=str)
@pytest.mark.parametrize("speed", SPEEDS)
def test_a_time_budget_holds(train: Train, speed: str, fits: tuple[int, ...]):
    """On a machine whose speed changes the time is used, and the rate ends where it should."""
    learn, log, plans = train(SPEEDS[speed], *fits)
    few_steps = len(fits) > 1 and speed != "even"  # an epoch of 10 s, and a last validation of up to 9 s
    assert learn.run_log.seconds == pytest.approx(BUDGET_S, rel=0.1 if few_steps else 0.03)
    assert len(log) == sum(fits)
    assert plans.groupby("epoch")["steps"].last().tolist() == log["steps"].tolist()
    assert learn.work.rates[-1] < (
        4e-5 if "end" in speed or few_steps else 2e-5
    )  # of 1e-3: its last epoch has few steps
    assert max(learn.work.rates) > 0.8e-3
    # the schedules follow the time: the share of all epochs is the share of the budget
    done = (plans["epoch"] + plans["share"]) / sum(fits)
    assert (done - plans["seconds"] / BUDGET_S).abs().max() < 0.15
    assert done.is_monotonic_increasing


def test_the_first_step_of_a_session_is_not_typical(train: Train):
    _, _, plans = train(SPEEDS["even"], 4)
    assert plans["step_seconds"].iloc[1:].tolist() == pytest.approx([1.0] * (len(plans) - 1))
    assert plans["epoch_seconds"].iloc[0] == 2.0  # measured on one tile
    assert plans["epoch_seconds"].iloc[-1] == 3.0  # measured on the last validation


def test_what_the_user_is_told(train: Train, capsys: pytest.CaptureFixture[str]):
    train(lambda s: 1.0 if s < 50 else 3.0, 4)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("planned")]
    assert len(said) == 2
    assert said[0] == "planned 106 steps in 4 epochs: 1 s a step, 2 s a validation"
    assert said[1].endswith("steps in 4 epochs instead of 106: 3 s a step, 9 s a validation")


def test_the_table_says_what_is_left_of_the_budget(train: Train, capsys: pytest.CaptureFixture[str]):
    _, log, _ = train(SPEEDS["even"], 4)
    rows = [line.split() for line in capsys.readouterr().err.splitlines() if re.match(r" +\d/4 ", line)]
    left = [clock(BUDGET_S * TimeBudget.TARGET - seconds) for seconds in log["seconds"]]
    assert [row[-1] for row in rows] == [*left[:-1], "0:00"]


@pytest.mark.parametrize("stop_at", [31, 62, 90])
def test_resumed_it_goes_on_with_the_plan(train: Train, stub_clock: StubClock, tmp_path: Path, stop_at: float):
    """Bit for bit where steps take as long as before; the time between two sessions does not count."""

    def steady(seconds: float) -> float:
        return 1.0

    whole, log, plans = train(steady, 4)
    train(steady, 4, stop_at=stop_at, folder="cut")
    saved = read_checkpoint(tmp_path / "cut")
    assert saved
    plan = StepPlan(**saved["callbacks"]["length"]["plans"][-1])
    assert plan.steps in plans["steps"].tolist()
    stub_clock.seconds += 1000
    again = train(lambda s: 1.0 - 5 * (s == saved["callbacks"]["run_log"]["seconds"]), 4, folder="cut", resume=True)
    pd.testing.assert_frame_equal(again[1].drop(columns="seconds"), log.drop(columns="seconds"))
    pd.testing.assert_frame_equal(again[2], plans)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(again[0].model.state_dict()[name], weight)


def test_validations_that_do_not_fit_are_left_out(train: Train):
    """Twelve validations of 3 s do not fit into a minute beside the training; the last one is kept."""
    learn, log, _ = train(lambda s: 1.0, 12, minutes=0.8)
    assert learn.run_log.seconds == pytest.approx(48, rel=0.1)
    assert len(log) == 12
    assert 1 <= log["jaccard"].notna().sum() < 12
    assert not math.isnan(log["jaccard"].iloc[-1])
    assert learn.work.rates[-1] < 2e-4


def test_with_other_ranks_a_plan_counts_their_steps():
    plan = StepPlan(2, 10, 0.25, 60.0, 1.0, 3.0, 41, 12, 160)
    one = _recounted(plan, 1, 2)
    assert (one.step, one.steps, one.next_step, one.share) == (5, 20, 6, 0.25)


def test_where_a_step_takes_longer_than_the_budget(train: Train):
    _, log, _ = train(lambda s: 9.0, 4, minutes=0.2)
    assert log["steps"].tolist() == [3, 1, 1, 1]


def test_minutes_through_the_command_line(workplace: Path, cli: Cli):
    """More steps than there are tiles, without a sampler; another number of epochs."""
    text = TINY_RECIPE.replace("BalancedSampler(crops_per_tile=0.75), ", "")
    (workplace / "recipes/plain.py").write_text(text)
    command = ("run", "plain", "--root", workplace, "--no-pretrained", "--fold", "0", "--no-export")
    code, _, err = cli(*command, "--minutes", 0.1, "--epochs", 3)
    assert code == 0, err
    folder = workplace / "runs/plain/fold0"
    log, settings = pd.read_csv(folder / "log.csv"), json.loads((folder / "settings.json").read_text())
    assert len(log) == settings["epochs"] == 3
    assert settings["minutes"] == 0.1
    assert log["steps"].sum() * 2 > 14  # tiles
    code, _, err = cli(*command, "--minutes", 0.2)
    assert code == 1
    assert "minutes 0.1 is now 0.2" in err


def test_epochs_replace_those_of_the_recipe(workplace: Path, cli: Cli):
    common = ("--root", workplace, "--no-pretrained", "--fold", "0", "--no-export")
    code, _, err = cli("run", "tiny", *common, "--epochs", 3)
    assert code == 0, err
    log = pd.read_csv(workplace / "runs/tiny/fold0/log.csv")
    assert len(log) == 3
    assert log["lr"].iloc[-1] < 2e-4  # the schedule ends with the third
    code, _, err = cli("run", "tiny", *common, "--epochs", 4)
    assert code == 1
    assert "epochs_option 3 is now 4" in err


def test_steps_are_spread_over_the_epochs(workplace: Path, cli: Cli):
    common = ("run", "tiny", "--root", workplace, "--no-pretrained", "--fold", "0", "--no-export")
    code, _, err = cli(*common, "--steps", 13, "--epochs", 4)
    assert code == 0, err
    assert pd.read_csv(workplace / "runs/tiny/fold0/log.csv")["steps"].tolist() == [3, 3, 3, 4]
    code, _, err = cli(*common, "--steps", 1, "--restart")
    assert code == 1
    assert "--steps 1: the recipe has 2 epochs, and each takes a step at least" in err
    code, _, err = cli(*common, "--steps", 10, "--minutes", 1)
    assert code == 2
    assert "mutually exclusive with --steps" in err


@pytest.mark.parametrize(
    ("epochs", "fits", "expected"),
    [(6, [12], [6]), (6, [1, 11], [1, 5]), (24, [1, 11], [2, 22]), (2, [1, 11], [1, 1]), (5, [3, 3, 3], [2, 1, 2])],
)
def test_epochs_are_shared_out(epochs: int, fits: list[int], expected: list[int]):
    assert share_out(epochs, fits) == expected


def test_fewer_epochs_than_fits():
    with pytest.raises(RunError, match="--epochs 1: the recipe trains in 2 fits"):
        share_out(1, [1, 11])


SWITCHED = TINY_RECIPE.replace("EMA(0.9)]", "LossSwitch(1, Dice())]").replace(
    "from kit.training.callbacks import EMA, BalancedSampler",
    "from kit.models.losses import Dice\nfrom kit.training.callbacks import BalancedSampler, LossSwitch",
)  # fmt: skip


def test_what_a_recipe_does_at_an_epoch_moves_along(workplace: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    from kit.training.callbacks import LossSwitch

    losses = []
    plain = LossSwitch.before_epoch

    def watched(self: LossSwitch) -> None:
        plain(self)
        losses.append(type(self.learn.loss_func).__name__)

    monkeypatch.setattr(LossSwitch, "before_epoch", watched)
    (workplace / "recipes/switched.py").write_text(SWITCHED)
    options = ("--no-pretrained", "--fold", "0", "--no-export", "--epochs", 4)
    code, _, err = cli("run", "switched", "--root", workplace, *options)
    assert code == 0, err
    assert losses == ["CrossEntropy", "CrossEntropy", "Dice", "Dice"]
