"""Several processes, one work: they are started, joined, and ended together. Source: torch.distributed, torchrun."""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from kit.errors import RankError
from kit.system.cpu import cpu_count
from kit.system.devices import pick_device

TIMEOUT = timedelta(minutes=30)  # of one collective: rank 0 may prepare data while the others wait
OURS = "kit"  # run id of processes that kit started itself
SHUTDOWN_S = 20  # between asking the others to end, and making them

_store: Any = None  # where ranks leave a word for each other; outlives the process group


def launched() -> bool:
    """Tells whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launched_by_kit() -> bool:
    """Tells whether that was `launch`."""
    return launched() and os.environ.get("TORCHELASTIC_RUN_ID") == OURS


def launch(nproc: int, arguments: Sequence[str]) -> None:
    """Runs `python -m kit ARGUMENTS` as `nproc` processes on this machine, and returns when all are done.

    Raises:
        RankError: one of them ended early; the others were ended, too. `told` says whether it gave its reason.
        KeyboardInterrupt: they were interrupted.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # kit tells what happened, in its own words
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // nproc)))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=nproc, run_id=OURS, max_restarts=0, shutdown_timeout=SHUTDOWN_S,
        rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1",
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "kit", *arguments)
    except ChildFailedError as cause:
        number, failure = cause.get_first_failure()
        raise RankError(*_told(number, nproc, failure.exitcode), told=failure.exitcode == 1) from cause
    except SignalException as cause:
        raise KeyboardInterrupt from cause


def _told(number: int, nproc: int, exitcode: int) -> tuple[str, str]:
    """Returns message and hint."""
    known = {int(one): one.name for one in signal.Signals}
    killed_by = known.get(-exitcode, f"signal {-exitcode}")
    how = f"was ended by {killed_by}" if exitcode < 0 else f"ended with exit code {exitcode}"
    why = "; SIGKILL is what Linux sends when memory runs out: fewer processes, or in training fewer crops a step"
    return (
        f"rank {number} of {nproc} {how}, and the others were ended",
        f"the same command again goes on{why if exitcode == -signal.SIGKILL else ''}",
    )


@contextmanager
def joined(device: str = "") -> Iterator[torch.device]:
    """Joins this process to the others that a launcher started with it; yields the device that is its own.

    NCCL between GPUs, gloo between CPUs. A process by itself just gets its device.

    Args:
        device: as `pick_device` takes it.

    Raises:
        KitError: there are fewer GPUs than processes.
        RankError: another process ended while this one waited for it.
    """
    global _store
    if not launched():
        yield pick_device(device)
        return
    if launched_by_kit():
        _end_with_launcher()
    try:
        _store, number, size = next(rendezvous("env://", timeout=TIMEOUT))
        picked = _own_device(device)
        backend = "cpu:gloo,cuda:nccl" if picked.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store, rank=number, world_size=size, timeout=TIMEOUT)
        yield picked
    except Exception as cause:
        if not _lost(cause):
            raise
        raise RankError(
            f"rank {os.environ['RANK']}: another rank has ended, and this one cannot go on",
            "its own message says why; the same command again goes on",
        ) from cause
    dist.destroy_process_group()


def _end_with_launcher() -> None:
    """Lets Linux end this process when the one that started it ends, however that happens."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGTERM))


def _own_device(device: str) -> torch.device:
    """Returns this rank's device: of GPUs the one with its number on this machine."""
    picked = pick_device(device)
    if picked.type == "cuda":
        if picked.index is not None:
            raise RankError(f"several processes cannot share {picked}", "leave --device out, or give --device cuda")
        picked = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(picked)
    return picked


def _lost(error: BaseException | None) -> bool:
    """Tells whether an error, or what caused it, is that of a connection to another rank."""
    while error is not None:
        by_name = any(name in str(error) for name in ("gloo", "NCCL"))
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and by_name):
            return True
        error = error.__cause__ or error.__context__
    return False


def first_to_fail() -> bool:
    """Tells whether this rank is the first with an error to show: a mistake of all is told once.

    Before they have joined, each one tells its own.
    """
    if _store is None:
        return True
    try:
        return bool(_store.add("failed", 1) == 1)
    except RuntimeError:  # the store has gone with the rank that held it
        return True
