"""Archives that are damaged or too large: found before torch reads them, in little memory."""

import subprocess
import sys
import zipfile
from pathlib import Path
from random import Random

import pytest
from archives import code_of, doctored, entries_of, write_archive
from deploy_fakes import export_tiny

from kit.deploy.proof.verify import verify
from kit.deploy.trust.torchscript_text import names_in
from kit.deploy.trust.zip_records import LARGEST_EXTRA_BYTES, read_extra, read_records
from kit.deploy.weights.load import load_weights, read_card
from kit.errors import WeightsError
from kit.pipeline.export import Exported


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One member, one view."""
    return export_tiny(tmp_path_factory.mktemp("small"), "small", "none", (1,))


@pytest.mark.parametrize("seed", range(20))
def test_damaged_bytes_are_found_without_a_card_beside(small_weights: Exported, tmp_path: Path, seed: int):
    random, data = Random(seed), bytearray(small_weights.path.read_bytes())
    for _ in range(4):
        data[random.randrange(len(data))] ^= random.randrange(1, 256)
    path = tmp_path / "alone.pt"
    path.write_bytes(data)
    try:
        same = read_records(path, ("",)) == read_records(small_weights.path, ("",))
    except WeightsError:
        same = False
    if same:  # local headers repeat the directory; nobody reads what they repeat
        return
    for read in (load_weights, verify):
        with pytest.raises(WeightsError, match=r"alone\.pt"):
            read(path)


def test_a_flipped_bit_of_any_record_is_found(small_weights: Exported, tmp_path: Path):
    with zipfile.ZipFile(small_weights.path) as archive:
        entries = [entry for entry in archive.infolist() if entry.file_size]
    for entry in entries:
        data = bytearray(small_weights.path.read_bytes())
        data[entry.header_offset + 30 + len(entry.filename) + entry.file_size // 2] ^= 1
        (tmp_path / "w.pt").write_bytes(data)
        with pytest.raises(WeightsError, match=r"w\.pt is not a weights file, or is damaged: Bad CRC-32"):
            load_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("value", [b"\0\0\xc0\x7f", b"\0\0\x80\x7f"], ids=["nan", "infinity"])
def test_weights_that_are_no_numbers_are_refused(small_weights: Exported, tmp_path: Path, value: bytes):
    path = doctored(small_weights.path, tmp_path / "w.pt", "constants/1", lambda data: value + data[4:])
    with pytest.raises(WeightsError, match=r"w\.pt holds weights that are NaN or infinite"):
        load_weights(path)


@pytest.mark.parametrize("name", ["card.json", "parity.json"])
def test_a_text_that_unpacks_to_gigabytes_is_refused(small_weights: Exported, tmp_path: Path, name: str):
    entries = entries_of(small_weights.path)
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries:
            if not entry.endswith(f"extra/{name}"):
                archive.writestr(zipfile.ZipInfo(entry), data)
        folder = entries[0][0].split("/")[0]
        with archive.open(zipfile.ZipInfo(f"{folder}/extra/{name}"), "w", force_zip64=False) as record:
            for _ in range(32):
                record.write(b" " * 2**20)
    with pytest.raises(WeightsError, match=rf"w\.pt holds 34 MB of {name}, expected at most 17"):
        read_extra(path, name)
    if name == "card.json":
        with pytest.raises(WeightsError, match="MB of card"):
            read_card(path)


def lying(path: Path, claimed: int) -> None:
    """Writes a smaller size of the last entry into the directory than it unpacks to."""
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\1\2") + 24
    data[place : place + 4] = claimed.to_bytes(4, "little")
    path.write_bytes(data)


MEMORY = """
import resource, sys
from pathlib import Path
from kit.deploy.trust.zip_records import read_extra
from kit.errors import WeightsError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_extra(Path(sys.argv[1]), "card.json")
except WeightsError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures KiB")
def test_a_size_that_lies_takes_no_memory(tmp_path: Path):
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/extra/card.json", b" " * 400 * 2**20)
    lying(path, LARGEST_EXTRA_BYTES)
    run = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 100 * 1024, run.stdout


def test_many_packed_bytes_are_refused(small_weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_archive(tmp_path / "w.pt", entries_of(small_weights.path), zipfile.ZIP_DEFLATED)
    monkeypatch.setattr("kit.deploy.trust.zip_records.LARGEST_BYTES", 20_000)
    with pytest.raises(WeightsError, match=r"MB of (code|packed records)"):
        read_records(path, (".py",))


def test_names_in_defaults_of_arguments_are_read():
    """torch evaluates them when it loads the file."""
    code = b"class A(Module):\n  def forward(self,\n    x: Tensor=print(1)) -> Tensor:\n    return x\n"
    used, classes = names_in({"code/__torch__/m.py": code})
    assert classes == {"__torch__.m.A"}
    assert used == {"print": "code/__torch__/m.py:3"}


def test_a_class_of_something_else_is_a_use():
    used, _ = names_in({"code/__torch__/m.py": b"class A(NamedTuple):\n  x : Tensor\n"})
    assert used == {"class of NamedTuple": "code/__torch__/m.py:1"}


def test_code_of_a_whole_export_uses_operators_alone(small_weights: Exported):
    entries = dict(entries_of(small_weights.path))
    name = code_of(list(entries.items()))
    used, _ = names_in({name.partition("/")[2]: entries[name]})
    assert {each.partition(".")[0] for each in used} <= {"torch", "ops", "annotate", "int", "float", "bool", "range"}
