"""docs/pseudo.md: its commands, options, files and columns are those of the code."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from deploy_fakes import export_tiny, noise, write_tiff
from test_docs import COMMANDS, DOCS, inline, kit_arguments, rows_below, shell

from kit.pipeline.pseudo_labels import LEDGER_COLUMNS, TIER
from kit.pipeline.pseudo_quality import PseudoQuality
from kit.pipeline.pseudo_set import ALONE

PAGE = (DOCS / "pseudo.md").read_text()


@pytest.mark.parametrize("line", [*shell(PAGE), *(code for code in inline(PAGE) if code.startswith("kit run"))])
def test_commands_parse(line: str):
    words = kit_arguments(line)
    COMMANDS[words[0]].make_context(words[0], words[1:])


def test_the_table_of_options_is_whole():
    listed = {text for row in rows_below("The command", PAGE) for text in re.findall(r"`(--[\w-]+)", row[0])}
    known = {text for p in COMMANDS["pseudo"].params for text in [*p.opts, *p.secondary_opts] if text.startswith("--")}
    assert listed == known - {"--root", "--debug", "--help", "--tune", "--sha256"}


def test_the_folder_is_as_documented(tmp_path: Path, cli: Callable[..., object]):
    weights = export_tiny(tmp_path / "weights")
    write_tiff(tmp_path / "test/a.tif", noise(40, 50))
    ways = ("--no-tune", "--soft", "--scale", "--ignore", "none")
    cli("pseudo", tmp_path / "test", "--weights", weights.path, *ways, "--name", "one", "--root", tmp_path)
    folder = tmp_path / "data/one"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    rows = {row[0].strip("`").replace("<chip>", "a"): row[1] for row in rows_below("The data set", PAGE)}
    assert set(rows) == files
    columns = tuple(code for code in re.findall(r"`(\w+)`", rows["pseudo.csv"]) if code not in ("true", "false"))
    assert columns == LEDGER_COLUMNS
    assert f"share the scene `{ALONE}`" in PAGE
    assert f"`tier` is {TIER}" in PAGE


def test_the_line_is_kit_s():
    assert str(PseudoQuality(("lite0/fold0",), 1, 412, 412, 412, 0.961, 0.983, 0.8712)) in PAGE
