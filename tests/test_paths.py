import errno
from pathlib import Path

import pytest

from kit.errors import KitError
from kit.paths import replacing


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
