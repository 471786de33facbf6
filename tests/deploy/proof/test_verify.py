import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_fakes import ODD, TinyNet, export_tiny
from torch import Tensor

from kit.deploy.freeze.ensemble import METHODS, Core, Ensemble, freeze
from kit.deploy.proof.comparing import Candidate, candidate_of
from kit.deploy.proof.images import CASES, SMALL_CASES, Case
from kit.deploy.proof.reference import REFERENCE
from kit.deploy.proof.verify import FORMATS, verify
from kit.deploy.trust.allowlist import operators
from kit.deploy.trust.zip_records import read_extra
from kit.deploy.weights import torchscript
from kit.errors import WeightsError
from kit.pipeline.export import Exported
from kit.system.files import sha256_of

Cli = Callable[..., tuple[int, str, str]]


def freeze_with_core(
    members: list[TinyNet], views: str, pad_multiple: int, weights: tuple[float, ...] = (), first: int = 0
) -> Any:
    """Freezes an ensemble whose first network is not the one it should be."""
    cores = [torchscript.trace(Core(member), torch.full((2, 3, 32, 32), 127.0)) for member in members]
    return torchscript.frozen(Ensemble([cores[first], *cores[1:]], views, pad_multiple, weights), METHODS, len(cores))


@pytest.fixture
def copied(tiny_weights: Exported, tmp_path: Path) -> Path:
    """A copy of the weights folder that may be broken."""
    shutil.copytree(tiny_weights.path.parent, tmp_path / "weights")
    return tmp_path / "weights" / "tiny.pt"


def signed(path: Path) -> None:
    """Writes the checksum of a changed file into the files beside it, as a forger would."""
    for beside in (path.with_suffix(".json"), path.with_suffix(".parity.json")):
        beside.write_text(json.dumps(json.loads(beside.read_text()) | {"file_sha256": sha256_of(path)}))


def replace_networks(path: Path, members: list[TinyNet], views: str = "flips") -> None:
    """Puts other networks below the card and the reference of a file."""
    kept = {name: read_extra(path, name) for name in ("card.json", REFERENCE)}
    torchscript.save(freeze([member.eval() for member in members], views, 16), path)
    for name, text in kept.items():
        torchscript.add_extra(path, name, text or "")
    signed(path)


def replace_extra(path: Path, name: str, text: str | None) -> None:
    """Writes a file again with another extra text, or without it."""
    texts = {key: read_extra(path, key) for key in ("card.json", REFERENCE)} | {name: text}
    torchscript.save(torchscript.load(path, "cpu"), path)
    for key, value in texts.items():
        if value is not None:
            torchscript.add_extra(path, key, value)
    signed(path)


def test_an_export_is_verified_at_all_sizes(tmp_path: Path):
    path = export_tiny(tmp_path, views="none", cases=CASES).path
    reference = read_extra(path, REFERENCE)
    assert reference
    assert len(reference) < 1e6
    verified = verify(path)
    assert verified.faults() == []
    rows = {row.image: row for row in verified.rows}
    assert list(rows)[:5] == [str(case) for case in CASES if not case.core]
    for row in verified.rows:
        assert row.parity
        assert row.parity.max_abs < 1e-5
        assert row.parity.equal_masks == 1
    assert any(0 < row.building < 1 for row in verified.rows)


@pytest.mark.parametrize("views", ["none", "flips", "d4"])
def test_any_views(tmp_path: Path, views: str):
    path = export_tiny(tmp_path, views=views).path
    verified = verify(path)
    assert verified.faults() == []
    assert [row.image for row in verified.rows] == [str(case) for case in ODD]
    assert verified.rows[0].file == "tiny.pt"


def test_one_file_alone_is_enough(copied: Path):
    alone = copied.with_name("alone.pt")
    shutil.copy(copied, alone)
    verified = verify(alone)
    assert verified.faults() == []
    found = {check.name: check.result for check in verified.checks}
    assert "no alone.json beside" in found["card"]
    assert "none beside it" in found["checksum"]


