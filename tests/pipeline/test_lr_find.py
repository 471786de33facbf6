"""`kit lr-find`: suggestions, a picture, nothing left behind, whatever callbacks the recipe has."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from factories import TINY_RECIPE

import kit.pipeline.lr_find as module
from kit.models.pretrained import Source
from kit.paths import Paths
from kit.training.curves import draw_rates

pytestmark = pytest.mark.usefixtures("one_thread")

Cli = Callable[..., tuple[int, str, str]]
RANDOM = Source(pretrained=False)


def files(root: Path) -> set[str]:
    return {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file() and file.suffix != ".pyc"}


@pytest.fixture
def own(workplace: Path) -> Callable[..., Paths]:
    """Writes the user's recipe `mine`: the tiny one, changed."""

    def write(*changes: tuple[str, str]) -> Paths:
        text = TINY_RECIPE.replace("import EMA, BalancedSampler", "import EMA, SWA, BalancedSampler, LossSwitch")
        text = text.replace("\nAUGMENT", "from kit.training.distillation import Distillation\n\nAUGMENT", 1)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (workplace / "recipes" / "mine.py").write_text(text)
        return Paths(workplace)

    return write


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The Learners that were trained, with the weights that they began with."""
    kept: list[Any] = []
    plain = module._rise

    def watched(recipe: Any, learn: Any, steps: int) -> None:
        kept.append((learn, {key: value.clone() for key, value in learn.model.state_dict().items()}))
        plain(recipe, learn, steps)

    monkeypatch.setattr(module, "_rise", watched)
    return kept


def test_the_command_suggests_and_draws(
    workplace: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[Any]
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = files(workplace)
    code, out, err = cli("lr-find", "tiny", "--root", workplace, "--no-pretrained")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["suggestion", "rate"]
    rates = {name: float(rate) for name, rate in (line.split() for line in lines[1:3])}
    assert set(rates) == {"valley", "steep"}
    assert all(1e-7 < rate < 10 for rate in rates.values())
    picture = workplace / "runs/tiny/lr_find.png"
    assert lines[3:] == [str(picture)]
    assert cv2.imread(str(picture)).shape == (440, 770, 3)
    assert files(workplace) - before == {"runs/tiny/lr_find.png"}
    assert list(Path.cwd().iterdir()) == []
    assert "encoder weights from random weights" in err
    assert re.search(r"lr-find tiny \d+/100, ", err)
    assert "epoch" not in out + err  # fastai's own log
    learn, weights = trained[0]
    assert all(torch.equal(value, weights[key]) for key, value in learn.model.state_dict().items())


MANY = (
    "EMA(0.9), LossSwitch(0), Distillation(), fv.GradientAccumulation(4), fv.GradientClip(1.0), "
    "fv.EarlyStoppingCallback('jaccard'), fv.SaveModelCallback('jaccard')"
)


@pytest.mark.parametrize(
    "cbs",
    [
        f"BalancedSampler(crops_per_tile=0.4), {MANY}",  # an epoch is shorter than the data set
        "BalancedSampler(crops_per_tile=9), SWA(0)",  # and longer
        MANY,
    ],
)
def test_the_rate_rises_over_all_steps(
    own: Callable[..., Paths], trained: list[Any], cbs: str, monkeypatch: pytest.MonkeyPatch
):
    """However long an epoch is, and whatever the recipe does at its end; the weights come back."""
    paths = own(("BalancedSampler(crops_per_tile=0.75), EMA(0.9)", cbs))
    monkeypatch.chdir(paths.root)
    before = files(paths.root)
    found = module.lr_find("mine", paths, source=RANDOM, steps=30)
    assert files(paths.root) - before == {"runs/mine/lr_find.png"}
    learn, weights = trained[0]
    rates = learn.recorder.lrs
    assert rates == pytest.approx([1e-7 * 1e8 ** (step / 30) for step in range(len(rates))])
    assert len(rates) == 30 or learn.smooth_loss > 4 * min(learn.recorder.losses)
    for rate in found.rates.values():
        assert any(rate == pytest.approx(known) for known in rates[3:-5])
    assert type(learn.loss_func).__name__ == "CrossEntropy"  # LossSwitch did not come in
    assert all(torch.equal(value, weights[key]) for key, value in learn.model.state_dict().items())


def test_the_picture_shows_both_suggestions(tmp_path: Path):
    rates = [10 ** (n / 10 - 6) for n in range(60)]
    losses = [1 + 0.01 * (n - 40) ** 2 for n in range(60)]
    draw_rates(rates, losses, {"valley": rates[20], "steep": rates[30]}, tmp_path / "curve.png")
    picture = cv2.imread(str(tmp_path / "curve.png")).astype(int)
    for colour in ((180, 119, 31), (14, 127, 255), (44, 160, 44)):  # matplotlib's first three, BGR
        assert (np.abs(picture - colour).sum(axis=2) < 10).sum() > 30


def failed(cli: Cli, *arguments: object) -> str:
    code, out, err = cli("lr-find", *arguments, "--no-pretrained", "--steps", 20)
    assert (code, out) == (1, ""), err
    assert "hint: " in err
    return err


def test_mistakes_are_told(own: Callable[..., Paths], cli: Cli, tmp_path: Path):
    root = own().root
    assert "did you mean 'tiny'?" in failed(cli, "tinny", "--root", root)
    assert "no fold 7" in failed(cli, "mine", "--root", root, "--fold", "7")
    assert "no data set 'other'" in failed(cli, "mine", "--root", root, "--data", "other")
    assert "no device 'abacus'" in failed(cli, "mine", "--root", root, "--device", "abacus")
    assert "kit prepare CATALOG" in failed(cli, root / "recipes/mine.py", "--root", tmp_path / "empty")
    assert not (root / "runs").exists()
    assert cli("lr-find", "mine", "--root", root, "--steps", "5")[0] == 2


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("A.D4()", "A.GaussNoise(var_limit=10)", "var_limit.*not valid for transform"),
        ("CrossEntropy(), split", "lambda p, y: p.sum() * float('nan'), split", "not finite, after 2 of 20 steps"),
        ("CrossEntropy(), split", "lambda p, y: p.mean() * 0 + next(GROWING), split", "explodes.* of 20 steps"),
        ("CrossEntropy(), split", "lambda p, y: p + y, split", "mine.py: training failed: RuntimeError"),
    ],
)
def test_what_cannot_be_searched_is_told(own: Callable[..., Paths], cli: Cli, old: str, new: str, error: str):
    growing = "GROWING = iter([10.0**n for n in range(20)])"
    root = own((old, new), ("\nAUGMENT", f"\n{growing}\nAUGMENT")).root
    assert re.search(error, failed(cli, "mine", "--root", root))
    assert not (root / "runs").exists()
