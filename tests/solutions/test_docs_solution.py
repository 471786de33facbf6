"""docs/solution.md: the solution that it quotes, its tables."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from kit.cli import app
from kit.paths import Paths
from kit.solutions import rounds
from kit.solutions.stages import Kind
from kit.training.recipe import known_solutions

PAGE = (Path(__file__).parents[2] / "docs" / "solution.md").read_text()


def table(title: str) -> list[list[str]]:
    """The cells of the tables below a heading."""
    part = re.search(rf"^## {title}\n(.+?)(?=^## |\Z)", PAGE, re.M | re.S)[1]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines() if line[:2] == "| "]


def test_the_quoted_solution_is_kits():
    source = known_solutions(Paths(Path("none")))["open_cities"].read_text()
    quoted = re.search(r"```python\n(.+?)```", PAGE, re.S)[1]
    assert quoted in source
    assert ast.parse(quoted)


def test_solutions_and_their_parts_are_listed():
    first = [row[0].strip("`") for row in table("What a solution is")]
    assert set(known_solutions(Paths(Path("none")))) <= set(first)
    for name in ("Round", "Training", "Pseudo"):
        cell = next(row[1] for row in table("What a solution is") if row[0] == f"`{name}`")
        words = set(re.findall(r"`(\w+)`", cell)) | {"recipe", "name", "of", "learns", "trainings"}
        assert {field.name for field in fields(getattr(rounds, name))} <= words


def test_options_are_those_of_kit_run():
    documented = re.findall(r"`(--[\w-]+)", " ".join(row[0] for row in table("The command")))
    params = typer.main.get_command(app).commands["run"].params  # type: ignore[attr-defined]
    known = {text for each in params for text in [*each.opts, *each.secondary_opts] if text.startswith("--")}
    refused = {"--add", "--fold", "--all", "--minutes", "--epochs", "--steps", "--seed", "--name", "--views",
               "--encoder-weights", "--teacher", "--start-from", "--no-export"}  # fmt: skip
    assert set(documented) == known - refused - {"--root", "--debug", "--help", "--pretrained", "--export"}


@pytest.mark.parametrize("kind", Kind.__args__)
def test_every_kind_of_stage_is_listed(kind: str):
    assert [f"`{kind}`"] in [row[:1] for row in table("What it makes")]
