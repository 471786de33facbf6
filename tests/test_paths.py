import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kit
from kit.errors import KitError
from kit.paths import Paths, alone, replacing


def test_a_file_appears_when_it_is_whole(tmp_path: Path):
    target = tmp_path / "sub" / "card.json"
    with replacing(target) as file:
        file.write_text("{}")
        assert not target.exists()
        assert file.suffix == ".json"
    assert target.read_text() == "{}"
    assert list(target.parent.iterdir()) == [target]


def test_nothing_is_left_when_the_work_fails(tmp_path: Path):
    (tmp_path / "card.json").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "card.json") as file:
        file.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "card.json").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_replaced_whole(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "stale").touch()
    with replacing(tmp_path / "data") as folder:
        folder.mkdir()
        (folder / "fresh").touch()
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["fresh"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_told(tmp_path: Path):
    with (
        pytest.raises(KitError, match=r"cannot write .*card\.json: No space left") as caught,
        replacing(tmp_path / "card.json"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "--root" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_kept_for_one_process(tmp_path: Path):
    folder = tmp_path / "runs" / "tiny" / "fold0"
    with alone(folder):
        with pytest.raises(KitError, match=r"another process writes .*fold0") as caught, alone(folder):
            pytest.fail("two have it")
        assert "wait for it" in caught.value.hint
        with alone(folder.with_name("fold1")):  # each folder has its own lock
            pass
        with pytest.raises(KitError), alone(folder):  # still kept, after another was refused
            pass
    with alone(folder):
        pass
    with pytest.raises(ZeroDivisionError), alone(folder):
        raise ZeroDivisionError
    with alone(folder):
        pass
    assert not folder.exists()  # the lock stands beside it, and is no run
    assert Paths(tmp_path).run_folders() == []


HOLDING = """
import sys, time
from pathlib import Path
from kit.paths import alone
with alone(Path(sys.argv[1])):
    print("kept", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_process(tmp_path: Path):
    """However it ends: nobody has to remove a lock by hand."""
    folder = tmp_path / "fold0"
    environment = {**os.environ, "PYTHONPATH": str(Path(kit.__file__).parent.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(folder)], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "kept\n"
        with pytest.raises(KitError, match="another process writes"), alone(folder):
            pass
        process.kill()
        process.wait()
        with alone(folder):
            pass


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOLCK, "No locks available"), OSError(errno.ENOTSUP, "Not supported")]
)
def test_a_disk_without_locks_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError):
    def no_locks(*_: object) -> None:
        raise error

    monkeypatch.setattr("fcntl.flock", no_locks)
    with alone(tmp_path / "fold0"), alone(tmp_path / "fold0"):
        pass
    with pytest.raises(OSError, match="of the block itself"), alone(tmp_path / "fold0"):
        raise OSError("of the block itself")


def test_a_system_without_locks_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with alone(tmp_path / "fold0"), alone(tmp_path / "fold0"):
        pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(KitError, match=r"cannot write .*data/city: "), alone(tmp_path / "data" / "city"):
        pass