def test_a_changed_weight_is_found(copied: Path):
    changed = TinyNet(2)
    with torch.no_grad():
        changed.head.weight[0, 0, 0, 0] += 0.5
    replace_networks(copied, [TinyNet(1), changed])
    faults = verify(copied).faults()
    assert any("network 1 of tiny.pt differs" in fault for fault in faults)
    assert any("tiny.pt differs from its networks on 33 x 33 RGB" in fault for fault in faults)


def test_a_changed_file_does_not_match_its_card(copied: Path):
    replace_networks(copied, [TinyNet(1), TinyNet(3)])
    beside = copied.with_suffix(".json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {"file_sha256": "0" * 64}))
    with pytest.raises(WeightsError, match="not the same export"):
        verify(copied)


def test_another_member_is_found(copied: Path):
    replace_networks(copied, [TinyNet(1), TinyNet(3)])
    with pytest.raises(WeightsError, match=r"tiny\.pt has \d+ faults:\n.*network 1 of tiny\.pt differs by 0\.\d+"):
        verify(copied).require()


def flip_bits(path: Path, name: str) -> None:
    """Flips a bit of every 16th byte in the largest file of an archive whose path holds `name`."""
    with zipfile.ZipFile(path) as archive:
        entry = max((e for e in archive.infolist() if name in e.filename), key=lambda e: e.file_size)
    data = bytearray(path.read_bytes())
    start = entry.header_offset + 30 + len(entry.filename)
    assert data[start - len(entry.filename) : start] == entry.filename.encode()
    for place in range(start + 3, start + entry.file_size, 16):  # of float32, the sign and the exponent's high bits
        data[place] ^= 0x40
    path.write_bytes(data)


def test_bits_that_flipped_in_a_weight_are_found(copied: Path):
    alone = copied.with_name("alone.pt")
    shutil.copy(copied, alone)
    flip_bits(alone, "/constants/")
    with pytest.raises(WeightsError, match=r"alone\.pt is not a weights file, or is damaged: Bad CRC-32"):
        verify(alone).require()


def test_bits_that_flipped_in_the_reference_are_found(copied: Path):
    alone = copied.with_name("alone.pt")
    shutil.copy(copied, alone)
    flip_bits(alone, "/extra/parity.json")
    with pytest.raises(WeightsError, match=r"alone\.pt is not a weights file, or is damaged: Bad CRC-32"):
        verify(alone)


def test_members_in_another_order_are_found(copied: Path):
    replace_networks(copied, [TinyNet(2), TinyNet(1)])
    assert any("differs by" in fault and "network" in fault for fault in verify(copied).faults())


def test_a_missing_member_is_found(copied: Path):
    replace_networks(copied, [TinyNet(1)])
    assert "tiny.pt has 1 networks, its card lists 2" in verify(copied).faults()


def test_other_views_are_found(copied: Path):
    replace_networks(copied, [TinyNet(1), TinyNet(2)], "none")
    assert any("differs from its networks on 257 x 190 RGBA" in fault for fault in verify(copied).faults())


@pytest.mark.parametrize("first", [0, 1])
def test_one_network_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int):
    """At multiples of pad_multiple and beside them; the first is not the second."""
    cases = (*SMALL_CASES, Case(70, 50, core=True), Case(64, 64, core=True))
    monkeypatch.setattr("kit.pipeline.export.freeze", lambda *given: freeze_with_core(*given, first=first))
    path = tmp_path / "tiny.pt"
    if first == 1:
        with pytest.raises(WeightsError, match="differs from its networks"):
            export_tiny(tmp_path, cases=cases)
        assert not path.exists()
        return
    export_tiny(tmp_path, cases=cases)
    verified = verify(path)
    assert verified.faults() == []
    assert [row.image for row in verified.rows][2:] == [
        "50 x 70 RGB, core 0 in one view", "64 x 64 RGB, core 0 in one view",
    ]  # fmt: skip


def test_a_file_without_single_networks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def older(module: Any, file: str, pad_multiple: int, device: str, limit: float) -> Candidate:
        return Candidate(file, candidate_of(module, file, pad_multiple, device).ensemble, limit=limit)

    monkeypatch.setattr("kit.deploy.proof.verify.candidate_of", older)
    verified = verify(export_tiny(tmp_path, cases=(*ODD, Case(64, 64, core=True))).path)
    assert verified.faults() == []
    assert [row.image for row in verified.rows] == [str(case) for case in ODD]
    results = {check.name: check.result for check in verified.checks}
    assert "64 x 64 RGB, core 0 in one view: left out, the file has no core_0" in results["reference"]


