"""The records of a TorchScript archive, read without torch, from zips that have one meaning only.

torch reads a zip with miniz, Python with zipfile. A crafted file shows each of them another content: by two
directories, by names that differ in case alone (miniz finds either), by names that one of them changes. Such files are
refused, and so are damaged ones: torch compares no checksum of a record, and would predict with flipped bits.
"""

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kit.errors import WeightsError

HINT = "kit export writes no such file: use it only if you trust its author"
DAMAGED = "export or fetch it again"
# what torch.jit.save writes. Not model.json and bytecode.pkl: code of other loaders, which this module does not read
KNOWN = re.compile(
    r"version|byteorder|\.format_version|\.storage_alignment|\.data/(version|serialization_id)|extra/[\w.-]+"
    r"|(data|constants)(\.pkl|/\d+)|code/(\w+/)*\w+\.py(\.debug_pkl)?",
    re.ASCII,
)
ROOT = re.compile(r"[\w. +-]*[\w+-]", re.ASCII)  # named after the file
END, END_64, LOCATOR_64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"
END_BYTES, END_64_BYTES, LOCATOR_64_BYTES = 22, 56, 20
ZIP_64_EXTRA = 1
HARMLESS_FLAGS = 0b1000_0000_1110  # deflate's level, sizes repeated behind the data, a name in UTF-8
BLOCK_BYTES = 2**20
LARGEST_BYTES = 512 * 2**20  # of code and pickles, and of compressed records; five networks in eight views have 10 MB
LARGEST_EXTRA_BYTES = 16 * 2**20  # of the card, of the reference; five networks have 1.3 MB
DAMAGES = (zipfile.BadZipFile, zlib.error, struct.error, OSError, RuntimeError, ValueError, EOFError)


def read_records(path: Path, suffixes: tuple[str, ...]) -> dict[str, bytes]:
    """Returns the records whose names end in one of `suffixes`, by name without the archive's folder.

    The checksum of every record is compared.

    Raises:
        WeightsError: the file is no zip or damaged, could be read in two ways, holds what torch.jit.save does not
            write, or more than the limits allow.
    """
    with _opened(path) as archive:
        entries = archive.infolist()
        _check_end(path, len(entries))
        root = _check_entries(path, entries)
        chosen = [entry for entry in entries if entry.filename.endswith(suffixes)]
        _check_size(path, "code", chosen, LARGEST_BYTES)
        packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        _check_size(path, "packed records", packed, LARGEST_BYTES)
        for entry in entries:
            with archive.open(entry) as record:
                while record.read(BLOCK_BYTES):  # zipfile compares the checksum at the end
                    pass
        return {entry.filename.removeprefix(root): read_entry(archive, entry) for entry in chosen}


def read_extra(path: Path, name: str) -> str | None:
    """Returns an extra text file of a TorchScript archive; None when it has none.

    Raises:
        WeightsError: the file is no zip or damaged, or the text is too large.
    """
    with _opened(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.split("/")[1:] == ["extra", name]]
        _check_size(path, name, entries[:1], LARGEST_EXTRA_BYTES)
        return read_entry(archive, entries[0]).decode() if entries else None


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Returns the content of an entry: no more than the size that it claims, and with the checksum that it claims.

    Raises:
        zipfile.BadZipFile: the checksum is another one.
    """
    with archive.open(entry) as record:
        return record.read(entry.file_size)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip, and turns what goes wrong with it into a WeightsError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DAMAGES as cause:
        raise WeightsError(f"{path} is not a weights file, or is damaged: {cause}", DAMAGED) from cause


def _check_size(path: Path, what: str, entries: list[zipfile.ZipInfo], limit: int) -> None:
    """Raises WeightsError when entries claim more bytes than the limit; they are read only up to what they claim."""
    if (size := sum(entry.file_size for entry in entries)) > limit:
        raise WeightsError(f"{path} holds {size / 1e6:.0f} MB of {what}, expected at most {limit / 1e6:.0f}", HINT)


def _check_end(path: Path, entries: int) -> None:
    """Raises WeightsError unless the file has one directory, at its end and where the end record places it."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - END_BYTES - LOCATOR_64_BYTES - END_64_BYTES))
        tail = file.read()
        file.seek(0)
        start = file.read(4)
    end, locator = tail[-END_BYTES:], tail[-END_BYTES - LOCATOR_64_BYTES : -END_BYTES]
    signature, *disks, here, total, length, offset, comment = struct.unpack("<4s4H2LH", end)
    directory_end = size - END_BYTES
    sound = signature == END and disks == [0, 0] and comment == 0 and start == b"PK\3\4"
    if sound and locator.startswith(LOCATOR_64):
        directory_end -= LOCATOR_64_BYTES + END_64_BYTES
        _, disk, place, disks_64 = struct.unpack("<4sLQL", locator)
        record = struct.unpack("<4sQ2H2L4Q", tail[:END_64_BYTES])
        sound = (record[0], record[1], disk, place, disks_64) == (END_64, END_64_BYTES - 12, 0, directory_end, 1)
        here, total, length, offset = record[6:]
        sound = sound and record[4:6] == (0, 0)
    if not (sound and here == total == entries and offset + length == directory_end):
        raise WeightsError(f"{path} is a zip with something before, behind or between its parts", HINT)


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> str:
    """Returns the folder that all entries lie in, with its slash; WeightsError for what torch.jit.save never writes."""
    names = [entry.orig_filename for entry in entries]
    root = names[0].split("/")[0] if names else ""
    for name in names:
        folder, _, record = name.partition("/")
        if folder != root or not ROOT.fullmatch(folder) or not KNOWN.fullmatch(record):
            raise WeightsError(f"{path} holds {name!r}: weights have no such record in {root!r}", HINT)
    if len({name.lower() for name in names}) < len(names):
        twice = next(name for i, name in enumerate(names) if name.lower() in map(str.lower, names[:i]))
        raise WeightsError(f"{path} holds {twice!r} twice", HINT)
    for entry in entries:
        stored = entry.compress_type == zipfile.ZIP_STORED
        if (
            entry.filename != entry.orig_filename
            or entry.flag_bits & ~HARMLESS_FLAGS
            or not (stored or entry.compress_type == zipfile.ZIP_DEFLATED)
            or (stored and entry.compress_size != entry.file_size)
            or not _plain_extra(entry.extra)
        ):
            raise WeightsError(f"{path} holds {entry.orig_filename!r} in an unusual form", HINT)
    return f"{root}/"


def _plain_extra(extra: bytes) -> bool:
    """Returns whether a directory entry's extra field is empty, or holds 64-bit sizes and nothing else."""
    return not extra or (len(extra) >= 4 and struct.unpack("<2H", extra[:4]) == (ZIP_64_EXTRA, len(extra) - 4))
