"""The records of a TorchScript archive, read without torch, where its zip can be read in one way only.

torch reads a zip with miniz, Python with zipfile. A file made for it shows each another content: by two directories,
by names that differ in case alone (miniz finds either), by names that one of them changes. Such files are refused.
"""

import re
import struct
import zipfile
import zlib
from pathlib import Path

from kit.errors import WeightsError

HINT = "kit export writes no such file: take it from elsewhere only if you trust who made it"
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
HARMLESS_FLAGS = 0b1000_0000_1110  # deflate's level, sizes told again behind the data, a name in UTF-8
LARGEST_BYTES = 512 * 1024**2  # of code and pickles; five networks under eight views have some 10 MB


def read_records(path: Path, suffixes: tuple[str, ...]) -> dict[str, bytes]:
    """Returns the records whose names end in one of `suffixes`, by name without the archive's folder.

    Raises:
        WeightsError: the file is not a zip, could be read in two ways, or holds what torch.jit.save does not write.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_end(path, len(archive.infolist()))
            root = _check_entries(path, archive.infolist())
            wanted = [entry for entry in archive.infolist() if entry.filename.endswith(suffixes)]
            if (size := sum(entry.file_size for entry in wanted)) > LARGEST_BYTES:
                raise WeightsError(f"{path} holds {size / 1e6:.0f} MB of code", HINT)
            return {entry.filename.removeprefix(root): archive.read(entry) for entry in wanted}
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, RuntimeError, ValueError, EOFError) as cause:
        raise WeightsError(f"{path} is not a readable archive: {cause}", "export or fetch it again") from cause


def _check_end(path: Path, entries: int) -> None:
    """Raises WeightsError unless the directory stands where its end says, once, and ends the file."""
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
    """Whether a directory entry's extra field is empty, or tells 64-bit sizes and nothing else."""
    return not extra or (len(extra) >= 4 and struct.unpack("<2H", extra[:4]) == (ZIP_64_EXTRA, len(extra) - 4))
