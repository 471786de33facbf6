"""Weights are read before torch opens them: what exports use passes, all else is refused, and torch sees none of it."""

import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import torch
from archives import code_of, doctored, entries_of, with_line, write_archive
from deploy_fakes import TinyNet, export_tiny, left_in, record
from torch import Tensor, nn

from kit.deploy.trust import zip_records
from kit.deploy.trust.allowlist import ALLOWED, check_operators, operators
from kit.deploy.weights import torchscript
from kit.deploy.weights.load import load_weights
from kit.errors import WeightsError
from kit.pipeline.export import Exported, ExportRequest, export_ensemble

USES = {  # a line of code, and what it is refused for
    'y = torch.from_file("/etc/hostname", False, 4)': "torch.from_file",
    'torch.save(x, "stolen.pt")': "torch.save",
    'y = torch.autograd.from_file("/etc/hostname", False, 4)': "torch.autograd.from_file",
    'y = ops.aten.from_file("/etc/hostname", False, 4)': "ops.aten.from_file",
    'y = ops.image.read_file("/etc/hostname")': "ops.image.read_file",
    'y = [torch.add(x, torch.from_file("/etc/hostname"))]': "torch.from_file",
    'y = annotate(Tensor, torch.from_file("/etc/hostname"))': "torch.from_file",
    "y = torch.from_file": "torch.from_file",
    "y = ops.prim.rpc_sync(x)": "ops.prim.rpc_sync",
    "y = ops.c10d.broadcast_(x)": "ops.c10d.broadcast_",
    "y = ops.quantized.linear(x)": "ops.quantized.linear",
    "y = torch": "torch",
    "y = ops": "ops",
    "y = ops.image": "ops.image",
    "y = CONSTANTS": "CONSTANTS",
    "y = CONSTANTS.c0.set_": "CONSTANTS.c0.set_",
    "y = torch.classes": "torch.classes",
    'y = __torch__.torch.classes.dist_rpc.WorkerInfo("a", 1)': "__torch__.torch.classes.dist_rpc.WorkerInfo",
    "y = annotate(__torch__.torch.classes.a.B, x)": "__torch__.torch.classes.a.B",
    "y : __torch__.torch.classes.a.B = x": "__torch__.torch.classes.a.B",
    "y : Optional[__torch__.torch.classes.a.B] = None": "__torch__.torch.classes.a.B",
    "y : List[Any] = x": "Any",
    "y = x.set_(x)": "x.set_",
    "y = x.shape": "x.shape",
    'y = getattr(x, "set_")': "getattr",
    "y = self.weight": "self.weight",
    "self.weight = x": "self.weight alone",
    "torch = x": "torch",
    "int = x": "int = ...",
    "print(x)": "print",
    "y = fork(x)": "fork",
    "y = unknown": "unknown",
    "y = x(x)": "x",
    "y = [x][0](x)": "](",
    "y = torch.as_strided(x, [9], [9])": "torch.as_strided",
    "y = torch.empty([9])": "torch.empty",
    "y = torch.rand([9])": "torch.rand",
    "torch.manual_seed(1)": "torch.manual_seed",
}
NEVER_PRINTED = [
    'y = (torch).from_file("/etc/hostname", False, 4)',
    'y = torch .from_file("/etc/hostname", False, 4)',
    'y = torch.\n      from_file("/etc/hostname", False, 4)',
    "y = torch.add(x, 1).resize_([9])",
    "y = x  # a comment",
    "y = 'a'",
    'y = """a"""',
    'y = r"a"',
    'y = b"a"',
    'y = "a""b"',
    "y = x; z = x",
    "y =\tx",
    "y = x\r",
    "y = x\0",
    "y = x\f",
    "y = \\\n    x",
    "y = `x`",
    "y = x @ x",
    "y = \u00b5",
    "import os",
    "y = x + x",
    "y = x if x else x",
    "y = lambda: x",
    "y = lambda x: x",
    "y = [z for z in [x]]",
    "y = (z := x)",
    "y = x and x",
    "y = ...",
    "y = 1j",
    "y = torch.add(*[x])",
    "y = torch.add(**{})",
    "del x",
    "with x:\n      pass",
    "try:\n      pass\n    finally:\n      pass",
    "def f() -> Tensor:\n      return x",
    "assert x",
    "y = (x",
    "y = " + "(" * 500 + "x" + ")" * 500,
    "y = " + "-" * 100_000 + "1",
    "y = " + "-" * 2_000 + "1",
]


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One member, one view: little code."""
    return export_tiny(tmp_path_factory.mktemp("small"), "small", "none", (1,))


@pytest.fixture
def torch_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when a file reaches torch."""

    def reached(*_: object) -> None:
        pytest.fail("torch.jit.load was reached")

    monkeypatch.setattr(torchscript, "load", reached)
    monkeypatch.setattr(torch.jit, "load", reached)


