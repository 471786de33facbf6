"""Files of a run that are damaged: the error names the file, the field and what to do; never a fault of kit."""

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from factories import write_run

from kit.errors import RunError
from kit.training.run_files import check_best, read_log, read_result, read_settings

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs/lite0/fold0"
    write_run(folder, {"kam/a": (5, 1, 1)}, gsd_m=0.1, recipe="lite0")
    (folder / "log.csv").write_text("epoch,train_loss,jaccard,seconds\n0,0.5,0.25,9.5\n1,0.4,nan,\n")
    return folder


def test_what_was_written_is_read(folder: Path):
    result = read_result(folder)
    assert result
    assert result.scenes["kam/a"].tp == 5
    assert (result.seconds, result.best_sha256) == (90.0, "")
    assert read_settings(folder).gsd_m == 0.1
    assert read_log(folder) == [
        {"epoch": 0, "train_loss": 0.5, "jaccard": 0.25, "seconds": 9.5}, {"epoch": 1, "train_loss": 0.4},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("result.json", "seconds", "long", "result.json is damaged: field seconds"),
        ("result.json", "score", 7.0, "result.json is damaged: field score"),
        ("result.json", "scenes", {"kam/a": {"tp": "x"}}, "result.json is damaged: field scenes.kam/a.tp"),
        ("result.json", "scenes", {"kam/a": {"tp": -1, "fp": 0, "fn": 0}}, "counts below 0"),
        ("result.json", "epoch", None, "result.json is damaged: field epoch"),
        ("settings.json", "seed", "0", "settings.json is damaged: field seed"),
        ("settings.json", "epochs", -2, "settings.json is damaged: field epochs"),
        ("settings.json", "gsd_m", [], "settings.json is damaged: field gsd_m"),
    ],
)
def test_a_wrong_field_is_named(folder: Path, file: str, key: str, value: object, message: str):
    record = json.loads((folder / file).read_text()) | {key: value}
    (folder / file).write_text(json.dumps(record))
    with pytest.raises(RunError, match=message) as caught:
        read_result(folder)
        read_settings(folder)
    assert caught.value.hint == "train again: kit run lite0 --fold 0 --restart"


def test_a_field_that_is_needed(folder: Path):
    with pytest.raises(RunError, match=r"settings.json is damaged: field data_sha256: missing"):
        read_settings(folder, ("seed", "data_sha256"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch,jaccard\n0,high\n", "row 1, column jaccard: 'high' is not a number"),
        ("epoch,jaccard\n0,0.5\n,0.5\n", "row 2: no epoch"),
        ("jaccard\n0.5\n", "column epoch: missing"),
        ("epoch,jaccard\n0\n", "log.csv is damaged"),
        (b"\xff\xfe\x00", "log.csv is damaged"),
    ],
)
def test_a_damaged_log(folder: Path, text: str | bytes, message: str):
    (folder / "log.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunError, match=message):
        read_log(folder)


def fuzzed(content: bytes, random: random.Random) -> bytes:
    """Returns a text with some bytes cut, doubled, changed or nested."""
    start = random.randrange(len(content))
    kind = random.randrange(5)
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[:start] + content[start // 2 :]
    if kind == 2:
        return b"[" * 100_000 + content
    if kind == 3:
        return content[:start] + bytes(random.randrange(256) for _ in range(4)) + content[start + 4 :]
    return content[:start] + random.choice([b"null", b"1e999", b'"', b"{}", b"-"]) + content[start + 1 :]


def test_fuzzed_files_are_errors_of_the_user_s_files(folder: Path, cli: Cli, tmp_path: Path):
    """Of 120 damaged files none is a fault of kit; `kit runs` lists the other run all the same."""
    write_run(tmp_path / "runs/other/fold0", {"kam/a": (9, 1, 0)})
    draw = random.Random(0)
    whole = {name: (folder / name).read_bytes() for name in ("settings.json", "result.json", "log.csv")}
    for number in range(120):
        name = list(whole)[number % 3]
        if name == "log.csv":
            (folder / "result.json").unlink(missing_ok=True)
        (folder / name).write_bytes(fuzzed(whole[name], draw))
        code, out, err = cli("runs", "--root", tmp_path)
        assert code == 0, err
        assert "other/fold0" in out
        assert "fault of kit" not in err
        for reader in (read_settings, read_result, read_log):
            with suppress(RunError):
                reader(folder)
        for other, content in whole.items():
            (folder / other).write_bytes(content)


def test_damaged_weights_are_noticed(folder: Path):
    result = read_result(folder)
    assert result
    with pytest.raises(RunError, match="has no best"):
        check_best(folder, result)
    (folder / "best.safetensors").write_bytes(b"weights")
    sha256 = check_best(folder, result)  # an older result knows no checksum
    record = json.loads((folder / "result.json").read_text()) | {"best_sha256": sha256}
    (folder / "result.json").write_text(json.dumps(record))
    (folder / "best.safetensors").write_bytes(b"weightz")
    with pytest.raises(RunError, match=r"best\.safetensors is damaged: sha256 "):
        check_best(folder, read_result(folder))


def test_a_finished_run_is_verified(workplace: Path, cli: Cli):
    command = ("run", "tiny", "--fold", 0, "--no-pretrained", "--no-export", "--root", workplace)
    assert cli(*command)[0] == 0
    file = workplace / "runs/tiny/fold0/best.safetensors"
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)
    code, _, err = cli(*command)
    assert code == 1
    assert "best.safetensors is damaged" in err
    assert "train again: kit run tiny --fold 0 --restart" in err
    (workplace / "runs/tiny/fold0/result.json").write_text("{")
    code, _, err = cli(*command)
    assert code == 1
    assert "result.json is" in err
    assert "fault of kit" not in err
