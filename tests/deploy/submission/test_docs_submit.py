"""docs/submit.md: its commands, options, files, checks and messages are those of the code."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from deploy_fakes import noise, write_tiff
from test_docs import COMMANDS, DOCS, inline, options, rows_below

from kit.data.rasters import MOST_PIXELS
from kit.deploy.submission import archive, checks
from kit.deploy.submission.checks import SubmissionCheck, check
from kit.deploy.submission.inspect_masks import FORM
from kit.deploy.weights.cleaning import Cleaning
from kit.pipeline import postprocess
from kit.pipeline.export import Exported

PAGE = (DOCS / "submit.md").read_text()


@pytest.mark.parametrize("code", [code for code in inline(PAGE) if re.match(r"kit [a-z-]+|--", code)])
def test_commands_and_options_in_the_text_exist(code: str):
    words = code.removeprefix("kit ").split()
    known = options("submit") | options("check-submission") if words[0].startswith("--") else options(words[0])
    assert {word for word in words if word.startswith("-")} <= known
    assert words[0].startswith("--") or words[0] in COMMANDS


def test_the_table_of_options_is_whole():
    documented = {text for row in rows_below("The command", PAGE) for text in re.findall(r"`(--[\w-]+)", row[0])}
    known = {text for text in options("submit") if text.startswith("--")}
    assert documented == known - {"--root", "--debug", "--help", "--tune", "--no-clean", "--sha256"}


def test_the_folder_is_as_told(chips: Path, tiny_weights: Exported, tmp_path: Path, cli: Callable[..., object]):
    ways = ("--no-tune", "--rle", "--scale")
    cli("submit", chips, "--weights", tiny_weights.path, *ways, "--name", "one", "--root", tmp_path)
    made = {re.sub(r"^[a-d]\.tif$", "<chip>.tif", path.name) for path in (tmp_path / "submissions/one").iterdir()}
    rows = dict(rows_below("The folder", PAGE))
    assert {name.strip("`") for name in rows} == made
    columns = re.findall(r"`(\w+)`", rows["`submission.csv`"])
    assert (tmp_path / "submissions/one/submission.csv").read_text().splitlines()[0].split(",") == columns


def test_the_checks_are_as_told(tmp_path: Path):
    for seed in range(2):
        write_tiff(tmp_path / "masks" / f"{seed}.tif", noise(9, 9, 1, seed)[..., 0] // 128)
    checked = check(tmp_path / "masks", earlier=tmp_path / "masks")
    assert [row[0].strip("`") for row in rows_below("Checking", PAGE)] == [row.name for row in checked.checks]
    assert set(FORM) <= {row.name for row in checked.checks}
    marks = [SubmissionCheck("", "", *more).mark for more in ((), ((), "x"), (("x",),))]
    assert all(f"`{mark}`" in PAGE for mark in marks)


def test_numbers_are_the_code_s():
    assert f"{archive.LARGEST_BYTES // 1024**2} MiB" in PAGE
    assert f"({archive.MOST:,})" in PAGE
    side = int(MOST_PIXELS**0.5)
    assert f"{side:,} x {side:,} px" in PAGE
    assert f"{postprocess.LARGEST_PX // 1024**2} tiles of 1,024 px" in PAGE
    assert (len(postprocess.SMALLEST_M2), len(postprocess.HOLE_M2)) == (9, 7)
    assert checks.FAR == 3
    assert str(Cleaning(0.45, 3, 2)) + ": 0.7812 -> 0.7840 on validation tiles (kit submit --clean)" in PAGE
