"""A run that is cut short anywhere, and taken up again, ends bit for bit as one that was not."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from factories import TINY_RECIPE
from safetensors.torch import load_file

from kit.errors import RunError
from kit.training.checkpoint import plain, random_states, read_checkpoint, restore_random_states

Cli = Callable[..., tuple[int, str, str]]

# dropout, MixUp and CutMix draw in every step; the loss changes on the way; steps are counted over all sessions
CUT = '''

class Cut(fv.Callback):
    """Ends the session at the steps that the file `cuts` lists: by an exception, or by SIGKILL."""

    order = 200
    run_valid = False

    def after_batch(self):
        done = len(self.learn.run_log.rows) * self.n_iter + self.iter + 1
        cuts = json.loads(CUTS.read_text()) if CUTS.exists() else []
        if cuts and done >= cuts[0]:
            CUTS.write_text(json.dumps(cuts[1:]))
            if BY_SIGNAL:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
'''
RICH = TINY_RECIPE.replace(
    "import albumentations as A\n",
    "import json\nimport os\nimport signal\nfrom pathlib import Path\n\nimport albumentations as A\nimport torch\n",
).replace(
    "from kit.training.callbacks import EMA, BalancedSampler",
    "from kit.models.losses import Dice\nfrom kit.training.callbacks import EMA, BalancedSampler, LossSwitch\n"
    "from kit.training.mixing import CutMix, MixUp",
).replace(
    "    cbs = [BalancedSampler(crops_per_tile=0.75), EMA(0.9)]",
    "    model.head = torch.nn.Sequential(torch.nn.Dropout2d(0.2), model.head)\n"
    "    cbs = [BalancedSampler(crops_per_tile=2.25), EMA(0.9), MixUp(), CutMix(), LossSwitch(2, Dice()), Cut()]",
).replace("fit_one_cycle(2,", "fit_one_cycle(4,") + CUT  # fmt: skip


def write_recipe(root: Path, text: str, kill: bool = False) -> Path:
    """Writes the recipe `rich` and returns the file that says where to cut it."""
    cuts = root / "cuts"
    (root / "recipes/rich.py").write_text(text.replace("CUTS", f"Path({str(cuts)!r})").replace("BY_SIGNAL", str(kill)))
    return cuts


def command(root: Path) -> tuple[object, ...]:
    options = ("--no-pretrained", "--fold", "0", "--no-export", "--checkpoint-minutes", 1e-9)
    return ("run", "rich", "--root", root, *options)


def outcome(root: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], pd.DataFrame, object]:
    """Returns the best weights, the last ones, the log without its times, and the score.

    A fit that stopped early ends with the checkpoint before, which depends on when the session began.
    """
    folder = root / "runs/rich/fold0"
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    score = json.loads((folder / "result.json").read_text())["scenes"]
    log = pd.read_csv(folder / "log.csv").drop(columns="seconds")
    last = {} if saved["iteration"] else saved["model"]
    return load_file(folder / "best.safetensors"), last, log, score


def assert_same(one: object, other: object) -> None:
    for mine, theirs in zip(one[:2], other[:2], strict=True):
        assert set(mine) == set(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    pd.testing.assert_frame_equal(one[2], other[2], check_exact=True)
    assert one[3] == other[3]


WRAPPED = RICH.replace(
    "fv.Learner(dls, model, CrossEntropy(),",
    "fv.Learner(dls, model, CrossEntropy(), opt_func=fv.partial(fv.OptimWrapper, opt=torch.optim.AdamW, fused=True),",
)
TWO_FITS = RICH.replace(
    "    learn.fit_one_cycle(4, slice(1e-4, 1e-3))",
    "    learn.freeze()\n    learn.fit_one_cycle(1, 1e-3)\n    learn.unfreeze()\n    learn.fit_one_cycle(3, 1e-3)",
)
ACCUMULATED = RICH.replace("Cut()]", "Cut(), fv.GradientAccumulation(6), fv.GradientClip(0.5)]").replace(
    "from fastai.vision import all as fv", "from fastai.callback.training import *\nfrom fastai.vision import all as fv"
)
STOPPED = RICH.replace("Cut()]", "Cut(), fv.EarlyStoppingCallback('train_loss', min_delta=9.0, patience=2)]")
STEPS = 9  # an epoch; timed checkpoints from the fifth on
# in the first steps, beside timed checkpoints, in the last step of an epoch, and of the run
CUTS = [[3], [6, 8, 15], [18, 25], [27, 36]]


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(RICH, id="rich"),
        pytest.param(ACCUMULATED, id="accumulated", marks=pytest.mark.slow),
        pytest.param(WRAPPED, id="wrapped", marks=pytest.mark.slow),
        pytest.param(TWO_FITS, id="two_fits", marks=pytest.mark.slow),
        pytest.param(STOPPED, id="stopped", marks=pytest.mark.slow),
    ],
)
def test_taken_up_again_it_ends_the_same(workplace: Path, cli: Cli, recipe: str, one_thread: None):
    cuts = write_recipe(workplace, recipe)
    code, _, err = cli(*command(workplace))
    assert code == 0, err
    whole = outcome(workplace)
    assert len(whole[2]) == (3 if recipe is STOPPED else 4)
    for points in CUTS:
        cuts.write_text(json.dumps(points))
        code, _, err = cli(*command(workplace), "--restart")
        sessions = 1
        while code:
            assert "error: interrupted" in err
            code, _, err = cli(*command(workplace))
            sessions += 1
        assert sessions == 1 + len([p for p in points if p <= STEPS * len(whole[2])])
        assert_same(outcome(workplace), whole)


@pytest.mark.slow
def test_killed_at_random_points_it_ends_the_same(workplace: Path):
    """SIGKILL, a new process each time, until it is done."""

    def session(*extra: object) -> subprocess.CompletedProcess[str]:
        whole = [sys.executable, "-m", "kit", *map(str, (*command(workplace), *extra))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)

    cuts = write_recipe(workplace, RICH, kill=True)
    done = session()
    assert done.returncode == 0, done.stderr
    whole = outcome(workplace)
    points = sorted(random.Random(0).sample(range(1, 4 * STEPS + 1), 3))
    cuts.write_text(json.dumps(points))
    codes = [session("--restart").returncode]
    while codes[-1]:
        codes.append(session().returncode)
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert_same(outcome(workplace), whole)
    assert not [p for p in (workplace / "runs").rglob("*") if ".part" in p.name]


@pytest.fixture
def unfinished(workplace: Path, cli: Cli) -> Path:
    """A workplace whose run was cut short in its third epoch."""
    write_recipe(workplace, RICH).write_text("[20]")
    code, _, err = cli(*command(workplace))
    assert code == 1, err
    return workplace


def test_a_changed_recipe_is_noticed(unfinished: Path, cli: Cli):
    recipe = unfinished / "recipes/rich.py"
    recipe.write_text(recipe.read_text().replace("1e-3", "2e-3"))
    before = (unfinished / "runs/rich/fold0/checkpoint.pt").read_bytes()
    code, _, err = cli(*command(unfinished))
    assert code == 1
    assert "holds an unfinished run with other settings: recipe_sha256" in err
    assert "--resume continues with the changes, --restart trains from the start" in err
    assert (unfinished / "runs/rich/fold0/checkpoint.pt").read_bytes() == before
    code, _, err = cli(*command(unfinished), "--resume")
    assert code == 0, err
    assert "resuming although recipe_sha256" in err
    assert "resuming after 2 epochs" in err
    assert len(pd.read_csv(unfinished / "runs/rich/fold0/log.csv")) == 4


def test_restart_forgets_the_run(unfinished: Path, cli: Cli):
    code, _, err = cli(*command(unfinished), "--restart")
    assert code == 0, err
    assert "resuming" not in err


def test_resume_and_restart_exclude_each_other(workplace: Path, cli: Cli):
    code, _, err = cli("run", "tiny", "--root", workplace, "--resume", "--restart")
    assert code == 2
    assert "mutually exclusive" in err


def test_another_thread_count_is_noticed(unfinished: Path, cli: Cli):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        code, _, err = cli(*command(unfinished))
    finally:
        torch.set_num_threads(before)
    assert code == 1
    assert f"threads {before} is now {before + 1}" in err
    assert f"OMP_NUM_THREADS={before}" in err


def test_a_checkpoint_of_another_network_is_told(unfinished: Path, cli: Cli):
    recipe = unfinished / "recipes/rich.py"
    recipe.write_text(recipe.read_text().replace("(16, 8, 8)", "(24, 8, 8)"))
    code, _, err = cli(*command(unfinished), "--resume")
    assert code == 1
    assert "the checkpoint no longer fits the recipe" in err
    assert "--restart" in err


def test_a_broken_checkpoint_is_told(unfinished: Path, cli: Cli):
    file = unfinished / "runs/rich/fold0/checkpoint.pt"
    file.write_bytes(file.read_bytes()[:1000])
    code, _, err = cli(*command(unfinished))
    assert code == 1
    assert "checkpoint.pt cannot be read" in err
    assert "--restart" in err


def test_a_full_disk_keeps_the_last_checkpoint(unfinished: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    file = unfinished / "runs/rich/fold0/checkpoint.pt"
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("kit.training.checkpoint.os.fsync", full)
        code, _, err = cli(*command(unfinished))
    assert code == 1
    assert "cannot write" in err
    assert "No space left" in err
    assert file.read_bytes() == before
    assert cli(*command(unfinished))[0] == 0


def test_two_processes_do_not_share_a_run(unfinished: Path, cli: Cli):
    from kit.system.files import locked

    with locked(unfinished / "runs/rich/fold0"):
        code, _, err = cli(*command(unfinished))
    assert code == 1
    assert "another process writes" in err


def test_plain_values_load_without_pickles(tmp_path: Path):
    state = {"a": np.float64(0.5), "b": np.arange(3), "c": (1, [torch.ones(2)]), "d": None, "random": random_states()}
    torch.save(plain(state), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert loaded["a"] == 0.5
    assert loaded["b"] == [0, 1, 2]
    assert torch.equal(loaded["c"][1][0], torch.ones(2))
    drawn = random.random(), np.random.random(), torch.rand(2)
    restore_random_states(loaded["random"])
    assert (random.random(), np.random.random()) == drawn[:2]
    assert torch.equal(torch.rand(2), drawn[2])


def test_what_a_checkpoint_holds_runs_no_code(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, ("true",)

    torch.save({"model": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(RunError, match="cannot be read"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_of_an_older_kit_is_told(tmp_path: Path):
    torch.save({"epoch": 3, "model": {}, "log": []}, tmp_path / "checkpoint.pt")
    with pytest.raises(RunError, match="was written by an older version"):
        read_checkpoint(tmp_path)
