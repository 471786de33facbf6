"""docs/commands.md lists every command, and no other."""

import re
from pathlib import Path

import typer

from kit.cli import app

PAGE = (Path(__file__).parents[1] / "docs" / "commands.md").read_text()


def test_every_command_is_listed_once():
    listed = re.findall(r"^\| `kit ([\w-]+)", PAGE, re.M)
    assert sorted(listed) == sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_shared_options_exist():
    group = typer.main.get_command(app)
    commands = [group, *group.commands.values()]  # type: ignore[attr-defined]
    options = {option for command in commands for parameter in command.params for option in parameter.opts}
    for option in re.findall(r"^\| `(--[\w-]+)", PAGE, re.M):
        assert option in options | {"--help"}, option
