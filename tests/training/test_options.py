"""fastai's own options and torch's optimizers inside `kit run`: they do there what they do alone."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from factories import TINY_RECIPE
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("one_thread")

Cli = Callable[..., tuple[int, str, str]]
Weights = dict[str, torch.Tensor]
CROPS_PER_TILE = 12 / 14  # 12 crops an epoch of all 14 tiles: batches of 2 and of 4 are whole

HEAD = """
from functools import partial

from kit.training.callbacks import SWA
from kit.training.schedules import fit_cosine, fit_poly
"""
PARTS = """

class Still(fv.Callback):
    '''Batch norms keep their running means: then a batch of 4 is two of 2.'''

    def before_train(self):
        for module in self.model.modules():
            if isinstance(module, fv.nn.BatchNorm2d):
                module.eval()


class Whole(CrossEntropy):
    '''Every pixel counts, whatever is known of it: else the mean over a batch of 4 is not that of two of 2.'''

    def forward(self, logits, target):
        return super().forward(logits, target % 255)


class Watch(fv.Callback):
    '''Writes down the rates and the length of each step.'''

    order = 90

    def before_fit(self):
        self.steps = []
        self.weights = self.flat()
        names = {id(p): name for name, p in self.model.named_parameters()}
        self.groups = [[names[id(p)] for p in group] for group in self.opt.param_lists]

    def after_step(self):
        weights = self.flat()
        length = (weights - self.weights).norm().item()
        self.steps.append({"rates": [float(h["lr"]) for h in self.opt.hypers], "length": length})
        self.weights = weights

    def after_epoch(self):
        kind = type(getattr(self.opt, "opt", self.opt)).__name__
        seen = {"steps": self.steps, "groups": self.groups, "optimizer": kind}
        fv.Path(WATCHED).write_text(fv.json.dumps(seen))

    def flat(self):
        return fv.torch.cat([p.detach().flatten().clone() for p in self.model.parameters()])
"""


class Run:
    """Runs variants of the tiny recipe without holding anything out: the last weights are the ones kept."""

    def __init__(self, root: Path, cli: Cli) -> None:
        self.root, self.cli = root, cli

    def __call__(self, name: str, *arguments: object, **changes: Any) -> Weights:
        """Returns the kept weights; `changes` are the recipe's batch, loss, cbs, opt_func, and the body of fit."""
        self.write(name, **changes)
        code, self.out, self.err = self.cli(
            "run", name, "--root", self.root, "--no-pretrained", "--views", "none", *arguments or ("--all",)
        )
        assert code == 0, self.err
        self.folder = next((self.root / "runs" / name).iterdir())
        self.log = pd.read_csv(self.folder / "log.csv")
        self.seen = json.loads((self.root / f"{name}.json").read_text())
        return load_file(self.folder / "best.safetensors")

    def write(
        self,
        name: str,
        batch: int = 2,
        loss: str = "CrossEntropy()",
        cbs: str = "",
        opt_func: str = "fv.SGD",
        fit: str = "learn.fit(2, 0.1, wd=0)",
    ) -> None:
        text = TINY_RECIPE.replace("import albumentations", f"{HEAD}\nimport albumentations", 1)
        text = text.replace("dataloaders(fold, AUGMENT, 2)", f"dataloaders(fold, AUGMENT, {batch})")
        text = text.replace("cbs = [BalancedSampler(crops_per_tile=0.75), EMA(0.9)]", f"cbs = [{cbs}]")
        text = text.replace("cbs = [", f"cbs = [BalancedSampler(crops_per_tile={CROPS_PER_TILE}), Watch(), ")
        text = text.replace("CrossEntropy(), splitter", f"{loss}, opt_func={opt_func}, splitter")
        text = text.replace("learn.fit_one_cycle(2, slice(1e-4, 1e-3))", fit)
        (self.root / "recipes" / f"{name}.py").write_text(
            text + PARTS.replace("WATCHED", repr(str(self.root / f"{name}.json")))
        )

    def column(self, key: str) -> list[Any]:
        return [step[key] for step in self.seen["steps"]]


@pytest.fixture
def run(workplace: Path, cli: Cli) -> Run:
    return Run(workplace, cli)


def distance(one: Weights, other: Weights) -> float:
    return max((one[key].double() - other[key].double()).abs().max().item() for key in one)


