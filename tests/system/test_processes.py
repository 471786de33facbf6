"""Several processes as the user meets them: what is refused, what is told, and by whom. None is started here."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from kit.cli import application
from kit.errors import KitError, RankError
from kit.system import processes
from kit.system.launcher import NEEDED, launched, launched_by_kit
from kit.system.processes import _how_it_ended, _lost, first_to_fail, joined

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher has been here."""
    for name in (*NEEDED, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def as_rank(monkeypatch: pytest.MonkeyPatch, number: int, size: int = 2, run_id: str = "torchrun") -> None:
    """Sets what a launcher sets."""
    values = {
        "RANK": number,
        "LOCAL_RANK": number,
        "WORLD_SIZE": size,
        "TORCHELASTIC_RUN_ID": run_id,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 29577,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("option", [("--nproc", 2), ("--parallel-folds", 2)])
def test_more_processes_inside_a_launcher_are_a_usage_error(
    cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch, option: tuple[str, int]
):
    as_rank(monkeypatch, 0)
    code, out, err = cli("run", "tiny", "--root", workplace, *option)
    assert (code, out) == (2, "")
    assert "--nproc" in err
    assert "a launcher has already started several processes: leave it out" in " ".join(err.replace("│", " ").split())
    assert not (workplace / "runs").exists()


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Keeps what would have been done instead of doing it."""
    done: list[tuple[Any, ...]] = []
    monkeypatch.setattr(processes, "launch", lambda *a: done.append(("launch", *a)))
    monkeypatch.setattr("kit.pipeline.run.run", lambda *_: done.append(("run",)))
    monkeypatch.setattr("kit.pipeline.run.run_side_by_side", lambda *a: done.append(("side by side", *a[3:])))
    return done


def test_processes_are_launched_once(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those that kit has launched have the same arguments, and just train."""
    done = watched(monkeypatch)
    arguments = ("run", "tiny", "--root", str(tmp_path), "--nproc", "2")
    assert cli(*arguments)[0] == 0
    assert done.pop() == ("launch", 2, list(arguments))
    as_rank(monkeypatch, 1, run_id="kit")
    assert launched_by_kit()
    assert cli(*arguments)[0] == 0
    assert done == [("run",)]


def test_a_launcher_of_one_process_is_none(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    as_rank(monkeypatch, 0, size=1)
    assert not launched()
    done = watched(monkeypatch)
    assert cli("run", "tiny", "--root", tmp_path, "--nproc", 2)[0] == 0
    assert [what for what, *_ in done] == ["launch"]


def test_folds_side_by_side_have_processes_of_their_own(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done = watched(monkeypatch)
    arguments = ["run", "tiny", "--root", str(tmp_path), "--nproc", "2", "--parallel-folds", "3"]
    assert cli(*arguments)[0] == 0
    assert done == [("side by side", arguments, 3, 2)]


@pytest.mark.parametrize("option", [("--local-rank", 0), ("--local-rank=1",), ("--local_rank", 1), ("--local_rank=0",)])
def test_a_launchers_local_rank_is_taken_before_the_command(cli: Cli, tmp_path: Path, option: tuple[object, ...]):
    """torch.distributed.launch puts it there; the number itself is in the environment."""
    code, _, err = cli(*option, "runs", "--root", tmp_path)
    assert (code, err) == (0, "no runs here yet: kit run RECIPE\n")
    assert "--local" not in cli("--help")[1]


@pytest.mark.parametrize(
    ("exitcode", "how"),
    [
        (-signal.SIGKILL, "was ended by SIGKILL"),
        (-signal.SIGTERM, "was ended by SIGTERM"),
        (-signal.SIGSEGV, "was ended by SIGSEGV"),
        (-signal.SIGBUS, "was ended by SIGBUS"),
        (-(signal.SIGRTMIN + 2), "was ended by "),  # which has no name
        (1, "ended with exit code 1"),
        (3, "ended with exit code 3"),
    ],
)
def test_how_a_rank_has_ended(exitcode: int, how: str):
    message, hint = _how_it_ended(1, 4, exitcode)
    assert message.startswith(f"rank 1 of 4 {how}")
    assert message.endswith(", and the others were ended")
    assert hint.startswith("rerun the same command to resume")
    assert ("memory" in hint) == (exitcode == -signal.SIGKILL)


class Launcher:
    """Stands in for torch's, whose first process to fail has ended so."""

    def __init__(self, exitcode: int) -> None:
        self.exitcode = exitcode

    def __call__(self, config: Any, *_: object) -> Callable[..., None]:
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

        def start(*_: object) -> None:
            failure = ProcessFailure(local_rank=1, pid=997, exitcode=self.exitcode, error_file="none")
            raise ChildFailedError("kit", {1: failure})

        return start


@pytest.mark.parametrize(("exitcode", "shown"), [(1, True), (2, False), (-9, False)])
def test_an_error_that_was_shown_is_not_shown_again(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exitcode: int, shown: bool
):
    """A rank that ended with 1 has told its own error."""
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", Launcher(exitcode))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(RankError) as caught:
        processes.launch(2, ["run", "tiny"])
    assert caught.value.shown == shown
    code, out, err = cli("run", "tiny", "--root", tmp_path, "--nproc", 2)
    assert (code, out) == (1, "")
    assert ("error: rank 1 of 2" in err) != shown
    assert "Traceback" not in err


def test_before_they_have_joined_every_rank_tells(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "_store", None)
    for number in (0, 1):
        as_rank(monkeypatch, number)
        assert first_to_fail()


def test_once_they_have_joined_the_first_to_fail_tells(monkeypatch: pytest.MonkeyPatch):
    as_rank(monkeypatch, 1)
    monkeypatch.setattr(processes, "_store", dist.HashStore())
    assert [first_to_fail() for _ in range(3)] == [True, False, False]


def test_a_rank_that_lost_the_others_tells(monkeypatch: pytest.MonkeyPatch):
    class Lost:
        def add(self, *_: object) -> int:
            raise dist.DistNetworkError("failed to recv, got 0 bytes")

    monkeypatch.setattr(processes, "_store", Lost())
    assert first_to_fail()


@pytest.mark.parametrize("told", [True, False])
def test_a_mistake_of_all_is_told_by_the_first(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool):
    store = dist.HashStore()
    if not told:
        store.add("failed", 1)  # by another rank
    as_rank(monkeypatch, 1)
    monkeypatch.setattr(processes, "_store", None)
    monkeypatch.setattr(processes, "_meet", lambda _: store)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    code, out, err = cli("run", "lite1", "--root", tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith("error: no recipe 'lite1'") if told else err == ""


def test_what_one_rank_alone_meets_before_they_join_is_told(cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch):
    """Two processes on a machine with one GPU: rank 0 waits for rank 1, which has none; nobody else can tell."""

    def one_gpu(name: str) -> torch.device:
        if name == "cuda:1":
            raise KitError("no device 'cuda:1' here", "try --device cpu")
        return torch.device("cuda")

    as_rank(monkeypatch, 1, run_id="kit")
    monkeypatch.setattr(processes, "_store", None)
    monkeypatch.setattr(processes, "_meet", lambda _: dist.HashStore())
    monkeypatch.setattr(processes, "pick_device", one_gpu)
    code, _, err = cli("run", "tiny", "--root", workplace, "--nproc", 2)
    assert code == 1
    assert "error: no device 'cuda:1' here" in err


def test_a_process_by_itself_tells_its_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(processes, "first_to_fail", lambda: pytest.fail("there are no others"))
    application._fail("no such thing", "look elsewhere")
    assert capsys.readouterr().err == "error: no such thing\nhint:  look elsewhere\n"


def chained(last: Exception, *causes: Exception) -> Exception:
    for error, cause in zip((last, *causes), causes, strict=False):
        error.__cause__ = cause
    return last


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (RuntimeError("NCCL error: remote process exited"), True),
        (dist.DistNetworkError("failed to recv"), True),
        (chained(KitError("fit() failed"), RuntimeError("gloo: read error")), True),
        (chained(KitError("a"), ValueError("b"), dist.DistBackendError("c")), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("a tile about gloo"), False),
        (chained(KitError("fit() failed"), ValueError("a bad tile")), False),
    ],
    ids=str,
)
def test_which_errors_mean_that_another_rank_has_ended(error: Exception, lost: bool):
    assert _lost(error) == lost


def test_a_process_by_itself_joins_none():
    with joined("cpu") as device:
        assert device == torch.device("cpu")
        assert not dist.is_initialized()
    with pytest.raises(ZeroDivisionError), joined("cpu"):
        raise ZeroDivisionError


def test_several_processes_cannot_share_a_gpu(monkeypatch: pytest.MonkeyPatch):
    as_rank(monkeypatch, 1)
    monkeypatch.setattr(processes, "_meet", lambda _: dist.HashStore())
    monkeypatch.setattr(processes, "pick_device", lambda _: torch.device("cuda", 1))
    with pytest.raises(RankError, match="several processes cannot share cuda:1") as caught, joined("cuda:1"):
        pass
    assert "--device cuda" in caught.value.hint
