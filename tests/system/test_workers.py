import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from kit.errors import KitError
from kit.system.workers import spread


def square(number: int) -> int:
    return number * number


def own_process(_: int) -> tuple[int, int]:
    time.sleep(0.02)
    return os.getpid(), cv2.getNumThreads()


def fail_at_three(number: int) -> int:
    if number == 3:
        raise KitError("the third is broken", "mend it")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return number


@pytest.mark.parametrize("processes", [1, 3])
def test_each_job_comes_back_with_its_result(processes: int):
    assert sorted(spread(square, range(50), processes, "drawing squares")) == [
        (number, number * number) for number in range(50)
    ]


def test_processes_share_the_jobs_with_one_thread_each():
    found = {result for _, result in spread(own_process, range(12), 2, "drawing squares")}
    assert len(found) == 2
    assert {threads for _, threads in found} == {1}
    assert os.getpid() not in {process for process, _ in found}


def test_processes_start_where_opencv_has_run_in_many_threads():
    """Its threads are not forked, and a process that tried to end them would wait for ever."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(4)
    try:
        cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (2000, 2000, 3), dtype=np.uint8), (0, 0), 5)
        assert len(list(spread(square, range(4), 2, "drawing squares"))) == 4
        assert cv2.getNumThreads() == 4
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("processes", [1, 2])
def test_jobs_are_taken_as_they_are_needed(processes: int):
    """Memory stays flat: however many jobs there are, few wait."""
    taken = done = most = 0

    def jobs() -> Iterator[int]:
        nonlocal taken, most
        for number in range(60):
            taken += 1
            most = max(most, taken - done)
            yield number

    for _ in spread(square, jobs(), processes, "drawing squares"):
        done += 1
    assert done == 60
    assert most <= 4 * processes


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_comes_through(processes: int):
    with pytest.raises(KitError, match="the third is broken"):
        list(spread(fail_at_three, range(20), processes, "drawing squares"))


def die_once(job: tuple[Path, int]) -> int:
    marker, number = job
    if number == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return number


def test_after_a_kill_the_work_goes_on(tmp_path: Path):
    jobs = [(tmp_path / "marker", number) for number in range(40)]
    done = dict(spread(die_once, jobs, 2, "drawing squares"))
    assert done == {job: job[1] for job in jobs}
    assert (tmp_path / "marker").exists()


def test_only_the_job_that_kills_is_lost():
    done = dict(spread(die_at_three, range(40), 2, "drawing squares", lost=lambda number: -number))
    assert done == {number: number for number in range(40)} | {3: -3}


def test_a_killed_process_is_told_and_nothing_hangs():
    with pytest.raises(KitError, match="a process drawing squares was killed") as caught:
        list(spread(die_at_three, range(100), 2, "drawing squares"))
    assert "fewer --workers" in caught.value.hint


def test_all_processes_end_with_the_work():
    before = set(children())
    processes = {process for _, (process, _) in spread(own_process, range(8), 2, "drawing squares")}
    assert len(processes) == 2
    assert set(children()) == before


def children() -> list[int]:
    """Returns this process's children."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:  # noqa: PTH123
        return [int(child) for child in file.read().split()]
