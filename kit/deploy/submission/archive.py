"""Folders, .tgz and .zip of masks. Archives are untrusted: nothing is unpacked to disk, and sizes are limited."""

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
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from kit.errors import SubmissionError
from kit.outputs import visible_files
from kit.system.files import replacing

LARGEST_BYTES = 256 * 1024**2  # of a file: a mask of 16,384 x 16,384 px, uncompressed
LARGEST_TOTAL_BYTES = 64 * 1024**3  # of all files: four times the challenge's 11,481 masks, uncompressed
HELD_BYTES = 4 * 1024**3  # that `read_files` keeps in memory
MOST = 100_000  # files
UNPACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
ZIPPED = (b"PK\3\4", b"PK\5\6")  # how a zip begins, also an empty one
BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError,
    RuntimeError,
)  # fmt: skip
OUTSIDE = re.compile(r"(^|[/\\])\.\.([/\\]|$)|^[/\\]|^[A-Za-z]:")  # a path that leads out of its folder
HINT = "pack the masks alone, without folders: kit submit writes such an archive"


@dataclass(frozen=True)
class PackedFile:
    """A file or folder in a folder or an archive."""

    name: str  # its path there
    read: Callable[[], bytes]  # returns its bytes; in an archive only until the next file is taken
    is_folder: bool = False  # whether it is a folder
    is_link: bool = False  # whether it is a link; only in a folder on disk, archives with links are refused


def read_files(path: Path) -> dict[str, Callable[[], bytes]]:
    """Returns a reader of each file, by its path in a folder or an archive; hidden files are left out.

    The files of an archive are held in memory; those of a folder and its subfolders are read on demand.

    Raises:
        SubmissionError: see `packed_files`; or an archive is too large for memory.
    """
    if path.is_dir():
        return {str(file.relative_to(path)): partial(_bytes_of, file) for file in visible_files(path) if file.is_file()}
    files: dict[str, Callable[[], bytes]] = {}
    total = 0
    for file in packed_files(path):
        if any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(file.name).parts):
            continue
        data = file.read()
        if (total := total + len(data)) > HELD_BYTES:
            raise SubmissionError(f"{path} unpacks to more than {_gib(HELD_BYTES)}", "unpack it and give the folder")
        if file.name in files:
            raise SubmissionError(f"{path} holds {file.name} twice", HINT)
        files[file.name] = partial(bytes, data)
    return files


def packed_files(path: Path) -> Iterator[PackedFile]:
    """Yields the files and folders of a folder, by name, or of an archive, in its order, one at a time in memory.

    Raises:
        SubmissionError: it is missing, no archive, or damaged; or it is dangerous: names that lead out of the folder or
            cannot be printed, links, devices, more or larger files than masks need.
    """
    if path.is_dir():
        for child in sorted(path.iterdir()):
            if child.is_dir() or child.is_file():
                yield PackedFile(child.name, partial(_bytes_of, child), child.is_dir(), child.is_symlink())
        return
    if not path.is_file():
        raise SubmissionError(f"no folder or archive {path}", "give a folder of masks, a .tgz or a .zip, on a disk")
    with _reading(path):
        with path.open("rb") as stream:
            start = stream.read(6)
        total = 0
        for number, (size, file) in enumerate(_in_zip(path) if start.startswith(ZIPPED) else _in_tar(path, start)):
            if OUTSIDE.search(file.name) or not file.name.isprintable():
                raise SubmissionError(f"{path} holds {file.name!r}: a name that leads out of its folder", HINT)
            total += size
            if size > LARGEST_BYTES:
                raise SubmissionError(f"{path} holds {file.name} of {_gib(size)}: more than a mask needs", HINT)
            if total > LARGEST_TOTAL_BYTES or number >= MOST:
                raise SubmissionError(f"{path} holds {number + 1} files, {_gib(total)}: more than masks need", HINT)
            yield file


def _bytes_of(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > LARGEST_BYTES:
            raise SubmissionError(f"{path} has {_gib(size)}: more than a mask needs", "is it a mask?")
        return path.read_bytes()
    except OSError as cause:
        raise SubmissionError(f"cannot read {path}: {cause.strerror}", "write it again") from cause


def _in_zip(path: Path) -> Iterator[tuple[int, PackedFile]]:
    """Yields the unpacked size and each file of a zip."""

    def read(info: zipfile.ZipInfo) -> bytes:
        with _reading(path):
            return archive.read(info)

    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise SubmissionError(f"{path} holds {info.filename!r}, a link", HINT)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
                raise SubmissionError(f"{path} holds {info.filename!r}, packed in a rare way", "zip it with deflate")
            name = info.filename.replace("\\", "/")  # Windows' older packers
            yield info.file_size, PackedFile(name, partial(read, info), name.endswith("/"))


class _Bounded(io.RawIOBase):
    """A stream of which no more than a mask is read at once: tarfile would read a long name of any size."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.seek, self.tell = stream, stream.seek, stream.tell  # type: ignore[method-assign]

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_BYTES:
            raise tarfile.ReadError(f"a header of {_gib(size)}")
        return self.stream.read(size)


def _in_tar(path: Path, start: bytes) -> Iterator[tuple[int, PackedFile]]:
    """Yields the size and each file of a tar, compressed or not."""

    def read(info: tarfile.TarInfo) -> bytes:
        with _reading(path):
            file = archive.extractfile(info)  # None for a folder
            return file.read() if file else b""

    unpack = next((unpack for magic, unpack in UNPACKED.items() if start.startswith(magic)), open)
    with unpack(path, "rb") as stream, tarfile.open(fileobj=_Bounded(stream), mode="r:") as archive:
        for info in archive:
            if not (info.isfile() or info.isdir()):
                kind = "a link" if info.issym() or info.islnk() else "no file"
                raise SubmissionError(f"{path} holds {info.name!r}, {kind}", HINT)
            yield info.size, PackedFile(info.name, partial(read, info), info.isdir())
        stream.seek(archive.offset)
        rest = b""
        while block := stream.read(tarfile.RECORDSIZE):  # an archive ends with zeros; then its checksum is compared
            if (rest := block).strip(b"\0"):
                raise tarfile.ReadError(f"damaged behind byte {archive.offset}")
        if not rest:
            raise tarfile.ReadError("it ends early")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns an unpacker's error into a SubmissionError."""
    try:
        yield
    except BROKEN as cause:
        raise SubmissionError(f"{path} is not a readable .tgz or .zip: {cause}", "pack the masks again") from cause


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"


def write_tgz(files: Iterable[Path], path: Path) -> None:
    """Writes a flat archive whose bytes depend only on the files' names and contents.

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
