"""Work on the workers of a cluster: the same results, lost workers, clusters that do not fit."""

import os
import signal
import socket
from functools import partial
from pathlib import Path

import pytest

from kit.errors import KitError
from kit.system import cluster
from kit.system.cluster import ADDRESS, chosen_cluster
from kit.system.workers import on_cluster, spread


def square(number: int) -> int:
    return number**2


def die_once(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return marker.name


def die(_: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def refuse(reason: str) -> str:
    return reason


@pytest.mark.slow
def test_a_local_cluster_works_and_outlives_its_workers(tmp_path: Path):
    with on_cluster("local:2"):
        assert dict(spread(square, range(100), 1, "counting")) == {n: n**2 for n in range(100)}
        assert [name for _, name in spread(die_once, [tmp_path / "m"], 1, "dying")] == ["m"]
        assert list(spread(die, [1], 1, "dying", lost=lambda job: -job)) == [(1, -1)]
        with pytest.raises(KitError, match="several workers were lost dying"):
            list(spread(die, [1], 1, "dying"))
        with pytest.raises(KitError, match=r"2 of 2 workers cannot work, first tcp://.*: no weights"):
            list(spread(square, [1], 1, "counting", check=partial(refuse, "no weights")))


def test_without_a_cluster_processes_work():
    assert list(spread(square, [3], 1, "counting")) == [(3, 9)]


def test_a_scheduler_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch):
    assert cluster.CONNECT_S < 10
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with on_cluster(address), pytest.raises(KitError, match=f"no scheduler answers at {address}") as caught:
        list(spread(square, [1], 1, "counting"))
    assert "dask scheduler" in caught.value.hint


def test_which_cluster_is_chosen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(ADDRESS, raising=False)
    assert chosen_cluster() == ""
    assert chosen_cluster("local:3") == "local:3"
    monkeypatch.setenv(ADDRESS, "tcp://head:8786")
    assert chosen_cluster() == "tcp://head:8786"
    assert chosen_cluster("", 4) == ""
    with pytest.raises(KitError, match="no cluster 'head'"):
        chosen_cluster("head")
    with pytest.raises(KitError, match="exclude each other"):
        chosen_cluster("local:2", 4)
