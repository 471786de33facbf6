"""The records in a submission's folder: names of any kind come back, damage is noticed."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from kit.deploy.submission.progress import (
    FINISHED,
    PROGRESS,
    Done,
    Finished,
    digest,
    read_finished,
    read_progress,
    write_progress,
    write_table,
)

NAMES = ["a", "a,b", 'say "x"', "=1+1", "-2", "ü ß", "北", "a;b", "'q'", " c "]


def row(name: str, confidence: float = 0.987654321) -> Done:
    return Done(name, "sha plain-float32-1", f"12 34-{name}", 20, 30, 7, confidence)


def test_names_come_back(tmp_path: Path):
    write_progress(tmp_path, map(row, NAMES))
    rows = read_progress(tmp_path, row("").made_by, Done)
    assert rows == {name: row(name) for name in NAMES}
    assert read_progress(tmp_path, "another", Done) == {}
    write_table(rows.values(), tmp_path / "submission.csv")
    lines = (tmp_path / "submission.csv").read_text().splitlines()
    assert lines[0] == "chip,building_px,building_fraction,mean_confidence"
    assert lines[2] == '"a,b",7,0.011667,0.987654'


def test_rows_of_other_ranks_count_and_half_a_row_does_not(tmp_path: Path):
    write_progress(tmp_path, [row("a")])
    whole = row("b").to_line()
    for end in range(len(whole)):
        (tmp_path / ".progress.1.csv").write_text(whole[:end])
        assert set(read_progress(tmp_path, row("").made_by, Done)) == {"a"}
    (tmp_path / ".progress.1.csv").write_text(whole + "c,half a ro")
    assert set(read_progress(tmp_path, row("").made_by, Done)) == {"a", "b"}


def damaged(data: bytes, seed: int) -> bytes:
    """The bytes with some changed, removed or added."""
    rng, spoilt = random.Random(seed), bytearray(data)
    for _ in range(rng.randint(1, 5)):
        place = rng.randrange(len(spoilt))
        kind = rng.randrange(3)
        if kind == 0:
            spoilt[place] = rng.randrange(256)
        elif kind == 1:
            del spoilt[place : place + rng.randint(1, 9)]
        else:
            spoilt[place:place] = rng.choice([b"\n", b",", b'"', b"\0", b"\r", b"\xff", b"9", b"\xe2\x80\xa8"])
    return bytes(spoilt)


def test_damaged_rows_are_left_out_and_never_misread(tmp_path: Path):
    rows = {name: row(name) for name in [*NAMES, *map(str, range(20))]}
    write_progress(tmp_path, rows.values())
    data = (tmp_path / PROGRESS).read_bytes()
    for seed in range(300):
        (tmp_path / PROGRESS).write_bytes(damaged(data, seed))
        assert read_progress(tmp_path, row("").made_by, Done).items() <= rows.items()


def test_a_damaged_record_of_a_finished_submission_is_none(tmp_path: Path):
    record = Finished("request", "12", "34", {"a.tgz": "5 6", "submission.csv": "7 8"}, 0.25, 3)
    assert read_finished(tmp_path) is None
    record.write(tmp_path)
    data = (tmp_path / FINISHED).read_bytes()
    written = read_finished(tmp_path)
    assert written is not None
    assert replace(written, crc32="") == record
    for seed in range(300):
        (tmp_path / FINISHED).write_bytes(damaged(data, seed))
        assert read_finished(tmp_path) in (None, written)


@pytest.mark.parametrize("change", ["rewrite", "remove", "rename"])
def test_a_digest_changes_with_its_files(tmp_path: Path, change: str):
    files = {name: tmp_path / name for name in "ab"}
    for file in files.values():
        file.write_text("x")
    before = digest(files)
    assert digest(dict(reversed(files.items()))) == before
    if change == "rewrite":
        files["b"].write_text("xy")
    elif change == "remove":
        files.pop("b")
    else:
        files["c"] = files.pop("b")
    assert digest(files) != before