def refused(path: Path) -> WeightsError:
    """Returns why a file is refused, by the check and before it is loaded."""
    with pytest.raises(WeightsError) as checked:
        check_operators(path)
    assert str(path) in checked.value.message
    assert checked.value.hint
    with pytest.raises(WeightsError) as loading:
        load_weights(path)
    assert loading.value.message == checked.value.message
    return checked.value


def test_an_export_passes_and_all_of_its_operators_are_listed(small_weights: Exported):
    check_operators(small_weights.path)
    found = operators(small_weights.path)
    code = code_of(entries_of(small_weights.path)).partition("/")[2]
    assert all(place.startswith(f"{code}:") for place in found.values())
    listed = {name.replace("torch.", "aten::").replace("ops.prim.", "prim::") for name in found}
    ran = torch.jit.export_opnames(torchscript.load(small_weights.path, "cpu"))  # as torch itself lists them
    syntax = {"aten::Bool", "aten::__getitem__"}  # of loops and lists: written without a name
    assert {name.split(".")[0] for name in ran if name.startswith("aten::")} <= listed | syntax
    assert "aten::_convolution" in listed


@pytest.mark.parametrize("line", USES)
@pytest.mark.usefixtures("torch_stays_away")
def test_what_weights_do_not_need(small_weights: Exported, tmp_path: Path, line: str):
    path = with_line(small_weights.path, tmp_path / "w.pt", line)
    error = refused(path)
    assert f"refused, for it uses {USES[line]}" in error.message
    assert ".py:6)" in error.message  # behind the class, its two lists and the method's two lines
    assert "trust its author" in error.hint


@pytest.mark.parametrize("line", NEVER_PRINTED, ids=lambda line: repr(line)[:40])
@pytest.mark.usefixtures("torch_stays_away")
def test_what_torch_never_prints(small_weights: Exported, tmp_path: Path, line: str):
    error = refused(with_line(small_weights.path, tmp_path / "w.pt", line))
    assert (
        "which torch never writes there" in error.message
        or "is not TorchScript" in error.message
        or "deeply" in error.message
    )


