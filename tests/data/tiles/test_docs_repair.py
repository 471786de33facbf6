"""docs/tier2.md: its options, columns, fields and keys are those of the code."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import typer

from kit.cli import app
from kit.data.audits import TileVerdict, Verdict
from kit.data.repairs import FIELDS, LabelChange
from kit.sample.damage import DamagedBlock

PAGE = (Path(__file__).parents[3] / "docs" / "tier2.md").read_text()


def cell(row: str) -> list[str]:
    """Returns the names in backquotes of a table's row that begins with `row`."""
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{row}`"))
    return re.findall(r"`([\w.-]+)`", line)


def test_options_of_repair():
    command = typer.main.get_command(app).commands["repair"]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    listed = set(re.findall(r"^\| `(--[\w-]+)`", PAGE, re.M))
    assert listed == options - {"--json", "--root", "--debug"}


def test_columns_of_the_ledger_and_fields_of_the_footprints():
    assert set(cell("repairs.csv")) >= {field.name for field in fields(LabelChange)}
    assert set(cell("footprints.gpkg")) >= set(FIELDS)


def test_every_verdict_is_explained():
    rows = re.search(r"\| verdict of the audit .+?\n\n", PAGE, re.S)
    assert rows
    first = [line.split("|")[1] for line in rows[0].splitlines()[2:] if line]
    named = set(re.findall(r"`(\w+)`", " ".join(first)))
    assert named == {*get_args(Verdict), *get_args(TileVerdict)} - {"train", "repair"}


def test_keys_of_the_damage():
    rows = re.findall(r"^\| (`.+?`(?:, `.+?`)*) \|", PAGE.split("damage.json`")[-1], re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {f.name for f in fields(DamagedBlock)}
