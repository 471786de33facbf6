"""`kit weights`: what index.csv lists, held against files and cards; and what lies there unlisted."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from deploy_fakes import export_tiny

from kit.deploy.weights import listing
from kit.deploy.weights.listing import COLUMNS, list_weights
from kit.deploy.weights.store import INDEX_COLUMNS, list_in_index, read_index
from kit.system.files import sha256_of

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with two exports, of two members and of one. Read only."""
    root = tmp_path_factory.mktemp("root")
    export_tiny(root / "weights", "duo")
    export_tiny(root / "weights", "solo", "none", (1,))
    return root


@pytest.fixture
def root(two: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(two, tmp_path / "root"))


def rows(out: str) -> dict[str, str]:
    """Lines of the table by the name that they begin with."""
    return {line.split()[0]: line for line in out.splitlines()[1:]}


def test_the_table_when_piped(root: Path, cli: Cli):
    (root / "weights/duo.onnx").touch()
    code, out, err = cli("weights", "--root", root)
    assert (code, err) == (0, "")
    listed = {each.name: each for each in list_weights(root / "weights")}
    days = {name: each.created[:10] for name, each in listed.items()}
    parity = {name: f"{each.parity_max_abs:.0e}" for name, each in listed.items()}
    sums = {name: sha256_of(root / f"weights/{name}.pt")[:8] for name in listed}
    duo, solo = ("tiny", "2", "flips", "0.5000", "0.15"), ("newest", "tiny", "1", "none", "0.5000", "0.15")
    assert [line.split() for line in out.splitlines()] == [
        list(COLUMNS),
        ["duo", *duo, parity["duo"], "pt", "onnx", days["duo"], sums["duo"]],
        ["solo", *solo, parity["solo"], "pt", days["solo"], sums["solo"]],
    ]


def test_json(root: Path, cli: Cli):
    code, out, _ = cli("weights", "--json", "--root", root)
    assert code == 0
    listed = json.loads(out)
    assert [(each["name"], each["newest"], each["state"], each["problem"]) for each in listed] == [
        ("duo", False, "", None),
        ("solo", True, "", None),
    ]
    card = json.loads((root / "weights/duo.json").read_text())
    for key in ("recipe", "views", "score", "gsd_m", "created", "file_sha256", "parity_max_abs", "parity_equal_masks"):
        assert listed[0][key] == card[key], key
    assert listed[0]["members"] == 2
    assert listed[0]["formats"] == ["pt"]


def test_a_missing_file(root: Path, cli: Cli):
    (root / "weights/solo.pt").unlink()
    code, out, err = cli("weights", "--root", root)
    assert code == 0
    assert "newest, missing" in rows(out)["solo"]
    assert "solo.pt is listed, but missing: export or fetch it again" in err
    assert "duo" in rows(out)


def test_a_file_that_is_another_one(root: Path, cli: Cli):
    shutil.copy(root / "weights/solo.pt", root / "weights/duo.pt")
    code, out, err = cli("weights", "--root", root)
    assert code == 0
    assert rows(out)["duo"].split()[1] == "changed"
    assert f"duo.pt has sha256 {sha256_of(root / 'weights/solo.pt')[:8]}..., but is listed with" in err


def test_a_card_of_another_file(root: Path, cli: Cli):
    shutil.copy(root / "weights/solo.json", root / "weights/duo.json")
    _, out, err = cli("weights", "--root", root)
    assert rows(out)["duo"].split()[1] == "changed"
    assert "duo.json is the card of another file than duo.pt" in err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recipe": 1}', b"\xff"])
