"""Folds side by side: each slot has its share of the machine, and a fold that fails stops no other.

The processes are stand-ins; real ones train in `tests/training/test_distributed.py`.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, Queue
from typing import Any

import pytest
import torch

from kit.errors import RunError
from kit.pipeline import parallel
from kit.pipeline.parallel import share_of, side_by_side


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this a machine with so many GPUs and cores."""

    def become(gpus: int = 0, cores: int = 8, **environment: str) -> None:
        for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(parallel, "cpu_count", lambda: cores)

    become()
    return become


def shares(at_once: int, nproc: int = 1) -> list[dict[str, str]]:
    return [share_of(slot, at_once, nproc) for slot in range(at_once)]


@pytest.mark.parametrize(
    ("gpus", "at_once", "nproc", "expected"),
    [
        (4, 4, 1, ["0", "1", "2", "3"]),
        (4, 2, 2, ["0,1", "2,3"]),
        (4, 1, 4, ["0,1,2,3"]),
        (2, 5, 1, ["0", "1", "0", "1", "0"]),  # more folds than GPUs share them
        (3, 2, 2, ["0,1", "2,0"]),
    ],
)
def test_each_slot_has_gpus_of_its_own(
    machine: Callable[..., None], gpus: int, at_once: int, nproc: int, expected: list[str]
):
    machine(gpus)
    assert shares(at_once, nproc) == [{"CUDA_VISIBLE_DEVICES": numbers} for numbers in expected]


def test_gpus_are_those_that_this_process_may_use(machine: Callable[..., None]):
    machine(2, CUDA_VISIBLE_DEVICES="5,2")
    assert shares(2) == [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "2"}]
    machine(2, CUDA_VISIBLE_DEVICES="GPU-8932f937,MIG-04a8")
    assert shares(2) == [{"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}, {"CUDA_VISIBLE_DEVICES": "MIG-04a8"}]


def test_no_share_names_a_gpu_twice(machine: Callable[..., None]):
    """With `0,0`, torch sees no GPU at all: the fold would be trained on the CPU, without a word."""
    for gpus in (1, 2, 3):
        machine(gpus)
        for share in shares(2, nproc=4):
            numbers = share["CUDA_VISIBLE_DEVICES"].split(",")
            assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(("at_once", "nproc", "threads"), [(2, 1, "4"), (2, 2, "2"), (3, 1, "2"), (5, 4, "1")])
def test_without_gpus_threads_are_shared(machine: Callable[..., None], at_once: int, nproc: int, threads: str):
    assert shares(at_once, nproc) == [{"OMP_NUM_THREADS": threads}] * at_once


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_are_hidden_are_none(machine: Callable[..., None], hidden: str):
    """Both are how a GPU is usually hidden."""
    machine(0, CUDA_VISIBLE_DEVICES=hidden)
    assert [share.get("OMP_NUM_THREADS") for share in shares(2)] == ["4", "4"]


def test_threads_that_were_asked_for_are_left(machine: Callable[..., None]):
    machine(OMP_NUM_THREADS="3")
    assert shares(4) == [{"OMP_NUM_THREADS": "3"}] * 4


class Processes:
    """Stands in for `subprocess.Popen`: keeps the commands, and who ran beside whom."""

    def __init__(self, fails: tuple[str, ...] = ()) -> None:
        self.fails, self.lock = fails, threading.Lock()
        self.commands: dict[str, list[str]] = {}
        self.environments: dict[str, dict[str, str]] = {}
        self.running: dict[str, str] = {}  # GPU of each fold that runs now
        self.most = 0

    def __call__(self, command: list[str], env: dict[str, str], **_: Any) -> "Process":
        fold = command[command.index("--fold", command.index("--parallel-folds") - 2) + 1]
        with self.lock:
            self.commands[fold], self.environments[fold] = command, env
            gpu = env.get("CUDA_VISIBLE_DEVICES", fold)
            assert gpu not in self.running.values()
            self.running[fold] = gpu
            self.most = max(self.most, len(self.running))
        return Process(self, fold)


class Process:
    def __init__(self, processes: Processes, fold: str) -> None:
        self.processes, self.fold = processes, fold
        self.returncode = 1 if fold in processes.fails else 0
        self.stderr = self.said()

    def said(self) -> Iterator[str]:
        yield f"fold {self.fold} begins\n"
        time.sleep(0.05)
        yield f"fold {self.fold} ends\n"

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        with self.processes.lock:
            del self.processes.running[self.fold]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Processes]:
    def start(*fails: str) -> Processes:
        made = Processes(fails)
        monkeypatch.setattr(parallel.subprocess, "Popen", made)
        return made

    return start


def test_folds_run_side_by_side(
    machine: Callable[..., None], processes: Callable[..., Processes], capsys: pytest.CaptureFixture[str]
):
    machine(2)
    started = processes()
    side_by_side(["run", "tiny", "--minutes", "3"], range(5), at_once=2)
    assert started.most == 2
    assert list(started.commands) == sorted(started.commands)
    for fold, command in started.commands.items():
        assert command == [
            sys.executable, "-m", "kit", "run", "tiny", "--minutes", "3", "--fold", fold, "--parallel-folds", "1",
            "--no-export",
        ]  # fmt: skip
        assert set(started.environments[fold]) >= {"PATH", "CUDA_VISIBLE_DEVICES"}
    assert {env["CUDA_VISIBLE_DEVICES"] for env in started.environments.values()} == {"0", "1"}
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "folds 0, 1, 2, 3, 4: 2 at once"
    assert sorted(err.splitlines()[1:]) == sorted(
        f"{fold}: fold {fold} {what}" for fold in range(5) for what in ("begins", "ends")
    )


def test_a_fold_that_fails_stops_no_other(machine: Callable[..., None], processes: Callable[..., Processes]):
    started = processes("1", "3")
    with pytest.raises(RunError, match="fold 1, 3 of 5 failed, for the reason shown above") as caught:
        side_by_side(["run", "tiny"], range(5), at_once=2)
    assert "rerun the same command to resume" in caught.value.hint
    assert set(started.commands) == set("01234")
    assert started.running == {}


def test_a_process_that_cannot_be_started_gives_its_slot_back(monkeypatch: pytest.MonkeyPatch):
    """Such as when memory runs out: the other folds would wait for a slot for ever."""
    waited = []

    class Impatient(Queue):
        def get(self, *_: object) -> int:
            try:
                return super().get(timeout=0.5)
            except Empty:
                waited.append("too long")
                raise

    def broken(*_: object, **__: object) -> None:
        time.sleep(0.01)
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(parallel, "Queue", Impatient)
    monkeypatch.setattr(parallel.subprocess, "Popen", broken)
    with pytest.raises(OSError, match="Cannot allocate"):
        side_by_side(["run", "tiny"], range(5), at_once=2)
    assert waited == []
