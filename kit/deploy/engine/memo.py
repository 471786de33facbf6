"""Caches measurements in the user's cache folder, which can be removed at any time."""

import hashlib
from pathlib import Path
from typing import Any, TypeVar

from kit.console import say
from kit.errors import KitError
from kit.system.files import cache_folder, read_json, write_bytes

T = TypeVar("T")


def recall(kind: str, key: str, model: type[T]) -> T | None:
    """Returns a cached value; None if there is none, or it cannot be read.

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
    """Caches a value for `recall`, also dataclasses; if the cache cannot be written, prints a notice."""
    from pydantic import TypeAdapter

    try:
        write_bytes(_path(kind, key), TypeAdapter(tuple[str, Any]).dump_json((key, value), indent=1))
    except KitError as cause:
        say(f"cannot cache {kind}: {cause}")


def _path(kind: str, key: str) -> Path:
    return cache_folder() / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
