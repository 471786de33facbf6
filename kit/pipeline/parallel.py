"""Folds side by side: each in a process, or processes, and on GPUs of its own."""

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
    """Runs `python -m kit ARGUMENTS --fold K --no-export` for each fold, and returns when all are done.

    What the processes say goes on to stderr line by line, after the fold. When one fails, the others go on.

    Args:
        arguments: of `kit run`, as the user gave them.
        folds: which ones.
        at_once: how many side by side.
        nproc: processes of each fold.

    Raises:
        RunError: some fold failed; its own error was shown before.
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
            "the same command again goes on with what is missing",
        )


def share_of(slot: int, at_once: int, nproc: int) -> dict[str, str]:
    """Returns the environment that gives a slot its share of the machine: GPUs, or threads where there are none."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [str(number) for number in range(torch.cuda.device_count())]
    gpus = visible if seen is None else [gpu for gpu in seen.split(",") if gpu not in ("", "-1")]
    if gpus:
        own = [gpus[(slot * nproc + k) % len(gpus)] for k in range(nproc)]
        return {"CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(own))}  # named twice, torch would see none
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cpu_count() // (at_once * nproc))))}
