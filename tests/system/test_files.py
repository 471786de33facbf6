import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import kit
from kit.errors import KitError, OutputError, RunError
from kit.paths import Paths
from kit.system.files import (
    check_writable,
    file_version,
    locked,
    read_json,
    read_limited,
    remove_leftovers,
    replacing,
    sha256_of,
    write_json,
)


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
    with locked(folder):
        with pytest.raises(KitError, match=r"another process writes .*fold0") as caught, locked(folder):
            pytest.fail("two have it")
        assert "wait until it ends" in caught.value.hint
        with locked(folder.with_name("fold1")):  # each folder has its own lock
            pass
        with pytest.raises(KitError), locked(folder):  # still kept, after another was refused
            pass
    with locked(folder):
        pass
    with pytest.raises(ZeroDivisionError), locked(folder):
        raise ZeroDivisionError
    with locked(folder):
        pass
    assert not folder.exists()  # the lock stands beside it, and is no run
    assert Paths(tmp_path).run_folders() == []


HOLDING = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from kit.system.files import (
    check_writable, file_version, locked, read_json, read_limited, remove_leftovers, replacing, sha256_of, write_json,
)
with locked(Path(sys.argv[1])):
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
        with pytest.raises(KitError, match="another process writes"), locked(folder):
            pass
        process.kill()
        process.wait()
        with locked(folder):
            pass


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOLCK, "No locks available"), OSError(errno.ENOTSUP, "Not supported")]
)
def test_a_disk_without_locks_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError):
    def no_locks(*_: object) -> None:
        raise error

    monkeypatch.setattr("fcntl.flock", no_locks)
    with locked(tmp_path / "fold0"), locked(tmp_path / "fold0"):
        pass
    with pytest.raises(OSError, match="of the block itself"), locked(tmp_path / "fold0"):
        raise OSError("of the block itself")


def test_a_system_without_locks_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locked(tmp_path / "fold0"), locked(tmp_path / "fold0"):
        pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "data").write_text("a file where a folder should be")
    with (
        pytest.raises(OutputError, match=r"cannot write .*data/city: .*data is a file"),
        locked(tmp_path / "data/city"),
    ):
        pass


def test_sha256_of_an_empty_file(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"")
    assert sha256_of(tmp_path / "a").startswith("e3b0c44298fc1c14")


def test_a_missing_file_has_no_version(tmp_path: Path):
    with pytest.raises(KitError, match=r"a\.tif cannot be read: No such file"):
        file_version(tmp_path / "a.tif")


def in_the_way(tmp_path: Path, obstacle: str) -> Path:
    """A folder that cannot be written."""
    if obstacle == "a file":
        (tmp_path / "weights").write_text("")
    elif obstacle == "a dangling link":
        (tmp_path / "weights").symlink_to(tmp_path / "gone")
    elif obstacle == "a read-only disk":
        return Path("/proc/weights")
    return tmp_path / "weights"


@pytest.mark.parametrize("obstacle", ["a file", "a dangling link", "a read-only disk"])
def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path, obstacle: str):
    folder = in_the_way(tmp_path, obstacle)
    with pytest.raises(OutputError, match=f"cannot write {folder}") as caught:
        check_writable(folder)
    assert "free some space" not in caught.value.hint
    with pytest.raises(OutputError, match=f"cannot write {folder}"):
        check_writable(folder / "deeper")
    with pytest.raises(OutputError, match=f"cannot write {folder}") as caught, replacing(folder / "x.pt"):
        pytest.fail("work was done")
    assert "free some space" not in caught.value.hint
    with pytest.raises(OutputError, match=f"cannot write {folder}"), locked(folder / "x"):
        pytest.fail("work was done")


def test_a_full_disk_is_noticed_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OutputError, match=r"cannot write .*: No space left") as caught:
        check_writable(tmp_path)
    assert "free some space" in caught.value.hint


def test_checking_a_folder_leaves_nothing(tmp_path: Path):
    check_writable(tmp_path / "a/b")
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_cannot_be_read_is_no_fault_of_the_output(tmp_path: Path):
    with pytest.raises(NotADirectoryError), replacing(tmp_path / "out.csv"):
        (tmp_path / "in.csv").touch()
        (tmp_path / "in.csv" / "x").read_bytes()


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/old").touch()
    (tmp_path / "sample").symlink_to(tmp_path / "disk")
    with replacing(tmp_path / "sample") as folder:
        folder.mkdir()
        (folder / "new").touch()
    assert (tmp_path / "sample").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["new"]


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path):
    for name in (".a.12.part.pt", ".b.13.part.tif", ".c[1].14.part", "kept.pt", ".kept.lock"):
        (tmp_path / name).touch()
    (tmp_path / ".folder.15.part").mkdir()
    remove_leftovers(tmp_path, "c[1]")
    assert not (tmp_path / ".c[1].14.part").exists()
    assert (tmp_path / ".a.12.part.pt").exists()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".kept.lock", "kept.pt"]


@dataclass(frozen=True)
class Run:
    fold: int | str
    score: float | None
    scenes: dict[str, tuple[int, ...]]


def test_a_json_file_is_read_as_a_type(tmp_path: Path):
    write_json(tmp_path / "run.json", {"fold": "all", "score": 1, "scenes": {"a": [1, 2]}, "later": 0})
    assert read_json(tmp_path / "run.json", Run) == Run("all", 1.0, {"a": (1, 2)})
    assert read_json(tmp_path / "run.json", dict[str, object])["later"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"fold": 1, "score": NaN, "scenes": {}}', "not valid JSON"),
     ('{"fold": 1, "score": 1e999, "scenes": {}}', "not valid JSON"),
     ("[" * 100_000, "not valid JSON: recursion"), ("", "not valid JSON"), ("\udcff", "not valid JSON"),
     ("null", "damaged"), ('{"fold": 1, "scenes": {}}', "damaged: field score: Field required"),
     ('{"fold": 1, "score": "1", "scenes": {}}', "damaged: field score: Input should be a valid number"),
     ('{"fold": true, "score": 1, "scenes": {}}', r"damaged: field fold"),
     ('{"fold": 1, "score": 1, "scenes": {"a": [1, null]}}', r"damaged: field scenes\.a\.1")],
)  # fmt: skip
def test_a_damaged_json_file_is_one_error(tmp_path: Path, text: str, message: str):
    (tmp_path / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=rf"run\.json is .*{message}") as caught:
        read_json(tmp_path / "run.json", Run, error=RunError, hint="train again")
    assert caught.value.hint == "train again"


def test_no_more_is_read_than_the_limit(tmp_path: Path):
    (tmp_path / "run.json").write_bytes(bytes(101))
    with pytest.raises(KitError, match=r"run\.json is larger than 100 bytes"):
        read_json(tmp_path / "run.json", Run, limit_bytes=100)


def test_only_regular_files_are_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path / "pipe", "regular"), (tmp_path, "regular"), (tmp_path / "no", "No such file"),
                          (Path("/dev/zero"), "regular"), (tmp_path / "a\0b", "null")):  # fmt: skip
        with pytest.raises(KitError, match=message):
            read_limited(path)
