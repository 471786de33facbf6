"""Variables of a launcher, whole and stray."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import kit
from kit.errors import RankError
from kit.system import processes
from kit.system.cpu import cpu_count
from kit.system.launcher import NEEDED, Rank, ignored_variables, launched, own_rank

Cli = Callable[..., tuple[int, str, str]]
WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577"}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NEEDED, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def test_a_launched_process_knows_its_rank(monkeypatch: pytest.MonkeyPatch):
    for name, value in {**WHOLE, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert own_rank() == Rank(1, 2, 1, 2, "127.0.0.1", 29577, by_kit=False)
    assert cpu_count() == max(1, cpu_count(shared=False) // 2)
    assert ignored_variables() == ""


@pytest.mark.parametrize(
    ("stray", "notice"),
    [({"WORLD_SIZE": ""}, False), ({"WORLD_SIZE": "4"}, True), ({"WORLD_SIZE": "many"}, True), ({"RANK": "3"}, False),
     ({"LOCAL_WORLD_SIZE": ""}, False), ({"LOCAL_RANK": "x"}, False), ({**WHOLE, "RANK": "2"}, True),
     ({**WHOLE, "WORLD_SIZE": "1", "RANK": "0"}, False), ({**WHOLE, "MASTER_PORT": "http"}, True),
     ({**WHOLE, "WORLD_SIZE": "-2"}, True), ({**WHOLE, "WORLD_SIZE": "²"}, True)],
)  # fmt: skip
def test_stray_variables_are_ignored_aloud(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stray: dict[str, str], notice: bool
):
    for name, value in stray.items():
        monkeypatch.setenv(name, value)
    assert not launched()
    code, _, err = cli("runs", "--root", tmp_path)
    assert code == 0
    assert "no runs here yet" in err  # and rank 3 is not silent
    assert ("WORLD_SIZE=" in err) == notice


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_ranks_meet(monkeypatch: pytest.MonkeyPatch):
    port, stores = free_port(), {}

    def meet(number: int) -> None:
        stores[number] = processes._meet(Rank(number, 3, number, 3, "127.0.0.1", port, by_kit=False))

    threads = [threading.Thread(target=meet, args=(number,)) for number in (2, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stores[0].set("word", "passed on")
    assert stores[2].get("word") == b"passed on"


@pytest.mark.parametrize("number", [0, 1])
def test_patience_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int):
    from datetime import timedelta

    monkeypatch.setattr(processes, "TIMEOUT", timedelta(seconds=3))
    monkeypatch.setattr(processes, "NOTICE_S", 0)
    monkeypatch.setattr(processes, "CONNECT_S", 1)
    missing = "waiting for rank 0 at 127.0.0.1" if number else "waiting for 2 more processes"
    with pytest.raises(RankError, match=missing) as caught:
        processes._meet(Rank(number, 3, number, 3, "127.0.0.1", free_port(), by_kit=False))
    assert "unset WORLD_SIZE" in caught.value.hint
    assert missing in capsys.readouterr().err


def test_an_address_that_is_taken_is_one_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RankError, match=r"rank 0 cannot listen at 127\.0\.0\.1:\d+"):
            processes._meet(Rank(0, 2, 0, 2, "127.0.0.1", taken.getsockname()[1], by_kit=False))


def test_a_rank_that_waits_says_so_and_hears_ctrl_c(tmp_path: Path):
    stray = {**os.environ, **WHOLE, "RANK": "0", "MASTER_PORT": str(free_port())}
    environment = {**stray, "PYTHONPATH": str(Path(kit.__file__).parent.parent)}
    command = [sys.executable, "-m", "kit", "submit", str(tmp_path), "--root", str(tmp_path)]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline().startswith("rank 0 is waiting for 1 more process (WORLD_SIZE=2")
        process.send_signal(signal.SIGINT)
        asked = time.monotonic()
        err = process.stderr.read()
        assert process.wait(60) == 1
    assert time.monotonic() - asked < 20
    assert "error: interrupted" in err
