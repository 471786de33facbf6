"""Masks kept together: a folder, a .tgz or a .zip."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeAlias

from kit.errors import SubmissionError
from kit.paths import replacing

Entry: TypeAlias = tuple[str, Callable[[], bytes]]


def entries(path: Path) -> list[Entry]:
    """Returns name and reader of each file: of a folder (hidden files aside), or of an archive, paths as they stand.

    An archive is held in memory, compressed masks of a few KiB each; a folder is read file by file.

    Raises:
        SubmissionError: it is missing, or not an archive.
    """
    if path.is_dir():
        return [(p.name, p.read_bytes) for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith(".")]
    if not path.is_file():
        raise SubmissionError(f"no folder or archive {path}", "give a folder of masks, a .tgz or a .zip")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zipped:
                return [(info.filename, partial(bytes, zipped.read(info))) for info in zipped.infolist()]
        with tarfile.open(path) as tarred:
            return [(info.name, partial(bytes, _content(tarred, info))) for info in tarred]
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as cause:
        raise SubmissionError(f"{path} is not a readable .tgz or .zip: {cause}", "write it again") from cause


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    """Returns a member's bytes; none for a folder or a link."""
    file = archive.extractfile(info) if info.isfile() else None
    return file.read() if file else b""


def write_tgz(files: Iterable[Path], path: Path) -> None:
    """Writes files into a flat archive whose bytes depend on their names and contents alone.

    Args:
        files: in any order; the archive is sorted by name.
        path: ends in .tgz; appears when it is whole.
    """
    with (
        replacing(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for file in sorted(files, key=lambda file: file.name):
            data = file.read_bytes()
            info = tarfile.TarInfo(file.name)  # owner, group and time are 0
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
