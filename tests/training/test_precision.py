"""The precision of a training: measured in its first steps, by a stub clock here."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import TINY_RECIPE
from safetensors.torch import load_file
from tiny_fit import tiny_learner
from torch import Tensor, nn

from kit.models import depthwise
from kit.training import precision
from kit.training.length import StepCount
from kit.training.precision import ROUNDS, WORTH, Precision
from kit.training.run_files import read_settings

pytestmark = pytest.mark.usefixtures("one_thread")

Cli = Callable[..., tuple[int, str, str]]
TURNS = ["bf16", "fp32"]


class DepthwiseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.expand, self.depthwise = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 5, padding=2, groups=4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.depthwise(self.expand(pixels.float() / 255)))


@dataclass
class Machine:
    """How long a step takes in each precision, by the stub clock, and which ones training steps took."""

    seconds: dict[str, float]
    steps: list[str] = field(default_factory=list)
    now: float = 0.0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A CPU with bfloat16, on which float32 is faster."""
    stub = Machine({"bf16": 1.3, "fp32": 1.1})
    context = Precision.context

    @contextmanager
    def timed(self: Any, name: str = "") -> Iterator[None]:
        if name and getattr(self.learn, "training", False):
            stub.steps.append(name)
            stub.now += stub.seconds[name]
        with context(self, name):
            yield

    monkeypatch.setattr(precision, "autocast_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(precision, "perf_counter", lambda: stub.now)
    monkeypatch.setattr(Precision, "context", timed)
    return stub


def trained(folder: Path, steps: int = WORTH, option: str = "", **given: Any) -> Any:
    learn = tiny_learner(folder, 2, StepCount(steps, [2]), precision=option, **{"model": DepthwiseNet(), **given})
    learn.fit(2)
    return learn


@pytest.mark.parametrize("fastest", TURNS)
def test_after_the_first_steps_the_fastest_is_taken(tmp_path: Path, machine: Machine, fastest: str):
    machine.seconds[fastest] = 0.5
    learn = trained(tmp_path)
    measured = ROUNDS * len(TURNS)
    assert machine.steps == TURNS * ROUNDS + [fastest] * (WORTH - measured)
    assert learn.precision.chosen == fastest
    assert read_settings(tmp_path).precision == f"{fastest} channels_last"


def test_the_first_round_does_not_count(tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch):
    """A first step compiles kernels."""
    slow, context = ["fp32"], Precision.context

    def first_is_slow(self: Any, name: str = "") -> Any:
        if name in slow:
            slow.remove(name)
            machine.now += 100
        return context(self, name)

    monkeypatch.setattr(Precision, "context", first_is_slow)
    assert trained(tmp_path).precision.chosen == "fp32"


@pytest.mark.parametrize(("steps", "option", "taken"), [(WORTH - 1, "", "bf16"), (WORTH, "fp32", "fp32")])
def test_short_trainings_and_an_option_are_not_measured(
    tmp_path: Path, machine: Machine, steps: int, option: str, taken: str
):
    trained(tmp_path, steps, option)
    assert machine.steps == [taken] * steps
    assert read_settings(tmp_path).precision == f"{taken} channels_last"


def test_all_ranks_take_what_is_fastest_on_the_slowest(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
):
    other = {"bf16": 0.1, "fp32": 2.0}
    monkeypatch.setattr(precision, "gathered", lambda own: [own, other])
    assert trained(tmp_path).precision.chosen == "bf16"  # 1.3 against 2.0 s


def test_training_steps_have_the_fast_backward_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[bool] = []
    original = depthwise.depthwise_conv2d
    monkeypatch.setattr(
        depthwise, "depthwise_conv2d", lambda *given: (calls.append(torch.is_grad_enabled()), original(*given))[1]
    )
    model = DepthwiseNet()
    trained(tmp_path, 2, "fp32", model=model)
    assert calls == [True] * 2
    assert "_conv_forward" not in vars(model.depthwise)


CUT = TINY_RECIPE.replace("EMA(0.9)]", "EMA(0.9), Cut()]") + '''

class Cut(fv.Callback):
    def after_batch(self):
        file = fv.Path(FILE)
        if self.training and file.exists():
            left = int(file.read_text()) - 1
            file.write_text(str(left))
            if not left:
                file.unlink()
                raise KeyboardInterrupt
'''  # fmt: skip


@pytest.mark.parametrize(("cut", "minutes"), [(ROUNDS * len(TURNS) + 1, 1e-9), (WORTH // 2 - 1, 10)])
def test_a_resumed_run_keeps_the_choice(workplace: Path, cli: Cli, machine: Machine, cut: int, minutes: float):
    """With a checkpoint soon after the choice, and without any."""
    file = workplace / "cut"
    (workplace / "recipes/tiny.py").write_text(CUT.replace("FILE", repr(str(file))))
    command = ("run", "tiny", "--root", workplace, "--no-pretrained", "--fold", 0, "--no-export", "--steps", WORTH)
    command = (*command, "--checkpoint-minutes", minutes)
    code, _, err = cli(*command)
    assert code == 0, err
    folder = workplace / "runs/tiny/fold0"
    chosen = json.loads((folder / "settings.json").read_text())["precision"]
    assert f"training continues in {chosen.split()[0]}" in err
    whole = load_file(folder / "best.safetensors")
    file.write_text(str(cut))
    assert cli(*command, "--restart")[0] == 1
    machine.seconds[chosen.split()[0]] = 5.0  # the machine is busy now: it would choose another
    code, _, err = cli(*command)
    assert code == 0, err
    assert "training continues in" not in err
    assert json.loads((folder / "settings.json").read_text())["precision"] == chosen
    again = load_file(folder / "best.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
