"""A scheduler and its workers as programs of their own: it is killed, or a worker does not fit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kit.errors import KitError
from kit.system.workers import on_cluster, spread

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def slow_square(number: int) -> int:
    time.sleep(0.1)
    return number**2


def no_problem() -> str:
    return ""


class Cluster:
    """A scheduler with one worker; `kit` is the folder that the worker imports kit from."""

    def __init__(self, folder: Path, kit: Path = ROOT) -> None:
        file, here = folder / "scheduler.json", {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}"}
        there = {**here, "PYTHONPATH": f"{kit}:{HERE}"}
        options = ["--scheduler-file", file, "--no-dashboard"]
        python = [sys.executable, "-m"]
        self.scheduler = subprocess.Popen(
            [*python, "distributed.cli.dask_scheduler", "--port", "0", *options], env=here, cwd=folder,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not file.is_file() or not file.read_text():
            assert self.scheduler.poll() is None
            time.sleep(0.1)
        self.address = json.loads(file.read_text())["address"]
        self.worker = subprocess.Popen(
            [*python, "distributed.cli.dask_worker", "--nthreads", "1", *options], env=there, cwd=folder,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        from distributed import Client

        with Client(self.address) as client:
            client.wait_for_workers(1, timeout=120)

    def end(self) -> None:
        for process in (self.worker, self.scheduler):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path)
    yield started
    started.end()


def test_a_killed_scheduler_is_one_error_and_results_so_far_stay(cluster: Cluster):
    done = []
    with on_cluster(cluster.address), pytest.raises(KitError, match="ended while drawing squares") as caught:
        for job, result in spread(slow_square, range(500), 1, "drawing squares", check=no_problem):
            done.append((job, result))
            if len(done) == 5:
                os.kill(cluster.scheduler.pid, signal.SIGKILL)
    assert "rerun to resume" in caught.value.hint
    assert 5 <= len(done) < 500
    assert all(result == job**2 for job, result in done)


def test_a_worker_with_another_kit_is_one_error(tmp_path: Path):
    (tmp_path / "old/kit").mkdir(parents=True)
    (tmp_path / "old/kit/__init__.py").write_text('__version__ = "0.0.1"\n')
    started = Cluster(tmp_path, tmp_path / "old")
    try:
        from kit.deploy.country.country import worker_problem

        check = partial(worker_problem, "1", "w.pt", "", str(tmp_path))
        with (
            on_cluster(started.address),
            pytest.raises(
                KitError, match=r"1 of 1 workers cannot work, first tcp://.*: it has (kit 0\.0\.1|no kit, or)"
            ),
        ):
            list(spread(slow_square, [1], 1, "drawing squares", check=check))
    finally:
        started.end()
