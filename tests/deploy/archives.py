"""Weights archives taken apart, doctored and put together again."""

import zipfile
from collections.abc import Callable
from pathlib import Path

Entries = list[tuple[str, bytes]]


def entries_of(path: Path) -> Entries:
    with zipfile.ZipFile(path) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def write_archive(path: Path, entries: Entries, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return path


def code_of(entries: Entries) -> str:
    """The name of the only code record."""
    (name,) = [name for name, _ in entries if name.endswith(".py")]
    return name


def doctored(weights: Path, path: Path, record: str, change: Callable[[bytes], bytes]) -> Path:
    """Copies weights with one record changed, whose name ends in `record`."""
    entries = entries_of(weights)
    assert [name for name, _ in entries if name.endswith(record)], record
    return write_archive(path, [(n, change(d) if n.endswith(record) else d) for n, d in entries])


def with_line(weights: Path, path: Path, line: str) -> Path:
    """Copies weights with one more line at the beginning of the first method."""
    body = b") -> Tensor:\n"
    return doctored(weights, path, ".py", lambda code: code.replace(body, body + f"    {line}\n".encode(), 1))
