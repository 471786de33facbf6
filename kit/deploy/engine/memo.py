"""Choices that were measured once: kept in the user's cache, and gone with it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from kit.console import say
from kit.errors import KitError
from kit.system.files import cache_folder, replacing


def recall(kind: str, key: str) -> Any:
    """Returns what was remembered, for JSON; None where there is nothing, or it cannot be read.

    Args:
        kind: of choice, a folder's name.
        key: what it holds for.
    """
    try:
        kept = json.loads(_path(kind, key).read_text())
        return kept["choice"] if kept["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(kind: str, key: str, choice: Any) -> None:
    """Keeps a choice for the next time; a cache that cannot be written costs time, nothing else."""
    try:
        with replacing(_path(kind, key)) as temporary:
            temporary.write_text(json.dumps({"key": key, "choice": choice}, indent=1) + "\n")
    except (OSError, KitError) as cause:
        say(f"{kind} is not remembered: {cause}")


def _path(kind: str, key: str) -> Path:
    return cache_folder() / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
