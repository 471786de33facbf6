"""A training that diverges: it stops at once, and no weights that are not finite are kept."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from factories import TINY_RECIPE
from fastai.callback.core import Callback
from safetensors.torch import load_file
from tiny_fit import tiny_learner

from kit.errors import RunError
from kit.training.checkpoint import Checkpoint, read_checkpoint
from kit.training.divergence import DivergenceStop, all_finite
from kit.training.length import Length

pytestmark = pytest.mark.usefixtures("one_thread")

Cli = Callable[..., tuple[int, str, str]]


def test_a_rate_that_is_too_high(workplace: Path, cli: Cli):
    text = TINY_RECIPE.replace("fit_one_cycle(2, slice(1e-4, 1e-3))", "fit(4, 1e9)").replace(
        "BalancedSampler(crops_per_tile=0.75)", "BalancedSampler(crops_per_tile=8)"
    )
    (workplace / "recipes/boom.py").write_text(text)
    code, out, err = cli("run", "boom", "--fold", 1, "--no-pretrained", "--no-export", "--root", workplace)
    assert (code, out) == (1, "")
    assert err.count("error:") == 1
    assert "error: boom fold 1: the " in err
    assert "the training diverged; " in err
    assert "lower the rate in fit(), see kit lr-find" in err
    folder = workplace / "runs/boom/fold1"
    assert not (folder / "result.json").exists()
    best = folder / "best.safetensors"
    assert not best.exists() or all_finite(load_file(best).values())


class Spoil(Callback):
    """Makes the loss, or the weights, NaN in a step."""

    order = 0
    run_valid = False

    def __init__(self, what: str, step: int) -> None:
        self.what, self.step, self.steps = what, step, 0

    def after_loss(self) -> None:
        self.steps += 1
        if self.what == "loss" and self.steps >= self.step:
            self.learn.loss_grad = self.loss_grad * float("nan")

    def after_batch(self) -> None:
        if self.what == "weights" and self.steps == self.step:
            torch.nn.init.constant_(self.model.conv.weight, float("nan"))


@pytest.mark.parametrize(
    ("what", "step", "place"),
    [
        ("loss", 9, "the loss is nan in epoch 2/3, step 3"),
        ("weights", 9, "the loss is nan in epoch 2/3, step 4"),
        ("weights", 12, "the weights are not finite in epoch 2/3"),  # the last step of an epoch
    ],
)
def test_what_was_finite_is_kept(tmp_path: Path, what: str, step: int, place: str):
    learn = tiny_learner(
        tmp_path, 3, Length([3]), DivergenceStop(), Checkpoint(tmp_path, 1e-9), Spoil(what, step)
    )  # fmt: skip
    with pytest.raises(RunError, match=place) as caught:
        learn.fit(3)
    assert "the weights of the best epoch so far are kept" in caught.value.message
    assert "--resume from the last checkpoint" in caught.value.hint
    assert all_finite(load_file(tmp_path / "best.safetensors").values())
    saved = read_checkpoint(tmp_path)
    assert saved
    assert all_finite(saved["model"].values())
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 2


def test_float16_steps_that_overflow_are_skipped_a_few_times(tmp_path: Path):
    stop = DivergenceStop()
    learn = tiny_learner(tmp_path, 1, Length([1]), stop)
    learn.precision.chosen = "fp16"
    learn.training, learn.iter = True, 0
    for _ in range(3):
        learn.loss_grad = torch.tensor(float("inf"))
        stop.after_loss()
    learn.loss_grad = torch.tensor(1.0)
    stop.after_loss()
    assert stop.in_a_row == 0


def test_the_precision_can_be_chosen(workplace: Path, cli: Cli):
    import json

    command = ("run", "tiny", "--fold", 0, "--no-pretrained", "--no-export", "--root", workplace)
    code, _, err = cli(*command, "--precision", "bf16")
    assert code == 0, err
    settings = json.loads((workplace / "runs/tiny/fold0/settings.json").read_text())
    assert (settings["precision"], settings["precision_option"]) == ("bf16 channels_last", "bf16")
    code, _, err = cli(*command, "--precision", "half")
    assert code == 2
    assert "'half', expected bf16, fp16, fp32" in err
