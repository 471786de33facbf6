"""Spreads work over the workers of a dask.distributed cluster. The only module that imports it."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import cv2

from kit.console import say
from kit.errors import KitError

J = TypeVar("J")
R = TypeVar("R")

ADDRESS = "DASK_SCHEDULER_ADDRESS"  # environment variable of dask
CONNECT_S = 8  # until a scheduler that does not answer is an error
AHEAD = 4  # jobs per worker that the scheduler knows at a time: few messages, and no worker waits
LEAST_AHEAD = 32  # workers may join later
# dask makes workers give memory back at once: networks on a CPU then take twice as long
TRIMMED = "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_"
COUNTED_S = 2.0  # workers are counted so often
EXPECTED = "expected tcp://HOST:PORT of a scheduler, or local:N for N processes"


def chosen_cluster(cluster: str = "", processes: int | None = None) -> str:
    """Returns the cluster of `--cluster` and `--workers`; without them, that of `DASK_SCHEDULER_ADDRESS`; else nothing.

    Raises:
        KitError: both were given, or the cluster is neither an address nor `local:N`.
    """
    if cluster and processes:
        raise KitError("--cluster and --workers exclude each other", "a cluster has workers of its own")
    chosen = cluster or ("" if processes else os.environ.get(ADDRESS, ""))
    kind, _, number = chosen.partition(":")
    known = "://" in chosen or (kind == "local" and number.isdecimal() and int(number) > 0)
    if chosen and not known:
        raise KitError(f"no cluster {chosen!r}", EXPECTED)
    return chosen


def spread_on(
    cluster: str,
    work: Callable[[J], R],
    jobs: Iterable[J],
    doing: str,
    check: Callable[[], str] | None = None,
    lost: Callable[[J], R] | None = None,
) -> Iterator[tuple[J, R]]:
    """Yields each job with its result, in the order of completion; a job that loses its worker is done again elsewhere.

    Args:
        cluster: `tcp://host:port` of a scheduler of dask.distributed, or `local:N` for N processes.
        work: see `kit.system.workers.spread`.
        jobs: likewise.
        doing: likewise.
        check: likewise.
        lost: likewise.

    Raises:
        KitError: the cluster cannot be reached, does not fit, or has ended.
        Exception: what `work` raised.
    """
    try:
        from distributed import as_completed
        from distributed.client import FutureCancelledError
        from distributed.comm.core import CommClosedError
        from distributed.scheduler import KilledWorker
    except ImportError as cause:
        raise KitError("--cluster needs the package distributed", "pip install 'footprintkit[cluster]'") from cause
    waiting: dict[Any, J] = {}
    with _client(cluster) as client:
        if check:
            _check(client, check)
        finished = as_completed(raise_errors=False)

        def next_result() -> tuple[J, R]:
            future = next(finished)
            job = waiting.pop(future)
            try:
                return job, future.result()
            except KilledWorker as cause:
                if lost is None:
                    raise KitError(
                        f"several workers were lost {doing}, perhaps because memory ran out", "rerun to resume"
                    ) from cause
                return job, lost(job)

        try:
            most, counted = LEAST_AHEAD, 0.0
            for job in jobs:
                future = client.submit(_in_folder, str(Path.cwd()), work, job, pure=False)
                waiting[future] = job
                finished.add(future)
                if len(waiting) >= most:
                    yield next_result()
                    if time.monotonic() > counted + COUNTED_S:
                        most = max(LEAST_AHEAD, AHEAD * sum(client.nthreads().values()))
                        counted = time.monotonic()
            while waiting:
                yield next_result()
        except (CommClosedError, FutureCancelledError) as cause:
            raise KitError(f"the scheduler at {cluster} ended while {doing}", "start it and rerun to resume") from cause


def _in_folder(folder: str, work: Callable[[J], R], job: J) -> R:
    """Returns the result of a job, done in the folder of the command, since its paths may be relative."""
    os.chdir(folder)
    cv2.setNumThreads(1)  # as processes of this machine do
    return work(job)


@contextmanager
def _client(cluster: str) -> Iterator[Any]:
    """Yields a client of a cluster; a local one is started, and ended."""
    import dask
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # kit reports errors itself
    if cluster.startswith("local:"):
        count = int(cluster.removeprefix("local:"))
        with (
            dask.config.set({TRIMMED: None}),
            LocalCluster(
                n_workers=count, threads_per_worker=1, memory_limit=0, dashboard_address=None,
                silence_logs=logging.CRITICAL,
            ) as started,
            Client(started) as client,
        ):  # fmt: skip
            yield client
        return
    try:
        client = Client(cluster, timeout=CONNECT_S)
    except (OSError, TimeoutError, ValueError) as cause:
        raise KitError(
            f"no scheduler answers at {cluster}", f"start one: dask scheduler; {EXPECTED}; or leave --cluster out"
        ) from cause
    with client:
        yield client


def _reason(answer: str) -> str:
    return "it has no kit, or another version of it" if "No module named 'kit" in answer else answer


def _check(client: Any, check: Callable[[], str]) -> None:
    """Checks every worker that is there by now."""
    if not client.nthreads():
        say("waiting for workers: dask worker ADDRESS --nthreads 1")
        return
    answers = client.run(check, on_error="return")
    problems = {name: _reason(str(answer)) for name, answer in sorted(answers.items()) if answer}
    if problems:
        name, reason = next(iter(problems.items()))
        raise KitError(
            f"{len(problems)} of {len(answers)} workers cannot work, first {name}: {reason}",
            "workers need the same kit, and the folders of this command under the same paths",
        )
