"""Remembers what was measured once, in the user's cache folder; removing that folder costs time, nothing else."""

import hashlib
from pathlib import Path
from typing import Any, TypeVar

from kit.console import say
from kit.errors import KitError
from kit.system.files import cache_folder, read_json, write_bytes

T = TypeVar("T")


def recall(kind: str, key: str, model: type[T]) -> T | None:
    """Returns a remembered value; None where there is none, or it cannot be read.

    Args:
        kind: of value; names a folder in the cache.
        key: what the value belongs to.
        model: type of the value, see `kit.system.files.parse_json`.
    """
    try:
        known_key, value = read_json(_path(kind, key), tuple[str, model])  # type: ignore[valid-type]
    except KitError:
        return None
    return value if known_key == key else None


def remember(kind: str, key: str, value: object) -> None:
    """Keeps a value, also dataclasses, for later calls of `recall`; a cache that cannot be written is only reported."""
    from pydantic import TypeAdapter

    try:
        write_bytes(_path(kind, key), TypeAdapter(tuple[str, Any]).dump_json((key, value), indent=1))
    except KitError as cause:
        say(f"{kind} is not remembered: {cause}")


def _path(kind: str, key: str) -> Path:
    return cache_folder() / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
