"""Files: atomic writes, locks, checksums, reading with a size limit."""

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kit.errors import KitError, OutputError

if TYPE_CHECKING:  # pydantic takes 0.1 s to import
    from pydantic import TypeAdapter

T = TypeVar("T")

LIMIT_BYTES = 64 * 2**20  # of a text file that kit wrote
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHOWN = 60  # characters of a wrong value, in an error


def cache_folder() -> Path:
    """Returns the user's cache folder: `KIT_CACHE`, else `kit` in the XDG cache folder."""
    if folder := os.environ.get("KIT_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kit"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`, renamed to `path` when the block succeeds and removed when it fails.

    Works for a file and for a folder (an existing folder of that name is replaced).

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    if path.is_symlink() and path.is_dir():  # the target of a link is replaced, on its own disk
        path = path.resolve()
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise _unwritable(path, cause) from cause
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except OSError as cause:
        if cause.errno is None or isinstance(cause, FileNotFoundError) or not _concerns(cause, path, temporary):
            raise
        raise _unwritable(path, cause) from cause
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary.is_file():
            temporary.unlink(missing_ok=True)


def _concerns(cause: OSError, path: Path, temporary: Path) -> bool:
    """Returns whether an error is about writing `path`: a full disk names no file, an unreadable input another one."""
    if not isinstance(cause.filename, str):
        return True
    named = Path(cause.filename)
    return named in (path, *path.parents, temporary) or temporary in named.parents


def _unwritable(path: Path, cause: OSError) -> OutputError:
    obstacle = _obstacle(path.parent)
    return OutputError(
        f"cannot write {path}: {obstacle or cause.strerror}",
        f"{'move it away' if obstacle else write_remedy(cause)} or choose another --root",
    )


def write_remedy(cause: OSError) -> str:
    """Returns what to do about a file that cannot be written."""
    return "free some space" if cause.errno in FULL else "make it writable"


def _obstacle(folder: Path) -> str:
    """Returns why a folder cannot be created: a file or dangling link has its name or a parent's; empty if none has."""
    for place in (folder, *folder.parents):
        if place.is_dir():
            return ""
        if place.is_symlink():
            return f"{place} is a dangling link"
        if place.exists():
            return f"{place} is a file, expected a folder"
    return ""


def check_writable(folder: Path) -> None:
    """Checks that files can be written into a folder, before any work. The folder need not exist, and is not created.

    Raises:
        OutputError: the disk is full or read-only, access is denied, or a file or a dangling link is in the way.
    """
    if obstacle := _obstacle(folder):
        raise OutputError(f"cannot write {folder}: {obstacle}", "move it away or choose another --root")
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    try:
        with tempfile.TemporaryFile(dir=nearest) as probe:
            probe.write(bytes(4096))
            probe.flush()
    except OSError as cause:
        raise _unwritable(folder, cause) from cause


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically.

    Raises:
        OutputError: see `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, record: Any) -> None:
    """Writes a JSON file atomically; NaN and infinity are refused.

    Raises:
        OutputError: see `replacing`.
    """
    write_bytes(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def remove_leftovers(folder: Path, stem: str = "") -> None:
    """Removes the temporary files of killed processes from a folder, not from subfolders. The folder must be `locked`.

    Args:
        folder: of the files.
        stem: only of the file with this stem; empty: of all.
    """
    for leftover in folder.glob(f".{escape(stem) or '*'}.*part*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Locks a folder or file against other kit processes while the block runs.

    The lock is released when the process ends, however it ends. The package filelock is not used: on disks without
    flock it leaves a marker that survives SIGKILL. On systems without flock (Windows, some network disks) nothing is
    locked.

    Raises:
        KitError: another process holds the lock.
        OutputError: the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = (path.parent / f".{path.name}.lock").open("w")
    except OSError as cause:
        raise _unwritable(path, cause) from cause
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise KitError(f"another process writes {path}", "wait until it ends, or end it") from cause
        except OSError:
            pass  # a disk without locks
        yield


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_version(path: Path) -> str:
    """Returns size and modification time of a file, as a text that changes when the file is written again.

    Raises:
        KitError: it is missing or access is denied.
    """
    try:
        status = path.stat()
    except OSError as cause:
        raise KitError(f"{path} cannot be read: {cause.strerror}", "is the path right?") from cause
    return f"{status.st_size} {status.st_mtime_ns}"


def read_limited(path: Path, limit_bytes: int = LIMIT_BYTES, error: type[KitError] = KitError, hint: str = "") -> bytes:
    """Returns the content of a regular file.

    Args:
        path: a file, not a device or pipe.
        limit_bytes: the largest size that is read.
        error: the class to raise.
        hint: what to do about a file that cannot be read.

    Raises:
        KitError: of class `error`: the file is missing, larger than the limit, or not a regular file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is not a regular file", hint)
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
    except (OSError, ValueError) as cause:  # ValueError: a NUL in the name
        raise error(f"{path} cannot be read: {getattr(cause, 'strerror', None) or cause}", hint) from cause
    if len(content) > limit_bytes:
        raise error(f"{path} is larger than {limit_bytes:,} bytes, the limit", hint)
    return content


def read_json(
    path: Path, model: type[T], limit_bytes: int = LIMIT_BYTES, error: type[KitError] = KitError, hint: str = ""
) -> T:
    """Returns the content of a JSON file as an instance of `model`. See `read_limited` and `parse_json`."""
    return parse_json(read_limited(path, limit_bytes, error, hint), model, str(path), error, hint)


def parse_json(content: bytes | str, model: type[T], name: str, error: type[KitError] = KitError, hint: str = "") -> T:
    """Returns a JSON text as an instance of `model`.

    Args:
        content: UTF-8.
        model: any type that pydantic validates: a dataclass, a TypedDict, a BaseModel, `dict[str, float]`. Values must
            have the type itself (strict mode): no number is read from a string. Unknown keys are ignored.
        name: of the file, for the error.
        error: the class to raise.
        hint: what to do about a damaged file.

    Raises:
        KitError: of class `error`: not JSON, nested too deep, NaN or infinite, or a field is missing or wrong; it names
            the field.
    """
    from pydantic import ValidationError
    from pydantic_core import from_json

    try:
        json.dumps(from_json(content, allow_inf_nan=False), allow_nan=False)  # 1e999 is read as infinite
        record: T = _adapter(model).validate_json(content, strict=True)  # type: ignore[arg-type]
        return record
    except ValidationError as cause:
        first = cause.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"]))
        value = "" if first["type"] == "missing" else f", not {repr(first['input'])[:SHOWN]}"
        message = f"{name} is damaged: {f'field {field}: ' if field else ''}{first['msg']}{value}"
        raise error(message, hint) from cause
    except ValueError as cause:
        raise error(f"{name} is not valid JSON: {cause}", hint) from cause


@cache
def _adapter(model: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(model)
