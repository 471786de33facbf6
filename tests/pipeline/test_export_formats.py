"""`kit export --format`, from a trained run to files that differ from it by nothing to speak of."""

from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_export_in_three_formats(cli: Cli, workplace: Path):
    code, out, err = cli("run", "tiny", "--root", workplace, "--no-pretrained", "--fold", "0")
    assert code == 0, err
    options = ("--name", "duo", "--root", workplace)
    code, out, err = cli("export", "tiny/fold0", *options, "--format", "torchscript,pt2,onnx")
    assert code == 0, err
    folder = workplace / "weights"
    assert out.splitlines() == [str(folder / "duo.pt")]
    lines = {line.split(":")[0]: line for line in err.splitlines()}
    for name in ("duo.pt2", "duo.onnx"):
        assert float(lines[str(folder / name)].removeprefix(f"{folder / name}: read back, ").split()[0]) < 1e-5
    assert "Warning" not in err  # nor does anything else of the exporters reach the terminal
    assert "torch." not in err
    assert {path.suffix for path in folder.glob("duo.*")} == {".pt", ".json", ".pt2", ".onnx"}
    assert cli("export", "tiny/fold0", *options)[0] == 0
    assert {path.suffix for path in folder.glob("duo.*")} == {".pt", ".json"}


def test_an_unknown_format_is_told_at_once(cli: Cli, tmp_path: Path):
    code, out, err = cli("export", "tiny/fold0", "--name", "x", "--format", "onxx", "--root", tmp_path)
    assert (code, out) == (1, "")
    assert "no format 'onxx', expected torchscript, pt2, onnx or onnx-gis" in err
    assert "did you mean 'onnx'?" in err
    assert list(tmp_path.iterdir()) == []
