"""A training step of a recipe in each precision, in turn, in one process; with --profile, where its time goes.

    python benchmarks/train_speed.py [RECIPE...] [--batch 8] [--rounds 6]       prints a table
    python benchmarks/train_speed.py lite0 --profile bf16-dw32                  prints torch's profile of two steps

Steps are those of `kit run`: the recipe's loss, a fused AdamW, the moving average of the weights, channels_last, malloc
that keeps freed blocks; random pixels from memory, random weights. A round takes one step of each side, every second
round in the opposite order. The fastest side is what `kit run` chooses in its first steps.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kit.paths import Paths
from kit.system.devices import keep_freed_memory, processor_name
from kit.training.fit import rebuild
from kit.training.precision import autocast
from kit.training.recipe import load_recipe

SIDE_PX = 512
SIDES = ("bf16", "bf16-dw32", "fp32")


def step_of(recipe: str, batch: int) -> Callable[[str], float]:
    """Returns a function that takes a step in a precision, and returns its seconds per crop."""
    learn = rebuild(load_recipe(recipe, Paths(Path())))
    model = learn.model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    average = [weight.detach().clone() for weight in model.parameters()]
    move = get_ema_multi_avg_fn(0.99)
    images = torch.randint(0, 256, (batch, 3, SIDE_PX, SIDE_PX), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    masks = torch.randint(0, 2, (batch, SIDE_PX, SIDE_PX))

    def step(precision: str) -> float:
        start = time.perf_counter()
        with autocast(model, precision, images.device):
            logits = model(images)
        learn.loss_func(logits.float(), masks).backward()
        optimizer.step()
        optimizer.zero_grad()
        move(average, list(model.parameters()), 1)
        return (time.perf_counter() - start) / batch

    return step


def profile(step: Callable[[str], float], precision: str) -> None:
    """Prints torch's profile of two steps."""
    step(precision)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(2):
            step(precision)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="*", default=["lite0"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--profile", choices=SIDES)
    options = parser.parse_args()
    keep_freed_memory()
    if options.profile:
        profile(step_of(options.recipe[0], options.batch), options.profile)
        return
    print(
        f"{processor_name(torch.device('cpu'))}, torch {torch.__version__}, {torch.get_num_threads()} threads, ", end=""
    )
    print(f"{options.batch} crops a step; seconds a crop, median of {options.rounds} rounds (least to most)\n")
    print(f"| recipe | {' | '.join(SIDES)} | bf16 / fastest |")
    print("|---" * (len(SIDES) + 2) + "|")
    for name in options.recipe:
        step = step_of(name, options.batch)
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for side in SIDES:
            step(side)  # compiles kernels
        for number in range(options.rounds):
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                seconds[side].append(step(side))
        middle = {side: statistics.median(values) for side, values in seconds.items()}
        cells = [f"{middle[side]:.3g} ({min(seconds[side]):.3g} to {max(seconds[side]):.3g})" for side in SIDES]
        print(f"| {name} | {' | '.join(cells)} | {middle['bf16'] / min(middle.values()):.2f} |", flush=True)


if __name__ == "__main__":
    main()
