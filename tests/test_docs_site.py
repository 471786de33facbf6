"""The pages as a site: Sphinx builds it without a warning, and the home page leads to every page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path):
    for module in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(module)
    command = re.search(r"^commands = sphinx-build (.+) build/docs$", (ROOT / "tox.ini").read_text(), re.M)
    assert command
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *command[1].split(), "-d", tmp_path / "cache", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    home = (tmp_path / "site" / "index.html").read_text()
    assert "<h1>kit" in home
    for page in (ROOT / "docs").glob("*.md"):
        assert f'href="docs/{page.stem}.html"' in home
        assert (tmp_path / "site" / "docs" / f"{page.stem}.html").is_file()
