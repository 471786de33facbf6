"""Masks kept together: a folder, a .tgz or a .zip; read as from a stranger, with bounds on what is unpacked."""

import bz2
import gzip
import io
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from kit.errors import SubmissionError
from kit.system.files import replacing

Entry: TypeAlias = tuple[str, Callable[[], bytes]]

LARGEST_BYTES = 256 * 1024**2  # of one file: a mask of 16,384 x 16,384 px, not compressed
LARGEST_TOTAL_BYTES = 64 * 1024**3  # of all: four times the challenge's 11,481 masks, not compressed
HELD_BYTES = 4 * 1024**3  # of what `entries` holds in memory
MOST = 100_000  # files
UNPACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
ZIPPED = (b"PK\3\4", b"PK\5\6")  # how a zip begins; an empty one
BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError,
    RuntimeError,
)  # fmt: skip
OUTSIDE = re.compile(r"(^|[/\\])\.\.([/\\]|$)|^[/\\]|^[A-Za-z]:")  # a path that leads out of the folder it is put into
HINT = "pack the masks alone, without folders: kit submit writes such an archive"


@dataclass(frozen=True)
class Member:
    """What lies in a folder or an archive.

    Args:
        name: as it stands there, with folders.
        read: returns its bytes; of an archive, until the next member is taken.
        folder: whether it is one.
        link: whether it is one; of folders on the disk alone, since no archive may hold any.
    """

    name: str
    read: Callable[[], bytes]
    folder: bool = False
    link: bool = False


def entries(path: Path) -> list[Entry]:
    """Returns name and reader of each file: of a folder (hidden files aside), or of an archive, paths as they stand.

    An archive is held in memory, compressed masks of a few KiB each; a folder is read file by file.

    Raises:
        SubmissionError: see `members`; or an archive holds more than fits into memory.
    """
    if path.is_dir():
        return [
            (member.name, member.read)
            for member in members(path)
            if not member.folder and not member.name.startswith(".")
        ]
    found: list[Entry] = []
    held = 0
    for member in members(path):
        data = member.read()
        if (held := held + len(data)) > HELD_BYTES:
            raise SubmissionError(f"{path} unpacks to more than {_gib(HELD_BYTES)}", "unpack it, and give the folder")
        found.append((member.name, partial(bytes, data)))
    return found


def members(path: Path) -> Iterator[Member]:
    """Yields what lies in a folder, by name, or in an archive, in its order, one at a time in memory.

    Raises:
        SubmissionError: it is missing, not an archive, or damaged; or it is made to harm: names that lead out of the
            folder or cannot be shown, links, devices, more or larger files than masks need.
    """
    if path.is_dir():
        yield from _in_folder(path)
        return
    if not path.is_file():
        raise SubmissionError(f"no folder or archive {path}", "give a folder of masks, a .tgz or a .zip")
    with _reading(path):
        with path.open("rb") as file:
            start = file.read(6)
        found = _in_zip(path) if start.startswith(ZIPPED) else _in_tar(path, start)
        total = 0
        for number, (size, member) in enumerate(found):
            if OUTSIDE.search(member.name) or not member.name.isprintable():
                raise SubmissionError(f"{path} holds {member.name!r}: a name that leads out of its folder", HINT)
            total += size
            if size > LARGEST_BYTES:
                raise SubmissionError(f"{path} holds {member.name} of {_gib(size)}: more than a mask needs", HINT)
            if total > LARGEST_TOTAL_BYTES or number >= MOST:
                raise SubmissionError(f"{path} holds {number + 1} files, {_gib(total)}: more than masks need", HINT)
            yield member


def _in_folder(folder: Path) -> Iterator[Member]:
    """Yields files, folders and links of a folder on the disk."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() or path.is_file():
            yield Member(path.name, partial(_bytes_of, path), path.is_dir(), path.is_symlink())


def _bytes_of(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > LARGEST_BYTES:
            raise SubmissionError(f"{path} has {_gib(size)}: more than a mask needs", "is it a mask?")
        return path.read_bytes()
    except OSError as cause:
        raise SubmissionError(f"cannot read {path}: {cause.strerror}", "write it again") from cause


def _in_zip(path: Path) -> Iterator[tuple[int, Member]]:
    """Yields the size, once unpacked, and each member of a zip."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise SubmissionError(f"{path} holds {info.filename!r}, a link", HINT)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
                raise SubmissionError(f"{path} holds {info.filename!r}, packed in a rare way", "zip it with deflate")
            yield info.file_size, Member(info.filename, partial(_unzipped, archive, info, path), info.is_dir())


def _unzipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    with _reading(path):
        return archive.read(info)


class _Bounded(io.RawIOBase):
    """A stream that gives no more at once than one mask may have: tarfile would read long names of any size."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_BYTES:
            raise tarfile.ReadError(f"a header of {_gib(size)}")
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()


def _in_tar(path: Path, start: bytes) -> Iterator[tuple[int, Member]]:
    """Yields the size and each member of a tar, packed or not."""
    opened = next((opened for magic, opened in UNPACKED.items() if start.startswith(magic)), open)
    with opened(path, "rb") as stream, tarfile.open(fileobj=_Bounded(stream), mode="r:") as archive:
        for info in archive:
            if not (info.isfile() or info.isdir()):
                kind = "a link" if info.issym() or info.islnk() else "no file"
                raise SubmissionError(f"{path} holds {info.name!r}, {kind}", HINT)
            yield info.size, Member(info.name, partial(_untarred, archive, info, path), info.isdir())
        stream.seek(archive.offset)
        ended = False
        while rest := stream.read(tarfile.RECORDSIZE):  # zeros end an archive; behind them a checksum is compared
            if rest.strip(b"\0"):
                raise tarfile.ReadError(f"damaged behind byte {archive.offset}")
            ended = True
        if not ended:
            raise tarfile.ReadError("it ends early")


def _untarred(archive: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> bytes:
    """Returns a member's bytes; none for a folder."""
    with _reading(path):
        file = archive.extractfile(info)
        return file.read() if file else b""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what the unpackers raise into a SubmissionError."""
    try:
        yield
    except BROKEN as cause:
        raise SubmissionError(f"{path} is not a readable .tgz or .zip: {cause}", "write it again") from cause


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"


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
