"""The wheel: what it holds, and that it is the same bytes when it is built again."""

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import kit

ROOT = Path(__file__).parents[1]
SOURCES = ("kit", "recipes", "weights", "setup.py", "setup.cfg", "pyproject.toml")
PARTS = (*SOURCES, "README.md", "LICENSE", "LICENSE-APACHE", "NOTICE")
pytest.importorskip("setuptools", "77", reason="setuptools of pyproject.toml is not installed")


def build(folder: Path) -> Path:
    """A wheel of a copy of the sources, whose files have the current time."""
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pt", "*.onnx", "*.csv", "*.part", "*.lock")
            shutil.copytree(ROOT / part, folder / part, ignore=ignored, copy_function=shutil.copy)
        else:
            shutil.copy(ROOT / part, folder / part)
    for file in (ROOT / "weights").glob("starter.*"):
        shutil.copy(file, folder / "weights")
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_is_whole_and_built_twice_the_same(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = build(tmp_path / "a")
    time.sleep(2.1)  # a zip archive counts times in 2 s
    second = build(tmp_path / "b")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    names = zipfile.ZipFile(first).namelist()
    recipes = {f"kit/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.py")}
    starter = {f"kit/weights/starter.{suffix}" for suffix in ("pt", "json", "safetensors")}
    assert recipes | starter | {"kit/py.typed", "kit/cli/application.py"} <= set(names)
    licences = {name.rpartition("/")[2] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "LICENSE-APACHE", "NOTICE"}
    assert first.name == f"footprintkit-{kit.__version__}-py3-none-any.whl"
    assert not [name for name in names if name.startswith("tests/")]


def test_the_changelog_describes_this_version():
    assert re.search(
        rf"^## {re.escape(kit.__version__)} \(\d{{4}}-\d\d-\d\d\)$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
