"""Archives as strangers pack them: whole ones are read, what is made to harm is refused before it is unpacked."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.deploy.submission import archive
from kit.deploy.submission.archive import packed_files, read_files
from kit.errors import SubmissionError

DATA = {"a.tif": b"first" * 300, "b.tif": b""}


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as packed:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
        for info in others:
            packed.addfile(info)
    return path


def read(path: Path) -> dict[str, bytes]:
    return {file.name: file.read() for file in packed_files(path)}


def special(kind: bytes, name: str = "x.tif", target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "write",
    [
        write_zip,
        lambda path, files: write_zip(path, files, zipfile.ZIP_STORED),
        write_tar,
        *(lambda path, files, mode=mode: write_tar(path, files, mode=mode) for mode in ("w", "w:bz2", "w:xz")),
    ],
    ids=["deflated", "stored", "tgz", "tar", "tar.bz2", "tar.xz"],
)
def test_whole_archives_are_read(tmp_path: Path, write: Callable[..., Path]):
    assert read(write(tmp_path / "one", DATA)) == DATA  # known by what it begins with, not by its name
    assert {name: reader() for name, reader in read_files(tmp_path / "one").items()} == DATA


def test_a_folder_is_read_file_by_file(tmp_path: Path):
    for name, data in {**DATA, ".hidden": b"x"}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "c.tif").symlink_to(tmp_path / "a.tif")
    found = {file.name: (file.is_folder, file.is_link) for file in packed_files(tmp_path)}
    assert found == {
        ".hidden": (False, False), "a.tif": (False, False), "b.tif": (False, False), "c.tif": (False, True),
        "deeper": (True, False),
    }  # fmt: skip
    assert {name: reader() for name, reader in read_files(tmp_path).items()} == {**DATA, "c.tif": DATA["a.tif"]}


OUTSIDE = [
    "../x.tif",
    "a/../../x.tif",
    "/etc/x.tif",
    "..",
    "\\x.tif",
    "..\\x.tif",
    "C:x.tif",
    "x\x1b[2J.tif",
    "a\nb.tif",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_names_that_lead_out_of_the_folder(tmp_path: Path, write: Callable[..., Path], name: str):
    with pytest.raises(SubmissionError, match="leads out of its folder") as error:
        read(write(tmp_path / "one", {**DATA, name: b"x"}))
    assert error.value.message.isprintable()


@pytest.mark.parametrize("name", ["a..b.tif", "x..", "...tif", "a/b.tif", "é.tif"])
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_odd_names_that_do_no_harm(tmp_path: Path, write: Callable[..., Path], name: str):
    assert read(write(tmp_path / "one", {name: b"x"})) == {name: b"x"}


@pytest.mark.parametrize(
    ("kind", "message"),
    [(tarfile.SYMTYPE, "a link"), (tarfile.LNKTYPE, "a link"), (tarfile.CHRTYPE, "no file"), (b"6", "no file")],
)
def test_links_and_devices_of_a_tar(tmp_path: Path, kind: bytes, message: str):
    with pytest.raises(SubmissionError, match=rf"holds 'x\.tif', {message}"):
        read(write_tar(tmp_path / "one.tgz", DATA, special(kind)))


def test_links_of_a_zip(tmp_path: Path):
    info = zipfile.ZipInfo("x.tif")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as packed:
        packed.writestr(info, "/etc/passwd")
    with pytest.raises(SubmissionError, match=r"holds 'x\.tif', a link"):
        read(tmp_path / "one.zip")


def claiming(path: Path, size: int) -> Path:
    """A tgz of some bytes whose only member claims to be as large."""
    info = tarfile.TarInfo("x.tif")
    info.size = size
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT)))
    return path


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SubmissionError, match=r"x\.tif of 1024\.0 GiB: more than a mask needs"):
        list(packed_files(claiming(tmp_path / "one.tgz", 2**40)))
    monkeypatch.setattr(archive, "LARGEST_BYTES", 1000)
    for write in (write_zip, write_tar):
        with pytest.raises(SubmissionError, match=r"a\.tif of 0\.0 GiB: more than a mask needs"):
            list(packed_files(write(tmp_path / "one", DATA)))
    for name, data in DATA.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(SubmissionError, match=r"a\.tif has 0\.0 GiB: more than a mask needs"):
        read(tmp_path)


def test_a_header_bomb_is_not_read(tmp_path: Path):
    """tarfile reads a long name whole: here one of a terabyte is announced."""
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        info = special(kind, "././@LongLink")
        info.size = 2**40
        (tmp_path / "one.tgz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))
        with pytest.raises(SubmissionError, match=r"a header of 1024\.0 GiB"):
            list(packed_files(tmp_path / "one.tgz"))


def test_a_zip_that_claims_to_be_small(tmp_path: Path):
    """What is read is bounded by what is claimed, and then fails its checksum."""
    path = write_zip(tmp_path / "one.zip", {"x.tif": bytes(10**6)})
    data = path.read_bytes()
    assert data.count(struct.pack("<L", 10**6)) == 2
    path.write_bytes(data.replace(struct.pack("<L", 10**6), struct.pack("<L", 10)))
    with pytest.raises(SubmissionError, match="Bad CRC"):
        read(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_without_a_bound_are_refused(tmp_path: Path, method: int):
    with pytest.raises(SubmissionError, match="packed in a rare way"):
        read(write_zip(tmp_path / "one.zip", DATA, method))


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_too_many_files_and_too_much_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path]
):
    path = write(tmp_path / "one", {f"{number}.tif": b"12345" for number in range(9)})
    monkeypatch.setattr(archive, "MOST", 8)
    with pytest.raises(SubmissionError, match="holds 9 files"):
        read(path)
    monkeypatch.setattr(archive, "MOST", 9)
    monkeypatch.setattr(archive, "HELD_BYTES", 44)
    assert len(read(path)) == 9
    with pytest.raises(SubmissionError, match="unpacks to more than") as error:
        read_files(path)
    assert error.value.hint == "unpack it and give the folder"
    monkeypatch.setattr(archive, "LARGEST_TOTAL_BYTES", 44)
    with pytest.raises(SubmissionError, match="holds 9 files"):
        read(path)


def test_an_encrypted_zip(tmp_path: Path):
    path = write_zip(tmp_path / "one.zip", DATA)
    data = bytearray(path.read_bytes())
    for start in (b"PK\3\4", b"PK\1\2"):
        at = data.index(start) + (6 if start == b"PK\3\4" else 8)
        data[at] |= 1
    path.write_bytes(data)
    with pytest.raises(SubmissionError, match="encrypted"):
        read(path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, bytes])
def test_every_truncation_of_a_tar_is_found(tmp_path: Path, pack: Callable[[bytes], bytes]):
    """Also one between two members, which tarfile takes for the end."""
    whole = write_tar(tmp_path / "whole", DATA, mode="w").read_bytes()
    packed = pack(whole)
    ends = [512 * block for block in range(6)] if pack is bytes else range(0, len(packed), max(1, len(packed) // 40))
    for end in ends:
        (tmp_path / "cut").write_bytes(packed[:end])
        with pytest.raises(SubmissionError, match=r"not a readable \.tgz or \.zip"):
            read(tmp_path / "cut")
    (tmp_path / "cut").write_bytes(packed)
    assert read(tmp_path / "cut") == DATA


def test_damage_between_two_members_is_found(tmp_path: Path):
    """tarfile ends where a header is not one, without a word."""
    data = bytearray(write_tar(tmp_path / "one.tar", DATA, mode="w").read_bytes())
    second = data.index(b"b.tif")
    data[second : second + 5] = b"spoil"
    (tmp_path / "one.tar").write_bytes(data)
    with pytest.raises(SubmissionError, match=f"damaged behind byte {second}"):
        read(tmp_path / "one.tar")


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
def test_a_spoiled_byte_is_found(tmp_path: Path, at: float):
    noise = bytes((index * 7919) % 251 for index in range(5000))
    for write in (write_zip, write_tar):
        path = write(tmp_path / "one", {"a.tif": noise})
        data = bytearray(path.read_bytes())
        data[int(len(data) * at)] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(SubmissionError, match=r"not a readable|leads out"):
            read(path)


@pytest.mark.parametrize("data", [b"", b"no", b"PK\3\4 no", b"\x1f\x8b no", b"ustar" * 300])
def test_what_is_no_archive(tmp_path: Path, data: bytes):
    (tmp_path / "one.tgz").write_bytes(data)
    with pytest.raises(SubmissionError, match=r"not a readable \.tgz or \.zip"):
        read(tmp_path / "one.tgz")


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_an_archive_of_nothing(tmp_path: Path, write: Callable[..., Path]):
    assert read(write(tmp_path / "one", {})) == {}
