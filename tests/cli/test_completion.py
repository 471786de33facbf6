"""Shell completion: what Tab offers, and a script that bash accepts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def kit(*arguments: str, **variables: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "kit", *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [("kit ru", {"run", "runs"}), ("kit map --squ", {"--square"}), ("kit run --tr", {"--track"})],
)
def test_tab_offers_commands_and_options(line: str, offered: set[str]):
    place = str(len(line.split()) - 1)
    assert set(kit(_KIT_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=place).split()) == offered


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_installed_script_completes_in_bash(tmp_path: Path):
    assert "completion installed" in kit("--install-completion", "bash", HOME=str(tmp_path))
    loaded = subprocess.run(
        ["bash", "-c", ". ~/.bashrc && complete -p kit"],
        env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert loaded.stdout.strip() == "complete -o default -F _kit_completion kit"
    assert "_kit_completion" in kit("--show-completion", "bash")
