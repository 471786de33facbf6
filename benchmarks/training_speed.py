"""Seconds per crop of kit's training, data loading included, against a plain PyTorch loop.

    python benchmarks/training_speed.py [RECIPE...]    prints a table; 9 minutes on 2 cores

Both sides train on the same tiles with the recipe's augmentation, 4 crops of 512 x 512 px a step; tiles are in memory.
The encoder begins at ImageNet weights for lite0, at random ones for the others. A side runs in a process of its own;
in every second round the other side begins.

kit:   the recipe's Learner with its callbacks and optimizer, and those that every fit gets, as `kit run` trains it:
       channels_last, malloc that keeps freed blocks, bf16 where the CPU has it. lite0 reduces the crop to 256 px first.
plain: benchmarks/plain_loop.py: smp's U-Net over the same timm encoder, fp32, torch's DataLoader and AdamW.

Timed are whole steps, from the end of the first to the end of the last: loading, augmentation, forward, backward,
update.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from fastai.callback.core import Callback, CancelFitException
from plain_loop import PlainTiles, PlainTraining, PlainUnet, start_of
from tiles import data_root, fold_of

from kit.paths import Paths
from kit.system.devices import autocast_dtype
from kit.training.fit import Setup, build, rebuild
from kit.training.recipe import load_recipe

BATCH = 4
RECIPES = ("lite0", "seresnext50", "efficientnet_b4")
STEPS = {"lite0": 8}  # its steps are short; of the others, two
SIDES = ("kit", "plain")


class Clock(Callback):
    """Notes when each step ends, and ends the fit after the last."""

    order = 100

    def __init__(self, steps: int) -> None:
        self.steps, self.ends = steps, []

    def before_fit(self) -> None:
        self.dls.train.n = self.steps * self.dls.train.bs

    def after_batch(self) -> None:
        self.ends.append(time.perf_counter())
        if len(self.ends) == self.steps:
            raise CancelFitException


def kit_side(name: str, root: Path, steps: int, workers: int) -> list[float]:
    recipe = load_recipe(name, Paths(Path()))
    learn = build(recipe, fold_of(root, workers=workers), Setup(source=start_of(name)))
    train = learn.dls.train
    train.bs = BATCH
    for row in range(len(train.dataset)):
        train.dataset.read(row)
    clock = Clock(steps)
    learn.add_cb(clock)
    recipe.fit(learn)
    return clock.ends


def plain_side(name: str, root: Path, steps: int, workers: int) -> list[float]:
    recipe, fold = load_recipe(name, Paths(Path())), fold_of(root)
    transform = recipe.data(fold).train.dataset.transform
    crops = PlainTiles(fold.train, transform, steps * BATCH)
    step = PlainTraining(PlainUnet(rebuild(recipe).model.encoder_name, start_of(name)), recipe.option("LR", 1e-4))
    ends = []
    for images, masks in torch.utils.data.DataLoader(crops, BATCH, shuffle=True, num_workers=workers):
        step(images, masks)
        ends.append(time.perf_counter())
    return ends


def in_own_process(side: str, name: str, root: Path, steps: int, workers: int) -> float:
    """Returns seconds per crop."""
    options = ["--data-root", root, "--steps", steps, "--plain-workers", workers, "--side", side]
    command = [sys.executable, "-W", "ignore", __file__, name, *map(str, options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    ends = json.loads(done.stdout.splitlines()[-1])
    return (ends[-1] - ends[0]) / (len(ends) - 1) / BATCH


def as_text(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3g} ({min(seconds):.3g} to {max(seconds):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="*", default=RECIPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="timed steps a round, after one to warm up")
    parser.add_argument("--plain-workers", type=int, default=0, help="of the plain side's DataLoader")
    parser.add_argument("--data-root", type=Path, help="with a prepared data set; drawn by default")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        train = {"kit": kit_side, "plain": plain_side}[options.side]
        workers = {"kit": -1, "plain": options.plain_workers}[options.side]
        print(json.dumps(train(options.recipe[0], options.data_root, options.steps + 1, workers)))
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, kit in {autocast_dtype(torch.device('cpu'))}, "
        f"{BATCH} crops a step, plain loader with {options.plain_workers} workers; seconds per crop: median (least to "
        f"most) of {options.rounds} rounds\n"
    )
    print("| recipe | kit | plain | plain / kit |\n|---|---|---|---|")
    with data_root(options.data_root) as root:
        for name in options.recipe:
            steps = options.steps or STEPS.get(name, 2)
            seconds = {side: [] for side in SIDES}
            for number in range(options.rounds):
                for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                    seconds[side].append(in_own_process(side, name, root, steps, options.plain_workers))
            ratio = statistics.median(seconds["plain"]) / statistics.median(seconds["kit"])
            print(f"| {name} | {as_text(seconds['kit'])} | {as_text(seconds['plain'])} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
