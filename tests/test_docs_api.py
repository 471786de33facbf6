"""docs/api.md and the modules' `__all__` name the same things."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
SECTIONS = dict(re.findall(r"^### `([\w.]+)`\n(.+?)(?=^##|\Z)", PAGE, re.M | re.S))


@pytest.mark.parametrize("module", SECTIONS)
def test_public_names(module: str):
    listed = re.findall(r"^\| `(\w+)` \|", SECTIONS[module], re.M)
    loaded = import_module(module)
    assert sorted(listed) == sorted(name for name in loaded.__all__ if not name.startswith("__"))
    for name in listed:
        value = getattr(loaded, name)
        assert value.__doc__ or not (inspect.isclass(value) or inspect.isfunction(value)), name
