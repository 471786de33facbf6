"""Trains folds in parallel, each in its own processes and on its own GPUs."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import torch

from kit.console import say
from kit.errors import RunError
from kit.system.cpu import cpu_count


def side_by_side(arguments: Sequence[str], folds: Sequence[int | str], at_once: int, nproc: int = 1) -> None:
    """Runs `python -m kit ARGUMENTS --fold K --no-export` for each fold, and waits for all.

    Their stderr is printed line by line, after the number of the fold. If one fails, the others continue.

    Args:
        arguments: of `kit run`.
        folds: to train.
        at_once: number of folds in parallel.
        nproc: processes per fold.

    Raises:
        RunError: a fold failed; its own error was printed before.
    """
    slots: Queue[int] = Queue()
    for slot in range(at_once):
        slots.put(slot)

    def train(fold: int | str) -> int:
        slot = slots.get()
        try:
            return run(fold, slot)
        finally:
            slots.put(slot)

    def run(fold: int | str, slot: int) -> int:
        command = [sys.executable, "-m", "kit", *arguments, "--fold", str(fold), "--parallel-folds", "1", "--no-export"]
        environment = {**os.environ, **share_of(slot, at_once, nproc)}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                sys.stderr.write(f"{fold}: {line}")
        return process.returncode

    say(f"folds {', '.join(map(str, folds))}: {at_once} at once")
    with ThreadPoolExecutor(at_once) as pool:
        codes = dict(zip(folds, pool.map(train, folds), strict=True))
    failed = [str(fold) for fold, code in codes.items() if code]
    if failed:
        raise RunError(
            f"fold {', '.join(failed)} of {len(codes)} failed, for the reason shown above",
            "rerun the same command to resume",
        )


def share_of(slot: int, at_once: int, nproc: int) -> dict[str, str]:
    """Returns environment variables that assign a slot its share of GPUs, or of CPU threads if there are none."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [str(number) for number in range(torch.cuda.device_count())]
    gpus = visible if seen is None else [gpu for gpu in seen.split(",") if gpu not in ("", "-1")]
    if gpus:
        own = [gpus[(slot * nproc + k) % len(gpus)] for k in range(nproc)]
        return {"CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(own))}  # torch sees no GPU if one is listed twice
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cpu_count() // (at_once * nproc))))}