def test_without_a_reference_formats_are_compared_with_each_other(copied: Path, monkeypatch: pytest.MonkeyPatch):
    replace_extra(copied, REFERENCE, None)
    monkeypatch.setattr("kit.deploy.proof.images.CASES", ODD)
    verified = verify(copied)
    assert verified.faults() == []
    assert [row.parity for row in verified.rows] == [None] * 3
    assert any("by an older version" in check.result for check in verified.checks)

    module = torchscript.load(copied, "cpu")
    copied.with_suffix(".good").touch()
    copied.with_suffix(".bad").touch()
    monkeypatch.setitem(FORMATS, ".good", lambda path: module.probability)
    monkeypatch.setitem(FORMATS, ".bad", lambda path: lambda x: module.probability(x) * 0.9)
    verified = verify(copied)
    assert [row.file for row in verified.rows if row.parity] == ["tiny.good"] * 3 + ["tiny.bad"] * 3
    assert len(verified.faults()) == 3
    assert all(fault.startswith("tiny.bad differs") for fault in verified.faults())


def failing(_: Tensor) -> Tensor:
    raise RuntimeError("first line\nno such kernel")


def refusing(path: Path) -> Any:
    raise WeightsError(f"{path.name} is cut short")


@pytest.mark.parametrize(
    ("opened", "message"),
    [
        (lambda _: lambda x: torch.full_like(x[:, :1], torch.nan, dtype=torch.float32), "by nan in probability"),
        (lambda _: lambda x: x[:, :1, 1:].float(), r"gives \(1, 1, 32, 33\) on 33 x 33"),
        (lambda _: failing, "fails on 33 x 33 RGB: no such kernel"),
        (refusing, r"tiny\.other is cut short"),
    ],
)
def test_another_format_that_is_wrong(copied: Path, monkeypatch: pytest.MonkeyPatch, opened: Any, message: str):
    copied.with_suffix(".other").touch()
    monkeypatch.setitem(FORMATS, ".other", opened)
    with pytest.raises(WeightsError, match=message):
        verify(copied).require()


def test_the_report_beside_can_be_read(tiny_weights: Exported):
    told = json.loads(tiny_weights.path.with_suffix(".parity.json").read_text())
    assert told["file"] == "tiny.pt"
    assert told["file_sha256"] == sha256_of(tiny_weights.path)
    assert told["threads"] == torch.get_num_threads()
    worst = max(told["tiles"]["max_abs"], *(image["max_abs"] for image in told["images"]))
    assert tiny_weights.card.parity_max_abs == worst > 0
    assert [image["image"] for image in told["images"]] == [str(case) for case in ODD]
    assert {"building", "equal_masks", "seconds"} <= told["images"][0].keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is (not valid JSON|damaged: )"),
        ("[]", "is (not valid JSON|damaged: )"),
        ('{"file_sha256": "abcdefabcdefabc"}', r"is the report of another file, sha256 'abcdefabcdef'\.\.\."),
    ],
)
def test_a_report_of_something_else(copied: Path, text: str, message: str):
    copied.with_suffix(".parity.json").write_text(text)
    with pytest.raises(WeightsError, match=rf"tiny\.parity\.json {message}"):
        verify(copied).require()


def test_the_card_beside_is_the_one_inside(copied: Path):
    beside = copied.with_suffix(".json")
    told = json.loads(beside.read_text())
    beside.write_text(json.dumps(told | {"views": "d4", "gsd_m": 1.0}))
    assert verify(copied).faults() == ["tiny.json differs from the card inside in gsd_m, views"]
    del told["views"]
    beside.write_text(json.dumps(told))
    assert verify(copied).faults() == [f"the card in {beside} is damaged: field views: Field required"]


