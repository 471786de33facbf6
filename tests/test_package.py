"""The wheel: what it holds, and that it is the same bytes when it is built again."""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("kit", "recipes", "weights", "setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
pytest.importorskip("setuptools", "77", reason="setuptools of pyproject.toml is not installed")


def build(folder: Path) -> Path:
    """A wheel of a copy of the sources, whose files have the current time."""
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pt", "*.onnx", "*.csv", "*.part", "*.lock")
            shutil.copytree(ROOT / part, folder / part, ignore=ignored, copy_function=shutil.copy)
        else:
            shutil.copy(ROOT / part, folder / part)
    (folder / "weights" / "starter.pt").write_bytes(b"weights")
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
    assert recipes | {"kit/py.typed", "kit/cli/application.py", "kit/weights/starter.pt"} <= set(names)
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert not [name for name in names if name.startswith("tests/")]