def test_a_broken_card_does_not_end_the_listing(root: Path, cli: Cli, text: str | bytes):
    (root / "weights/duo.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    code, out, err = cli("weights", "--root", root)
    assert code == 0
    assert rows(out)["duo"].split()[1] == "unreadable"
    assert "/weights/duo.json is" in err
    assert rows(out)["solo"].split()[1] == "newest"


def test_without_a_card_beside(root: Path):
    (root / "weights/duo.json").unlink()
    duo, _ = list_weights(root / "weights")
    assert (duo.state, duo.problem, duo.members, duo.parity_max_abs) == ("", None, 2, None)
    assert duo.cells()[COLUMNS.index("parity")] == ""


def test_files_that_are_not_listed(root: Path, cli: Cli):
    weights = root / "weights"
    shutil.copy(weights / "solo.pt", weights / "copy.pt")
    (weights / "alien.pt").write_bytes(b"not weights")
    code, out, err = cli("weights", "--root", root)
    assert code == 0
    assert list(rows(out)) == ["duo", "solo", "alien", "copy"]
    for name in ("alien", "copy"):
        assert rows(out)[name].split()[1] == "unlisted"
        assert f"{name}.pt is not listed; to use it: kit submit --weights {weights / name}.pt" in err
    shutil.copy(weights / "solo.json", weights / "copy.json")
    assert list_weights(weights)[-1].recipe == "tiny"


def test_numbers_that_were_edited_away(root: Path):
    index = root / "weights/index.csv"
    index.write_text(index.read_text().replace(",2,flips,0.5000,", ",two,flips,,"))
    (root / "weights/duo.json").unlink()
    duo, solo = list_weights(root / "weights")
    assert (duo.members, duo.score) == (None, None)
    assert duo.cells()[COLUMNS.index("score")] == ""
    assert solo.score == 0.5


@pytest.mark.parametrize("text", ["name,recipe\na,b\n", b"\xff\xfe", "\0", ",".join(INDEX_COLUMNS) + "\nduo,tiny\n"])
def test_a_broken_index(root: Path, cli: Cli, text: str | bytes):
    (root / "weights/index.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    for command in (("weights",), ("submit", root)):
        code, out, err = cli(*command, "--root", root)
        assert (code, out) == (1, "")
        assert f"{root / 'weights/index.csv'} is unreadable" in err
        assert "move it away" in err.splitlines()[-1]


def test_a_name_is_listed_once(root: Path):
    weights = root / "weights"
    card = export_tiny(root / "other", "duo", "d4", (3,)).card
    list_in_index(weights, "duo", card, "ab" * 32)
    assert [(row.name, row.views) for row in read_index(weights)] == [("solo", "none"), ("duo", "d4")]


def test_no_weights_yet(tmp_path: Path, cli: Cli):
    code, out, err = cli("weights", "--root", tmp_path)
    assert (code, out.split()) == (0, list(COLUMNS))
    assert "kit run RECIPE" in err
    assert json.loads(cli("weights", "--json", "--root", tmp_path)[1]) == []
    assert list(tmp_path.iterdir()) == []


def test_listing_imports_nothing_heavy(root: Path):
    code = (
        "import sys; from pathlib import Path; from kit.deploy.weights.listing import list_weights\n"
        "assert len(list_weights(Path(sys.argv[1]))) == 2\n"
        "sys.exit(', '.join({'torch', 'numpy', 'rasterio'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code, root / "weights"], check=True)


def test_leftovers_of_killed_exports_are_not_listed(root: Path):
    shutil.copy(root / "weights/duo.pt", root / "weights/.duo.123.part.pt")
    assert [line.name for line in list_weights(root / "weights")] == ["duo", "solo"]


def test_files_that_have_not_changed_are_read_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    weights, read = root / "weights", []
    monkeypatch.setattr(listing, "sha256_of", lambda path: read.append(path.name) or sha256_of(path))
    first = list_weights(weights)
    assert sorted(read) == ["duo.pt", "solo.pt"]
    read.clear()
    assert list_weights(weights) == first
    assert read == []
    shutil.copy(weights / "solo.pt", weights / "duo.pt")
    assert [line.state for line in list_weights(weights)] == ["changed", ""]
    assert read == ["duo.pt"]


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "\0"])
def test_a_broken_cache_is_no_harm(root: Path, cache: Path, text: str):
    first = list_weights(root / "weights")
    (cache / listing.CHECKSUMS).write_text(text)
    assert list_weights(root / "weights") == first


def test_an_index_of_wrong_numbers(root: Path):
    index = root / "weights/index.csv"
    index.write_text(index.read_text().replace(",2,flips,0.5000,0.1500,", f",{'9' * 5000},flips,nan,1e999,"))
    (root / "weights/duo.json").unlink()
    duo = list_weights(root / "weights")[0]
    assert (duo.members, duo.score, duo.gsd_m) == (None, None, None)
