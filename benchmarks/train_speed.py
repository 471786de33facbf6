"""A training step of a recipe in bfloat16 and float32, with torch's and with kit's backward pass of depthwise layers.

    OMP_WAIT_POLICY=passive python benchmarks/train_speed.py [RECIPE...] [--batch 8] [--rounds 6]      prints a table
    python benchmarks/train_speed.py lite0 --profile bf16                                 prints torch's profile

Steps are those of `kit run`: the recipe's loss, a fused AdamW, the moving average of the weights, channels_last, malloc
that keeps freed blocks; random pixels from memory, random weights. All sides share a process and a network; a round
takes one step of each, every second round in the opposite order. Seconds are CPU seconds of all threads, and the table
holds the least: on a busy machine, wall time says little.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kit.models.depthwise import fast_backward
from kit.paths import Paths
from kit.system.devices import keep_freed_memory, processor_name
from kit.training.fit import rebuild
from kit.training.recipe import load_recipe

SIDE_PX = 512
SIDES = {
    "bf16, torch's": ("bf16", False),
    "fp32, torch's": ("fp32", False),
    "bf16": ("bf16", True),
    "fp32": ("fp32", True),
}


def step_of(recipe: str, batch: int) -> Callable[[str], float]:
    """Returns a function that takes a step on one of the sides, and returns its CPU seconds per crop."""
    learn = rebuild(load_recipe(recipe, Paths(Path())))
    model = learn.model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    average = [weight.detach().clone() for weight in model.parameters()]
    move = get_ema_multi_avg_fn(0.99)
    images = torch.randint(0, 256, (batch, 3, SIDE_PX, SIDE_PX), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    masks = torch.randint(0, 2, (batch, SIDE_PX, SIDE_PX))

    def step(side: str) -> float:
        precision, fast = SIDES[side]
        start = time.process_time()
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
            fast_backward(model) if fast else nullcontext(),
        ):
            logits = model(images)
        learn.loss_func(logits.float(), masks).backward()
        optimizer.step()
        optimizer.zero_grad()
        move(average, list(model.parameters()), 1)
        return (time.process_time() - start) / batch

    return step


def profile(step: Callable[[str], float], side: str) -> None:
    """Prints torch's profile of two steps."""
    step(side)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(2):
            step(side)
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
    machine = f"{processor_name(torch.device('cpu'))}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{machine}; {options.batch} crops a step; CPU seconds per crop, least (median) of {options.rounds} rounds\n")
    print(f"| recipe | {' | '.join(SIDES)} | bf16, torch's / best | fp32, torch's / fp32 |")
    print("|---" * (len(SIDES) + 3) + "|")
    for name in options.recipe:
        step = step_of(name, options.batch)
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for side in SIDES:
            step(side)  # compiles kernels
        for number in range(options.rounds):
            for side in list(SIDES) if number % 2 == 0 else list(SIDES)[::-1]:
                seconds[side].append(step(side))
        least = {side: min(values) for side, values in seconds.items()}
        cells = [f"{least[side]:.3g} ({statistics.median(seconds[side]):.3g})" for side in SIDES]
        gains = [least["bf16, torch's"] / min(least.values()), least["fp32, torch's"] / least["fp32"]]
        print(f"| {name} | {' | '.join(cells)} | {' | '.join(f'{gain:.2f}' for gain in gains)} |", flush=True)


if __name__ == "__main__":
    main()
