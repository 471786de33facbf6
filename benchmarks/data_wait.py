"""How long training waits for data, and how many workers feed a GPU.

    python benchmarks/data_wait.py                     prints two tables; 3 minutes on 2 cores

1. The share of a fit's time that passes in `next(loader)`, for the recipe lite0 as `kit run` trains it here, and for a
   stub in its place: it sleeps a tenth of lite0's step and leaves the cores free, as a GPU does.
2. Crops a second that one worker makes of tiles in memory, per recipe: read, augmented, batched, handed over.
3. From it, how many workers feed a GPU that trains so many crops a second, given a core for each.

Batches come through `recipe.data(fold)` with `Fold(workers=n)`; the first few are left out.
"""

import argparse
import math
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner
from tiles import data_root, fold_of
from torch import Tensor, nn

from kit.paths import Paths
from kit.system.cpu import default_workers
from kit.training.callbacks import BalancedSampler
from kit.training.fit import Setup, build
from kit.training.recipe import Recipe, load_recipe

RECIPES = ("lite0", "efficientnet_b4", "efficientnet_b1")  # scaled crops, plain crops of 512 px, hard augmentation
GPU_CROPS_S = (100, 200, 500, 1000)
STUB_SHARE = 0.1  # of lite0's step here
ENDLESS = 10**6  # crops an epoch: none ends while it is timed
WARM_STEPS = 3  # and two batches a worker, which are ready at the start


@dataclass(frozen=True)
class Waited:
    """What a fit's time went to.

    Args:
        step_s: median of the steps, without the loader.
        share: of the time spent waiting for the loader.
        crops_s: crops a second.
    """

    step_s: float
    share: float
    crops_s: float


class Stopwatch(Callback):
    """Notes when batches come and when their steps end, and ends the fit after `seconds`."""

    def __init__(self, seconds: float, warm_steps: int) -> None:
        self.seconds, self.warm_steps = seconds, warm_steps
        self.came, self.ended = [], []

    def before_fit(self) -> None:
        self.dls.train.n = ENDLESS

    def before_batch(self) -> None:
        self.came.append(time.perf_counter())

    def after_batch(self) -> None:
        self.ended.append(time.perf_counter())
        if len(self.ended) > self.warm_steps + 1 and self.ended[-1] - self.ended[self.warm_steps] > self.seconds:
            raise CancelFitException

    def waited(self) -> Waited:
        came, ended = self.came[self.warm_steps + 1 :], self.ended[self.warm_steps :]
        waits = [after - before for before, after in zip(ended, came, strict=False)]
        total = ended[-1] - ended[0]
        steps = [end - start for start, end in zip(came, ended[1:], strict=True)]
        return Waited(statistics.median(steps), sum(waits) / total, len(steps) * self.dls.train.bs / total)


class Stub(nn.Module):
    """A network that takes `seconds` and no core.

    Shape:
        (N, 3, H, W) -> a scalar
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return self.weight


def time_fit(learn: Any, seconds: float) -> Waited:
    train = learn.dls.train
    for row in range(len(train.dataset)):
        train.dataset.read(row)
    stopwatch = Stopwatch(seconds, WARM_STEPS + 2 * train.fake_l.num_workers)
    learn.add_cb(stopwatch)
    learn.fit(1)
    return stopwatch.waited()


def time_stub(recipe: Recipe, root: Path, workers: int, step_s: float, seconds: float) -> Waited:
    dls = recipe.data(fold_of(root, workers=workers))
    dls.train.after_batch = lambda batch: batch  # masks grow to int64 on the device, which is not there
    learn = Learner(dls, Stub(step_s), lambda pred, _: pred, lr=0.0, cbs=BalancedSampler())
    with learn.no_bar(), learn.no_logging():
        return time_fit(learn, seconds)


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--workers", type=int, nargs="+", default=range(cores + 1), help="beside the stub")
    parser.add_argument("--step-seconds", type=float, default=0, help="of the stub; a tenth of lite0's by default")
    parser.add_argument("--data-root", type=Path, help="with a prepared data set; drawn by default")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {cores} cores\n")
    with data_root(options.data_root) as root:
        recipes = {name: load_recipe(name, Paths(Path())) for name in RECIPES}
        lite0 = recipes["lite0"]
        chosen = default_workers(torch.device("cpu"))
        real = time_fit(build(lite0, fold_of(root), Setup()), options.seconds)
        print("| network | workers | step, s | waiting | crops a second |\n|---|---|---|---|---|")
        print(f"| lite0 | {chosen} (kit's choice) | {real.step_s:.3f} | {real.share:.1%} | {real.crops_s:.1f} |")
        step_s = options.step_seconds or real.step_s * STUB_SHARE
        for workers in options.workers:
            stub = time_stub(lite0, root, workers, step_s, options.seconds)
            print(f"| stub | {workers} | {stub.step_s:.3f} | {stub.share:.1%} | {stub.crops_s:.1f} |", flush=True)
        heads = " | ".join(f"workers for {rate} a second" for rate in GPU_CROPS_S)
        print(f"\n| recipe | crops a second of one worker | {heads} |\n|---|---|" + "---|" * len(GPU_CROPS_S))
        for name, recipe in recipes.items():
            crops_s = time_stub(recipe, root, 1, 0.0, options.seconds).crops_s
            needed = " | ".join(str(math.ceil(rate / crops_s)) for rate in GPU_CROPS_S)
            print(f"| {name} | {crops_s:.1f} | {needed} |", flush=True)


if __name__ == "__main__":
    main()
