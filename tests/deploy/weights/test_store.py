"""The folder of weights: exports that are killed, two at once, leftovers, and an index that somebody edited."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from deploy_fakes import left_in

from kit.deploy.weights.card import CLASSES, Card, Member
from kit.deploy.weights.store import SUFFIXES, check_free, list_in_index, read_index, staged
from kit.errors import KitError, OutputError, WeightsError
from kit.system.files import locked

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "open"}
CARD = Card(
    "0.1.0", "tiny", (Member("tiny", 0, 7, "ab" * 32, 0.5),), 0.5, CLASSES, 0.15, ((1.0, 2.0, 3.0),),
    ((1.0, 2.0, 3.0),), "none", 16, "an image", "a mask", "2.15", "2026-01-01T00:00:00Z", 0.0, 1.0,
)  # fmt: skip


def export(folder: Path, content: str, suffixes: tuple[str, ...] = (".pt",), name: str = "duo") -> None:
    """Writes files as an export does; `content` stands for the networks and their checksum."""
    with staged(folder, name) as part:
        for suffix in suffixes:
            (part / f"{name}{suffix}").write_text(content)
        (part / f"{name}.json").write_text(CARD.to_json(file_sha256=content))


def state(folder: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """What readers find: the files of `duo`, and the index."""
    rows = [(row.name, row.file_sha256) for row in read_index(folder)]
    files = {suffix: (folder / f"duo{suffix}") for suffix in SUFFIXES if suffix != ".json"}
    found = {suffix: file.read_text() for suffix, file in files.items() if file.exists()}
    return found | {".json": json.loads((folder / "duo.json").read_text())["file_sha256"]}, rows


def dies_at(step: int, action: Callable[[], None]) -> bool:
    """Runs an action in a process that is killed before its n-th change of the disk; False where it ended before."""
    child = os.fork()
    if child == 0:
        left = step

        def count(event: str, _: object) -> None:
            nonlocal left
            left -= event in CHANGES
            if not left:
                os._exit(9)

        sys.addaudithook(count)
        try:
            action()
        except BaseException:
            os._exit(3)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_a_kill_leaves_the_old_weights_or_the_new_ones(tmp_path: Path):
    before = {".pt": "old", ".onnx": "old", ".json": "old"}, [("duo", "old")]
    after = {".pt": "new", ".pt2": "new", ".json": "new"}, [("duo", "new")]
    seen = []
    for step in range(1, 200):
        folder = tmp_path / str(step)
        export(folder, "old", (".pt", ".onnx"))
        killed = dies_at(step, lambda folder=folder: export(folder, "new", (".pt", ".pt2")))
        seen.append(state(folder))
        assert seen[-1] in (before, after), step
        export(folder, "third")
        assert {path.name for path in left_in(folder)} == {"duo.pt", "duo.json", "index.csv"}, step
        if not killed:
            break
    else:
        pytest.fail("the export never ended")
    turn = seen.index(after)
    assert turn > 10
    assert all(each == after for each in seen[turn:])


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_a_kill_while_a_reader_completes_an_export(tmp_path: Path):
    for step in range(1, 100):
        folder = tmp_path / str(step)
        export(folder, "old", (".pt", ".onnx"))
        with staged(folder, "duo") as part:
            (part / "duo.pt").write_text("new")
            (part / "duo.json").write_text(CARD.to_json(file_sha256="new"))
            (part / "contents.json").write_text('[".pt", ".json"]')
            part.rename(folder / ".duo.new")
            part.mkdir()
            killed = dies_at(step, lambda folder=folder: read_index(folder))
            assert state(folder) == ({".pt": "new", ".json": "new"}, [("duo", "new")]), step
            (part / "duo.pt").write_text("new")
            (part / "duo.json").write_text(CARD.to_json(file_sha256="new"))
        if not killed:
            return
    pytest.fail("the reader never ended")


def test_what_fails_leaves_the_old_weights(tmp_path: Path):
    export(tmp_path, "old")
    with pytest.raises(ZeroDivisionError), staged(tmp_path, "duo") as part:
        (part / "duo.pt").write_text("new")
        raise ZeroDivisionError
    assert state(tmp_path) == ({".pt": "old", ".json": "old"}, [("duo", "old")])
    assert {path.name for path in left_in(tmp_path)} == {"duo.pt", "duo.json", "index.csv"}


def test_leftovers_of_killed_exports_are_removed(tmp_path: Path):
    """Those of kit 0.1.0, too; not those of other names, nor begun downloads."""
    (tmp_path / ".duo.part").mkdir()
    for name in (".duo.123.part.pt", ".duo.123.part.json", ".duo.parity.123.part.json", ".duo.part/duo.pt"):
        (tmp_path / name).write_text("left")
    others = [".duo.v2.123.part.pt", ".other.123.part.pt", ".duo.pt.0123456789ab.part"]
    for name in others:
        (tmp_path / name).write_text("left")
    export(tmp_path, "new")
    assert {path.name for path in left_in(tmp_path)} == {"duo.pt", "duo.json", "index.csv", *others}


def test_two_exports_of_one_name(tmp_path: Path):
    export(tmp_path, "old")
    with locked(tmp_path / "duo"), pytest.raises(KitError, match="another process writes"):
        export(tmp_path, "new")
    export(tmp_path, "other", name="solo")
    assert state(tmp_path)[0] == {".pt": "old", ".json": "old"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_exports_of_several_names_at_once_are_all_listed(tmp_path: Path):
    children = []
    for number in range(8):
        if not (child := os.fork()):
            try:
                list_in_index(tmp_path, f"w{number}", CARD, "ab" * 32)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert {row.name for row in read_index(tmp_path)} == {f"w{number}" for number in range(8)}


@pytest.mark.parametrize("name", ["duo.pt", "duo.json", "duo.onnx"])
def test_files_of_others_are_not_replaced(tmp_path: Path, name: str):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=rf"{name} exists and was not written by kit"):
        check_free(tmp_path, "duo")


def test_the_folder_is_checked_before_any_work(tmp_path: Path):
    (tmp_path / "weights").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot write .*weights"):
        check_free(tmp_path / "weights", "duo")


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden"])
def test_names_in_the_index_stay_in_the_folder(tmp_path: Path, name: str):
    list_in_index(tmp_path, "duo", CARD, "ab" * 32)
    index = tmp_path / "index.csv"
    index.write_text(index.read_text().replace("\nduo,", f"\n{name},"))
    with pytest.raises(WeightsError, match=r"index\.csv is unreadable: .* names no weights"):
        read_index(tmp_path)


def test_the_index_does_not_write_to_the_terminal(tmp_path: Path):
    list_in_index(tmp_path, "duo", CARD, "ab" * 32)
    index = tmp_path / "index.csv"
    index.write_text(index.read_text().replace(",tiny,", ",\x1b[2Jtiny,"))
    with pytest.raises(WeightsError, match=r"'.x1b\[2Jtiny' holds control characters"):
        read_index(tmp_path)
