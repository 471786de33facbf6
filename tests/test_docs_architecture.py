"""docs/architecture.md names files that exist, and every room."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:kit|recipes|tests|docs)/[\w/.]*)`", PAGE))))
def test_paths_exist(path: str):
    assert (ROOT / path).exists()


def test_every_room_is_listed():
    rooms = {f"kit/{file.parent.relative_to(ROOT / 'kit')}/" for file in (ROOT / "kit").rglob("*/__init__.py")}
    listed = set(re.findall(r"^\| `(kit/[\w/]+/)`", PAGE, re.M))
    assert rooms - {"kit/deploy/", "kit/data/"} <= listed | {"kit/recipes/"}