@pytest.mark.parametrize("text", ["{", "not JSON", '{"images": []}'])
def test_a_damaged_reference(copied: Path, text: str):
    replace_extra(copied, REFERENCE, text)
    with pytest.raises(WeightsError, match=r"parity\.json in .*tiny\.pt is (damaged|not valid JSON)"):
        verify(copied)


def test_a_module_of_others_below_a_card_of_kit(copied: Path):
    card = read_extra(copied, "card.json") or ""
    torchscript.save(torchscript.frozen(torch.nn.Conv2d(3, 1, 1), (), 0), copied)
    torchscript.add_extra(copied, "card.json", card)
    signed(copied)
    with pytest.raises(WeightsError, match=r"tiny\.pt has no probability, mask, members, expected an ensemble"):
        verify(copied)


def test_the_command(cli: Cli, copied: Path):
    root = copied.parents[1]
    code, out, err = cli("verify", "tiny", "--root", root, "--device", "cpu")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[-1] == "verified tiny.pt"
    named = ["check", "card", "checksum", "operators", "reference", "members"]
    assert [line.split()[0] for line in lines[: len(named)]] == named
    assert f"{len(operators(copied))}, all on tensors alone" in lines[3]
    assert sum(line.startswith("tiny.pt ") for line in lines) == len(verify(copied).rows)

    code, out, err = cli("verify", copied, "--json", "--root", root)
    found = json.loads(out)
    assert (code, found["verified"], found["compared"], found["faults"]) == (0, True, True, [])
    assert found["rows"][0].keys() == {"file", "image", "building", "max_abs", "equal_masks", "seconds"}


def test_the_command_lists_all_faults(cli: Cli, copied: Path):
    replace_networks(copied, [TinyNet(1), TinyNet(3)])
    copied.with_suffix(".parity.json").write_text("{}")
    code, out, err = cli("verify", copied)
    assert code == 1
    assert "verified" not in out
    assert "tiny.pt has" in err
    assert "tiny.parity.json is damaged" in err
    assert "network 1 of tiny.pt differs" in err
    assert err.splitlines()[-1].startswith("hint: ")
    code, out, _ = cli("verify", copied, "--json")
    assert code == 1
    assert json.loads(out)["verified"] is False


def test_the_command_says_when_there_was_nothing_to_compare_with(cli: Cli, copied: Path):
    replace_extra(copied, REFERENCE, None)
    code, out, err = cli("verify", copied)
    assert code == 0
    assert out.splitlines()[-1] == "verified tiny.pt"
    assert "tiny.pt holds no predictions of its networks to compare with" in err


@pytest.mark.parametrize(
    ("name", "message"), [("tony", "no weights"), ("tony.pt", "no weights"), ("a.onnx", "no weights")]
)
def test_missing_weights(cli: Cli, copied: Path, name: str, message: str):
    code, out, err = cli("verify", name, "--root", copied.parents[1])
    assert (code, out) == (1, "")
    assert message in err


def test_other_files(cli: Cli, tmp_path: Path):
    (tmp_path / "w.pt").write_bytes(b"not weights")
    code, _, err = cli("verify", tmp_path / "w.pt")
    assert code == 1
    assert "w.pt is not a weights file" in err


def test_weights_of_the_votes_are_verified(tmp_path: Path):
    """A card that claims other weights than the file computes with is found."""
    path = export_tiny(tmp_path, weights=(3.0, 1.0)).path
    verify(path).require()
    card = json.loads(read_extra(path, "card.json") or "")
    assert card["weights"] == [0.75, 0.25]
    for weights in ([0.25, 0.75], []):
        text = json.dumps(card | {"weights": weights})
        path.with_suffix(".json").write_text(text)
        replace_extra(path, "card.json", text)
        signed(path)
        assert any("the mean of members differs from probability" in fault for fault in verify(path).faults())


def test_an_address_is_to_be_downloaded_first(tmp_path: Path, cli: Callable[..., tuple[int, str, str]]):
    code, _, err = cli("verify", "https://example.org/a.pt", "--root", tmp_path)
    assert code == 1
    assert err.splitlines() == [
        "error: https://example.org/a.pt is an address, expected a file", "hint:  download it first"
    ]  # fmt: skip
