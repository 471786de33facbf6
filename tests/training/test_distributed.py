"""Several processes on this machine train one model: started, exact, and ended together."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from factories import TINY_RECIPE
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

Cli = Callable[..., tuple[int, str, str]]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

# float64, SGD, batch norms in eval, five steps, and uneven ignored pixels: nothing may differ but the last digits
EXACT = TINY_RECIPE.replace(
    "import albumentations as A\n", "import albumentations as A\nimport torch\n\nfrom kit.system.ranks import rank\n"
).replace(
    "dataloaders(fold, AUGMENT, 2)", "dataloaders(fold, AUGMENT, BATCH)"
).replace(
    "    cbs = [BalancedSampler(crops_per_tile=0.75), EMA(0.9)]",
    "    model.double()\n    cbs = [BalancedSampler(crops_per_tile=STEPS * 2 / len(dls.train.dataset)), Still()]",
).replace(
    "fv.Learner(dls, model, CrossEntropy(),",
    "fv.Learner(dls, model, CrossEntropy(), opt_func=fv.partial(fv.OptimWrapper, opt=torch.optim.SGD),",
).replace("learn.fit_one_cycle(2, slice(1e-4, 1e-3))", "learn.fit(1, 0.1)") + '''

STEPS = 5


class Still(fv.Callback):
    def before_train(self):
        for module in self.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()

    def after_loss(self):
        self.learn.loss = self.loss.float()  # what fastai smooths is float32

    def after_batch(self):
        if self.training:
            with fv.Path(f"known{rank()}.txt").open("a") as stream:
                print(int((self.y != 255).sum()), file=stream)
'''  # fmt: skip


def kit(root: Path, *arguments: object, env: dict[str, str] = ENVIRONMENT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kit", *map(str, arguments), "--root", str(root)]
    return subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, check=False)


TRAIN = ("--no-pretrained", "--fold", "0", "--no-export", "--precision", "fp32")  # no autocast, whatever the CPU


def test_two_ranks_are_one_process_with_twice_the_batch(workplace: Path):
    (workplace / "recipes/one.py").write_text(EXACT.replace("BATCH", "2"))
    (workplace / "recipes/two.py").write_text(EXACT.replace("BATCH", "1"))
    one = kit(workplace, "run", "one", *TRAIN)
    assert one.returncode == 0, one.stderr
    (workplace / "known0.txt").unlink()
    two = kit(workplace, "run", "two", *TRAIN, "--nproc", 2)
    assert two.returncode == 0, two.stderr
    start = json.loads((workplace / "runs/two/fold0/settings.json").read_text())
    assert (start["ranks"], start["steps_per_epoch"]) == (2, 5)
    known = [[int(line) for line in (workplace / f"known{rank}.txt").read_text().split()] for rank in (0, 1)]
    uneven = [min(pair) < 0.9 * max(pair) for pair in zip(*known, strict=True)]
    assert len(uneven) == 5
    assert sum(uneven) >= 2  # or it would be no test

    folders = [workplace / f"runs/{name}/fold0" for name in ("one", "two")]
    weights, other = (load_file(folder / "best.safetensors") for folder in folders)
    assert all(weights[name].dtype == torch.float64 for name in ("head.weight", "neck.0.weight"))
    assert max((weights[name] - other[name]).abs().max().item() for name in weights) <= 1e-10
    # 6 tiles are held out: 3 of each rank in one batch, or 4 and 2 of the one
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    assert results[0]["scenes"] == results[1]["scenes"]
    logs = [(folder / "log.csv").read_text().splitlines()[1].split(",")[:-1] for folder in folders]
    assert [float(value) for value in logs[0]] == pytest.approx([float(value) for value in logs[1]], abs=1e-6)
    for table in ("oof.csv", "levels.csv"):
        assert (folders[0] / table).read_text() == (folders[1] / table).read_text()
    assert {p.name for p in (folders[1] / "overlays").iterdir()} == {"best.png", "median.png", "worst.png"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


COUNTED = TINY_RECIPE.replace("EMA(0.9)]", "EMA(0.9), Count()]").replace(
    "import albumentations as A\n", "import time\n\nimport albumentations as A\n\nfrom kit.system.ranks import rank\n"
) + '''

class Count(fv.Callback):
    def after_batch(self):
        if self.training:
            time.sleep(0.3 * rank())

    def after_train(self):
        with fv.Path(f"steps{rank()}.txt").open("a") as stream:
            print(self.iter + 1, self.n_iter, round(self.pct_train, 9), file=stream)
'''  # fmt: skip


def test_ranks_agree_on_the_steps_of_a_time_budget(workplace: Path):
    """Although rank 1 is slower: with other numbers of steps, one of them would wait for ever."""
    (workplace / "recipes/counted.py").write_text(COUNTED)
    run = kit(workplace, "run", "counted", *TRAIN, "--nproc", 2, "--minutes", 0.2, "--epochs", 3)
    assert run.returncode == 0, run.stderr
    first, second = ((workplace / f"steps{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert first == second
    log = pd.read_csv(workplace / "runs/counted/fold0/log.csv")
    assert [int(line.split()[0]) for line in first] == log["steps"].tolist()
    assert len(log) == 3


def test_every_launcher_gives_the_same_weights(workplace: Path):
    """`--nproc`, torchrun, torch.distributed.launch with its --local-rank, and two nodes of one process each."""
    from_kit = kit(workplace, "run", "tiny", "--no-pretrained", "--fold", "0", "--precision", "fp32", "--nproc", 2)
    assert from_kit.returncode == 0, from_kit.stderr
    assert from_kit.stdout.splitlines()[-1] == str(workplace / "weights/tiny.pt")
    assert "Warning" not in from_kit.stderr
    assert from_kit.stderr.count("2 ranks") == 1
    folder = workplace / "runs/tiny/fold0"
    expected = load_file(folder / "best.safetensors")
    arguments = ["-m", "kit", "run", "tiny", *TRAIN, "--root", str(workplace), "--restart"]
    port = str(free_port())
    address = ["--master-addr", "127.0.0.1", "--master-port", port]
    launches = {
        "torchrun": [["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]],
        "launch": [["torch.distributed.launch", "--nproc-per-node", "2", *address]],
        "two nodes": [
            ["torch.distributed.run", "--nnodes", "2", "--node-rank", node, "--nproc-per-node", "1", *address]
            for node in ("0", "1")
        ],
    }
    for name, launchers in launches.items():
        running = [
            subprocess.Popen(
                [sys.executable, "-m", *launcher, *arguments], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
            )
            for launcher in launchers
        ]
        errors = [process.communicate()[1] for process in running]
        assert [process.returncode for process in running] == [0] * len(running), (name, errors)
        found = load_file(folder / "best.safetensors")
        assert all(torch.equal(found[key], expected[key]) for key in expected), name


DYING = TINY_RECIPE.replace("EMA(0.9)]", "EMA(0.9), Dying()]") + '''

import os, signal
from kit.system.ranks import rank


class Dying(fv.Callback):
    def after_batch(self):
        if self.training and self.epoch == 1 and rank() == 1 and fv.Path(FILE).exists():
            HOW
'''  # fmt: skip


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "rank 1 of 2 was ended by SIGKILL"),
        ("raise ValueError('a bad tile')", "fit() failed"),
    ],
    ids=["killed", "failed"],
)
def test_when_a_rank_dies_all_end(workplace: Path, how: str, message: str):
    file = workplace / "die"
    file.touch()
    (workplace / "recipes/dying.py").write_text(DYING.replace("FILE", repr(str(file))).replace("HOW", how))
    begun = time.monotonic()
    done = kit(workplace, "run", "dying", *TRAIN, "--nproc", 2)
    assert time.monotonic() - begun < 60
    assert done.returncode == 1
    assert message in done.stderr
    assert "rerun the same command" in done.stderr or "--debug" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") <= 2  # the one that died, and the one that waited for it
    file.unlink()
    again = kit(workplace, "run", "dying", *TRAIN, "--nproc", 2)
    assert again.returncode == 0, again.stderr
    assert "resuming after 1 epoch of" in again.stderr


def test_a_mistake_is_told_once(workplace: Path):
    done = kit(workplace, "run", "tiny", *TRAIN, "--nproc", 2, "--data", "nowhere")
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1


def test_folds_side_by_side(workplace: Path):
    done = kit(workplace, "run", "tiny", "--no-pretrained", "--parallel-folds", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(workplace / "weights/tiny.pt")
    assert "tiny fold 0: finished before, kept" in done.stderr
    assert "tiny fold 1: finished before, kept" in done.stderr
    assert len(json.loads((workplace / "weights/tiny.json").read_text())["members"]) == 2


def test_a_fold_that_fails_is_named_and_the_others_finish(workplace: Path):
    text = TINY_RECIPE.replace("    return dataloaders", "    assert fold.number != 1, 'no'\n    return dataloaders")
    (workplace / "recipes/half.py").write_text(text)
    done = kit(workplace, "run", "half", "--no-pretrained", "--parallel-folds", 2)
    assert done.returncode == 1
    assert "fold 1 of 2 failed" in done.stderr
    assert (workplace / "runs/half/fold0/result.json").exists()
