"""Starting, joining and ending the ranks of one command. Source: torch.distributed, torchrun."""

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from kit.console import say
from kit.errors import RankError
from kit.system.cpu import cpu_count
from kit.system.devices import pick_device
from kit.system.launcher import OURS, Rank, own_rank

TIMEOUT = timedelta(minutes=30)  # of one collective: rank 0 may prepare data while the others wait
NOTICE_S, NOTICE_AGAIN_S = 3, 60  # of waiting for other ranks, until a notice
CONNECT_S = 2  # of one attempt to connect, during which torch ignores Ctrl-C
SHUTDOWN_S = 20  # between SIGTERM and SIGKILL for the other ranks

_store: Any = None  # shared by the ranks; outlives the process group


def launch(nproc: int, arguments: Sequence[str]) -> None:
    """Runs `python -m kit ARGUMENTS` as `nproc` processes on this machine, and waits for them.

    Raises:
        RankError: one of them failed, and the others were ended. `shown` says whether it printed its error.
        KeyboardInterrupt: they were interrupted.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # kit reports the error itself
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // nproc)))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=nproc, run_id=OURS, max_restarts=0, shutdown_timeout=SHUTDOWN_S,
        rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1",
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "kit", *arguments)
    except ChildFailedError as cause:
        number, failure = cause.get_first_failure()
        raise RankError(*_how_it_ended(number, nproc, failure.exitcode), shown=failure.exitcode == 1) from cause
    except SignalException as cause:
        raise KeyboardInterrupt from cause


def _how_it_ended(number: int, nproc: int, exitcode: int) -> tuple[str, str]:
    """Returns message and hint."""
    known = {int(one): one.name for one in signal.Signals}
    killed_by = known.get(-exitcode, f"signal {-exitcode}")
    how = f"was ended by {killed_by}" if exitcode < 0 else f"ended with exit code {exitcode}"
    why = "; Linux sends SIGKILL when memory runs out: use fewer processes, or smaller batches in training"
    return (
        f"rank {number} of {nproc} {how}, and the others were ended",
        f"rerun the same command to resume{why if exitcode == -signal.SIGKILL else ''}",
    )


@contextmanager
def joined(device: str = "") -> Iterator[torch.device]:
    """Joins the process group of a launcher's processes; yields this rank's device.

    NCCL between GPUs, gloo between CPUs. A single process, or a nested block, only gets its device.

    Args:
        device: as `pick_device` takes it.

    Raises:
        KitError: there are fewer GPUs than processes.
        RankError: another rank ended while this one waited for it.
    """
    global _store
    own = own_rank()
    if own is None:
        yield pick_device(device)
        return
    if dist.is_initialized():
        yield _own_device(device, own)
        return
    if own.by_kit:
        _end_with_launcher()
    _store = _meet(own)
    try:
        picked = _own_device(device, own)
        backend = "cpu:gloo,cuda:nccl" if picked.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store, rank=own.number, world_size=own.count, timeout=TIMEOUT)
        yield picked
    except Exception as cause:
        if not _lost(cause):
            raise
        raise RankError(
            f"rank {own.number}: another rank ended, and this one cannot continue",
            "see its own message; rerun the same command to resume",
        ) from cause
    dist.destroy_process_group()


def _meet(own: Rank) -> Any:
    """Returns the store that the ranks share, once all have connected to it. Ctrl-C ends the waiting."""
    waiting = Waiting(own)
    listens = own.number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store: Any = None
    while store is None:
        try:
            attempt = timedelta(seconds=CONNECT_S)
            store = TCPStore(own.host, own.port, own.count, listens, attempt, wait_for_workers=False)
        except (dist.DistError, RuntimeError) as cause:
            if listens:
                raise RankError(
                    f"rank 0 cannot listen at {own.host}:{own.port}: {str(cause).splitlines()[0]}",
                    "choose another MASTER_PORT, or unset WORLD_SIZE to run one process",
                ) from cause
            waiting.notice(f"rank {own.number} is waiting for rank 0 at {own.host}:{own.port}")
            time.sleep(0.2)
    store.set_timeout(TIMEOUT)
    store = PrefixStore(f"kit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    arrived = store.add("arrived", 1)
    while arrived < own.count:
        missing = own.count - arrived
        waiting.notice(f"rank {own.number} is waiting for {missing} more process{'es' if missing > 1 else ''}")
        time.sleep(0.05)
        arrived = store.add("arrived", 0)
    return store


class Waiting:
    """Reports that a rank waits for others, until `TIMEOUT`."""

    def __init__(self, own: Rank) -> None:
        self.own, self.start, self.next_s = own, time.monotonic(), float(NOTICE_S)

    def notice(self, text: str) -> None:
        """Prints a notice after `NOTICE_S`, then every `NOTICE_AGAIN_S`.

        Raises:
            RankError: the rank has waited longer than `TIMEOUT`.
        """
        waited_s = time.monotonic() - self.start
        if waited_s > TIMEOUT.total_seconds():
            raise RankError(f"{text}, for {waited_s / 60:.0f} minutes", "unset WORLD_SIZE to run one process")
        if waited_s > self.next_s:
            self.next_s = waited_s + NOTICE_AGAIN_S
            say(f"{text} (WORLD_SIZE={self.own.count}; unset it to run one process)", every_rank=True)


def _end_with_launcher() -> None:
    """On Linux, makes this process end when its parent ends, even by SIGKILL."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGTERM))


def _own_device(device: str, own: Rank) -> torch.device:
    """Returns this rank's device; of several GPUs, the one with its local rank."""
    picked = pick_device(device)
    if picked.type == "cuda":
        if picked.index is not None:
            raise RankError(f"several processes cannot share {picked}", "leave --device out, or give --device cuda")
        picked = pick_device(f"cuda:{own.number_here}")
        torch.cuda.set_device(picked)
    return picked


def _lost(error: BaseException | None) -> bool:
    """Returns whether an error, or one of its causes, is a lost connection to another rank."""
    while error is not None:
        by_name = any(name in str(error) for name in ("gloo", "NCCL"))
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and by_name):
            return True
        error = error.__cause__ or error.__context__
    return False


def first_to_fail() -> bool:
    """Returns whether this rank is the first to fail, so that an error of all ranks is printed once.

    Before the ranks have joined, each prints its own.
    """
    if _store is None:
        return True
    try:
        return bool(_store.add("failed", 1) == 1)
    except RuntimeError:  # rank 0, which holds the store, has ended
        return True
