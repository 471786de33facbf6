"""Spreads work over processes of this machine that end with their parent, or over the workers of a cluster."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import cv2

from kit.console import ignore_known_warnings
from kit.errors import KitError

J = TypeVar("J")
R = TypeVar("R")

_cluster = ""  # address in use; see `on_cluster`

AHEAD = 2  # jobs queued per process: keeps it busy; more would need memory


@contextmanager
def on_cluster(address: str) -> Iterator[None]:
    """Makes `spread` use a cluster while the block runs.

    Args:
        address: see `kit.system.cluster.chosen_cluster`; empty: processes of this machine.
    """
    global _cluster
    before, _cluster = _cluster, address
    try:
        yield
    finally:
        _cluster = before


def uses_cluster() -> bool:
    """Returns whether `spread` uses a cluster."""
    return bool(_cluster)


def spread(
    work: Callable[[J], R],
    jobs: Iterable[J],
    processes: int,
    doing: str,
    check: Callable[[], str] | None = None,
    lost: Callable[[J], R] | None = None,
) -> Iterator[tuple[J, R]]:
    """Yields each job with its result, in the order of completion; a job whose process was killed is done again.

    Args:
        work: called with a job; a module-level function.
        jobs: consumed as processes become free.
        processes: 1 runs the jobs in this process; of a cluster it does not count.
        doing: for the error, for example `cutting tiles`.
        check: called on every worker of a cluster before any job; returns what is wrong there, or nothing.
        lost: returns the result of a job whose process was killed, and killed again; by default that is an error.

    Raises:
        KitError: the cluster cannot be used; or, without `lost`, a job's process was killed twice.
        Exception: what `work` raised.
    """
    if _cluster:
        from kit.system.cluster import spread_on

        yield from spread_on(_cluster, work, jobs, doing, check, lost)
        return
    if processes == 1:
        for job in jobs:
            yield job, work(job)
        return
    jobs, unfinished = iter(jobs), list[J]()
    while True:
        try:
            yield from _pooled(work, jobs, processes, unfinished)
            return
        except BrokenProcessPool:
            suspects, unfinished = unfinished, []
        for job in suspects:  # alone: only the one that kills its process is lost, and the others have more memory
            try:
                yield from _pooled(work, iter([job]), 1, [])
            except BrokenProcessPool as cause:
                if lost is None:
                    raise KitError(
                        f"a process {doing} was killed, perhaps because memory ran out",
                        "rerun with fewer --workers to resume",
                    ) from cause
                yield job, lost(job)


def _pooled(work: Callable[[J], R], jobs: Iterator[J], processes: int, unfinished: list[J]) -> Iterator[tuple[J, R]]:
    """Yields each job with its result, done by new processes; adds those that it leaves to `unfinished`."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # before the fork: a child does not inherit OpenCV's threads, and would wait for them
    leash, end = os.pipe()
    forked = sys.platform == "linux"  # on other systems forking is unsafe, and pipes are not inherited
    context = multiprocessing.get_context("fork" if forked else "spawn")
    pool = ProcessPoolExecutor(processes, context, _begin, (leash, end) if forked else ())
    waiting: dict[Future[R], J] = {}
    try:
        for job in jobs:
            try:
                waiting[pool.submit(work, job)] = job
            except BrokenProcessPool:
                unfinished.append(job)
                raise
            if len(waiting) >= processes * (1 + AHEAD):
                yield from _ended(waiting)
        while waiting:
            yield from _ended(waiting)
    finally:
        unfinished += waiting.values()
        pool.shutdown(wait=True, cancel_futures=True)
        os.close(end)
        os.close(leash)
        cv2.setNumThreads(threads)


def _ended(waiting: dict[Future[R], J]) -> Iterator[tuple[J, R]]:
    """Yields at least one finished job, and removes it from the list."""
    ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in ended:
        result = future.result()
        yield waiting.pop(future), result


def _begin(leash: int = -1, end: int = -1) -> None:
    """Sets up a worker: one thread, Ctrl-C ignored, exit when the parent ends."""
    ignore_known_warnings()
    if cv2.getNumThreads() != 1:  # not forked
        cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and reports it
    if leash < 0:
        return
    os.close(end)

    def follow() -> None:
        os.read(leash, 1)  # returns when the parent's end is closed
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