def test_code_without_end(small_weights: Exported, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(zip_records, "LARGEST_BYTES", 1000)
    assert "MB of code" in refused(small_weights.path).message


def test_files_that_torch_wrote_itself(tmp_path: Path):
    """Compressed code, 64-bit sizes, debug records, alignment: read all the same."""

    class Adds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu() + 1

    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_file("/etc/hostname", False, 4, dtype=torch.float) + x

    for module in (Adds(), Reads()):
        torch.jit.script(module).save(str(tmp_path / "w.pt"), _extra_files={"card.json": "{}"})
        assert "torch.add" in operators(tmp_path / "w.pt")
        if isinstance(module, Adds):
            check_operators(tmp_path / "w.pt")
        else:
            with pytest.raises(WeightsError, match=r"uses torch\.from_file \(code/__torch__.*\.py:\d+\)"):
                check_operators(tmp_path / "w.pt")


def test_a_network_with_other_operators_is_told_at_its_export(tmp_path: Path):
    class Odd(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.as_strided(x, (1,), (1,)) * 0

    with pytest.raises(WeightsError, match=r"uses torch\.as_strided") as error:
        export_ensemble(tmp_path, [Odd()], [record()], ExportRequest("odd", "tiny", "none", None, 0.1))
    assert "kit/deploy/trust/allowlist.py" in error.value.hint
    assert left_in(tmp_path) == []


def test_the_list_is_of_operators_that_exist_and_do_no_harm():
    known = {schema.name for schema in torch._C._jit_get_all_schemas()}
    of_torch = {f"aten::{name.removeprefix('torch.')}" for name in ALLOWED if name.startswith("torch.")}
    made = {name for name in of_torch - known if not name.endswith("_")}  # not everything has a form that writes
    assert made <= {"aten::result_type"}
    for word in ("file", "save", "load", "seed", "rand", "bernoulli", "resize", "as_strided", "empty", "print"):
        assert not {name for name in ALLOWED if word in name}, word
    assert not {"torch.set_", "torch.set_data", "fork", "getattr"} & ALLOWED
    assert not {name for name in ALLOWED if name.startswith("ops.") and not name.startswith("ops.prim.")}
    writing = {s.name for s in torch._C._jit_get_all_schemas() if any(a.name == "filename" for a in s.arguments)}
    # other tests of this process may have imported torchvision, whose `image::read_file` is one more
    assert {name for name in writing if name.startswith("aten::")} == {"aten::from_file", "aten::save"}


@pytest.mark.parametrize(
    "name",
    [
        "archive/model.json",  # the code of an older format, elsewhere
        "archive/bytecode.pkl",
        "archive/mobile_debug_handles.pkl",
        "archive/attributes.pkl",
        "archive/traced_inputs.pkl",
        "archive/code/__torch__/../a.py",
        "archive/../a.py",
        "../a.py",
        "/a.py",
        "a.py",
        "archive/code\\a.py",
        "archive/code/a b.py",
        "archive/code/\u00b5.py",
        "archive/code/a.pyc",
        "archive/code/",
        "archive/CODE/a.py",
        "archive/constants/0x",
        "ARCHIVE/code/a.py",
        "other/code/a.py",
        "other/data.pkl",
    ],
)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.usefixtures("torch_stays_away")
def test_a_record_that_weights_do_not_have(small_weights: Exported, tmp_path: Path, name: str, first: bool):
    entries = entries_of(small_weights.path)
    path = write_archive(tmp_path / "w.pt", [(name, b""), *entries] if first else [*entries, (name, b"")])
    with pytest.raises(WeightsError, match=r"weights have no such record in"):
        check_operators(path)
    with pytest.raises(WeightsError):
        load_weights(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("change", [str, str.upper], ids=["same", "upper"])
@pytest.mark.parametrize("first", [False, True])
def test_torch_reads_the_other_one_of_two(small_weights: Exported, tmp_path: Path, change: type, first: bool):
    """torch finds records whatever their case, and of two the one that Python does not: so there may be no two."""
    entries = entries_of(small_weights.path)
    code = code_of(entries)
    folder, _, rest = code.rpartition("/")
    other = (f"{folder}/{change(rest.removesuffix('.py'))}.py", dict(entries)[code].replace(b"torch.gt(", b"torch.le("))
    path = write_archive(tmp_path / "w.pt", [other, *entries] if first else [*entries, other])
    assert "twice" in refused(path).message


def test_the_case_of_a_record_means_nothing_to_torch(small_weights: Exported, tmp_path: Path):
    """Why the check must not look at names with Python's eyes."""
    entries = entries_of(small_weights.path)
    code = code_of(entries)
    other = code.replace("archive/code", "archive/CODE"), dict(entries)[code].replace(b"torch.gt(", b"torch.le(")
    path = write_archive(tmp_path / "w.pt", [*entries, other])
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    masks = [torchscript.load(each, "cpu").mask(image) for each in (small_weights.path, path)]
    assert torch.equal(masks[0], 1 - masks[1])
    assert "no such record" in refused(path).message


def end_of(data: bytes) -> int:
    return data.rindex(b"PK\5\6")


def patched(data: bytes, offset: int, format_: str, *values: int) -> bytes:
    """Writes numbers into the record that ends a zip, or `offset` behind its beginning."""
    place = end_of(data) + offset
    return data[:place] + struct.pack(format_, *values) + data[place + struct.calcsize(format_) :]


def two_directories(data: bytes) -> bytes:
    """A second directory behind the first: zipfile goes by where it should end, miniz by where it is said to begin."""
    end = end_of(data)
    size, offset = struct.unpack("<2L", data[end + 12 : end + 20])
    return data[:end] + data[offset : offset + size] + data[end:]


def said_in_64_bits(data: bytes, place: int = 0, size: int = 44) -> bytes:
    """The end as torch itself writes it."""
    end = end_of(data)
    _, _, _, _, entries, length, offset, _ = struct.unpack("<4s4H2LH", data[end:])
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", size, 45, 45, 0, 0, entries, entries, length, offset)
    return data[:end] + record + struct.pack("<4sLQL", b"PK\6\7", 0, place or end, 1) + data[end:]


def flagged(data: bytes, bit: int) -> bytes:
    """A flag at the first entry of the directory."""
    place = data.index(b"PK\1\2") + 8
    return data[:place] + struct.pack("<H", bit) + data[place + 2 :]


def with_extra(data: bytes, extra: bytes) -> bytes:
    """An extra field at the last entry of the directory."""
    end, place = end_of(data), data.rindex(b"PK\1\2") + 30
    assert data[place : place + 2] == b"\0\0"
    data = data[:place] + struct.pack("<H", len(extra)) + data[place + 2 : end] + extra + data[end:]
    size = struct.unpack("<L", data[end + len(extra) + 12 : end + len(extra) + 16])[0]
    return patched(data, 12, "<L", size + len(extra))


def test_ends_that_are_sound(small_weights: Exported, tmp_path: Path):
    path = tmp_path / "w.pt"
    path.write_bytes(said_in_64_bits(small_weights.path.read_bytes()))
    assert operators(path) == operators(small_weights.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"#!/bin/sh\n" + data, "before, behind or between"),
        (lambda data: data + b"\n", "before, behind or between"),
        (lambda data: patched(data, 20, "<H", 3) + b"abc", "before, behind or between"),
        (lambda data: data + data[end_of(data) :], "before, behind or between|not a weights file"),
        (lambda data: patched(data, 8, "<2H", 3, 3), "before, behind or between"),
        (lambda data: patched(data, 4, "<2H", 1, 1), "before, behind or between|not a weights file"),
        (lambda data: patched(data, 16, "<L", 30), "before, behind or between|not a weights file"),
        (two_directories, "before, behind or between"),
        (lambda data: said_in_64_bits(data, place=4), "before, behind or between|not a weights file"),
        (lambda data: said_in_64_bits(data, size=45), "before, behind or between|not a weights file"),
        (lambda data: flagged(data, 1), "in an unusual form"),
        (lambda data: flagged(data, 1 << 5), "in an unusual form"),
        (lambda data: with_extra(data, struct.pack("<2H5s", 0x7075, 5, b"a/b.c")), "in an unusual form|not a readable"),
        (lambda data: with_extra(data, struct.pack("<2H4s", 0xCAFE, 4, b"abcd")), "in an unusual form"),
        (lambda data: data.replace(b"archive/version", b"archive/versio\0"), "no such record"),
        (lambda data: data[: len(data) // 2], "not a weights file"),
        (lambda data: data[:-1], "not a weights file|before, behind"),
        (lambda data: b"", "not a weights file"),
        (lambda data: b"\x80\x02}q\x00.", "not a weights file"),
    ],
)
@pytest.mark.usefixtures("torch_stays_away")
def test_zips_that_two_readers_read_differently(small_weights: Exported, tmp_path: Path, change, message: str):
    path = tmp_path / "w.pt"
    path.write_bytes(change(small_weights.path.read_bytes()))
    with pytest.raises(WeightsError, match=message):
        check_operators(path)
    with pytest.raises(WeightsError):
        load_weights(path)


@pytest.mark.usefixtures("torch_stays_away")
def test_records_packed_otherwise(small_weights: Exported, tmp_path: Path):
    path = write_archive(tmp_path / "w.pt", entries_of(small_weights.path), zipfile.ZIP_BZIP2)
    assert "in an unusual form" in refused(path).message
    path = write_archive(tmp_path / "w.pt", entries_of(small_weights.path), zipfile.ZIP_DEFLATED)  # as torch does
    assert operators(path) == operators(small_weights.path)


@pytest.mark.parametrize("record", ["data.pkl", "constants.pkl"])
@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", r"uses os\.system \(\w+\.pkl\)"),
        (b"\x80\x02c__torch__.torch.classes.dist_rpc\nWorkerInfo\n)\x81}b.", r"torch\.classes\.dist_rpc\.WorkerInfo"),
        (b"\x80\x02ctorch.distributed.rpc\nrref\n)R.", r"uses torch\.distributed\.rpc\.rref"),
        (b"\x80\x02ctorch.jit._pickle\nrestore_type_tag\n)R.", "restore_type_tag"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93)R.", r"has SHORT_BINUNICODE at byte 2"),
        (b"\x80\x02(S'ls'\nios\nsystem\n.", "has STRING at byte 3"),
        (b"\x80\x02\x82\x01.", "has EXT1"),
        (b"\x80\x02X\xff\0\0\0ls.", "is not a pickle of torch"),
        (b"", "is not a pickle of torch"),
    ],
)
@pytest.mark.usefixtures("torch_stays_away")
def test_pickles_that_name_more_than_tensors(
    small_weights: Exported, tmp_path: Path, record: str, pickled: bytes, message: str
):
    path = doctored(small_weights.path, tmp_path / "w.pt", record, lambda _: pickled)
    refused(path)
    with pytest.raises(WeightsError, match=message):
        check_operators(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_is_told_and_never_a_fault(small_weights: Exported, tmp_path: Path, compression: int):
    path = write_archive(tmp_path / "w.pt", entries_of(small_weights.path), compression)
    data, random, detected = path.read_bytes(), Random(0), 0
    directory = data.index(b"PK\1\2")
    for turn in range(200):
        damaged = bytearray(data)
        for _ in range(random.choice((1, 3))):  # half of them where the directory is
            damaged[random.randrange(directory if turn % 2 else 0, len(data))] = random.randrange(256)
        path.write_bytes(damaged)
        with suppress(WeightsError):
            check_operators(path)
            detected -= 1
        detected += 1
    assert detected > 50


def test_nothing_of_a_refused_file_has_run(small_weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same file, opened by torch, writes to the disk."""
    monkeypatch.chdir(tmp_path)
    path = with_line(small_weights.path, tmp_path / "w.pt", 'torch.save(x, "stolen.pt")')
    assert "torch.save" in refused(path).message
    assert not (tmp_path / "stolen.pt").exists()
    torchscript.load(path, "cpu")(torch.zeros(1, 3, 16, 16))
    assert (tmp_path / "stolen.pt").exists()