TORCH_SGD = "partial(fv.OptimWrapper, opt=fv.torch.optim.SGD)"
TORCH_ADAMW = "partial(fv.OptimWrapper, opt=fv.torch.optim.AdamW, eps=1e-3)"  # where gradients are 0, no noise counts


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains in float32, also where the machine is faster in less, for comparisons to the last digit."""
    monkeypatch.setattr("kit.training.precision.autocast_dtype", lambda device: torch.float32)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("optimizer", ["fv.SGD", TORCH_SGD])
def test_four_accumulated_crops_are_a_batch_of_four(run: Run, optimizer: str):
    given = {"loss": "Whole()", "opt_func": optimizer, "fit": "learn.fit(2, 0.01, wd=0)"}
    accumulated = run("accumulated", batch=2, cbs="Still(), fv.GradientAccumulation(n_acc=4)", **given)
    steps, losses = len(run.seen["steps"]), run.log["train_loss"]
    whole = run("whole", batch=4, cbs="Still()", **given)
    assert len(run.seen["steps"]) == steps > 2
    assert distance(accumulated, whole) < 1e-6
    assert losses.tolist() == pytest.approx(run.log["train_loss"].tolist(), rel=0.05)  # smoothed over batches of 2
    assert distance(accumulated, run("small", batch=2, cbs="Still()", **given)) > 1e-4


def test_clipped_gradients_bound_the_step(run: Run):
    run("free", fit="learn.fit(2, 1.0, wd=0)")
    longest = max(run.column("length"))
    bound = longest / 10
    run("clipped", cbs=f"fv.GradientClip({bound})", fit="learn.fit(2, 1.0, wd=0)")
    assert max(run.column("length")) == pytest.approx(bound, rel=1e-3)  # the rate is 1: a step is its gradient


def test_early_stopping_ends_the_run_well(run: Run):
    stop = "fv.EarlyStoppingCallback(monitor='jaccard', min_delta=1.0, patience=2)"  # none can improve by that much
    run("patient", "--fold", "0", cbs=stop, fit="learn.fit(9, 1e-3)")
    assert run.log["epoch"].tolist() == [0, 1, 2]
    assert (run.folder / "curves.png").is_file()
    assert json.loads((run.folder / "result.json").read_text())["epoch"] == int(run.log["jaccard"].idxmax())
    lines = run.out.splitlines()
    assert lines[0].split() == ["out", "of", "scene", "jaccard"]  # fastai prints that it stops; results alone go here
    assert lines[-1] == str(run.root / "weights/patient.pt")
    assert "No improvement" not in run.out


def test_early_stopping_does_not_stop_what_holds_nothing_out(run: Run):
    run("patient", cbs="fv.EarlyStoppingCallback(monitor='jaccard')", fit="learn.fit(4, 1e-3)")
    assert len(run.log) == 4


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize(
    ("theirs", "ours", "kind", "fit"),
    [
        (TORCH_SGD, "fv.SGD", "SGD", "learn.fit(2, slice(0.01, 0.1), wd=0)"),
        (TORCH_ADAMW, "partial(fv.Adam, sqr_mom=0.999, eps=1e-3)", "AdamW", "learn.fit(2, slice(1e-3, 1e-2), wd=0)"),
    ],
)
def test_torchs_optimizers_step_as_fastais(run: Run, theirs: str, ours: str, kind: str, fit: str):
    one = run("theirs", opt_func=theirs, fit=fit)
    assert run.seen["optimizer"] == kind
    other = run("ours", opt_func=ours, fit=fit)
    assert run.seen["optimizer"] == "Optimizer"
    assert distance(one, other) < 1e-4
    assert distance(one, run("still", opt_func=theirs, fit="learn.fit(2, 1e-9, wd=0)")) > 1e-3


@pytest.mark.parametrize("optimizer", ["fv.Adam", TORCH_ADAMW])
def test_the_encoder_has_the_lower_rate(run: Run, optimizer: str):
    run("two_rates", opt_func=optimizer, fit="learn.fit_one_cycle(2, slice(1e-4, 1e-2))")
    assert all(encoder == pytest.approx(rest / 100) for encoder, rest in run.column("rates"))
    encoder, rest = run.seen["groups"]
    assert encoder
    assert all(name.startswith("encoder.") for name in encoder)
    assert rest
    assert not any(name.startswith("encoder.") for name in rest)
    assert run.log["lr"].iloc[-1] == pytest.approx(run.column("rates")[-1][1])


@pytest.mark.parametrize(
    ("fit", "falling"),
    [
        ("fit_cosine", lambda share: (1 + math.cos(math.pi * share)) / 2),
        ("fit_poly", lambda share: (1 - share) ** 0.9),
    ],
)
def test_schedules_run_over_the_whole_fit(run: Run, fit: str, falling: Callable[[float], float]):
    run("scheduled", opt_func=TORCH_ADAMW, fit=f"{fit}(learn, 3, slice(1e-3, 1e-2), warmup=0.25, wd=0.01)")
    rates = run.column("rates")
    per_epoch = len(rates) // 3
    assert len(rates) == 3 * per_epoch > 8
    for step, pair in enumerate(rates):
        share = step / len(rates)
        factor = 0.01 + 0.99 * share / 0.25 if share < 0.25 else falling((share - 0.25) / 0.75)
        assert pair == pytest.approx([1e-3 * factor, 1e-2 * factor], rel=1e-4)
    assert run.log["lr"].tolist() == pytest.approx([rates[n * per_epoch - 1][1] for n in (1, 2, 3)], rel=1e-4)


def test_all_together_export(run: Run):
    cbs = "fv.GradientAccumulation(4), fv.GradientClip(1.0), SWA(0.5), fv.EarlyStoppingCallback('jaccard', patience=9)"
    run("together", "--fold", "0", cbs=cbs, opt_func=TORCH_ADAMW, fit="fit_poly(learn, 4, slice(1e-4, 1e-3), wd=0.01)")
    assert len(run.log) == 4
    assert run.log[["train_loss", "valid_loss", "jaccard"]].notna().all(axis=None)
    assert run.out.splitlines()[-1] == str(run.root / "weights/together.pt")
