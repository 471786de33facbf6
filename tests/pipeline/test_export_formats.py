"""`kit export --format`, from a trained run to files that differ from it by nothing to speak of."""

from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_export_in_three_formats(cli: Cli, workplace: Path):
    code, out, err = cli("run", "tiny", "--root", workplace, "--no-pretrained", "--fold", "0")
    assert code == 0, err
    code, out, err = cli("export", "tiny/fold0", "--name", "duo", "--format", "torchscript,pt2,onnx", "--root", workplace)
    assert code == 0, err
    folder = workplace / "weights"
    assert out.splitlines() == [str(folder / "duo.pt")]
    frozen, pt2, onnx = err.splitlines()  # and nothing that exporters say
    assert "the frozen file and the eager networks differ by at most" in frozen
    for line, name in ((pt2, "duo.pt2"), (onnx, "duo.onnx")):
        assert line.startswith(f"{folder / name}: read back, ")
        assert float(line.split()[3]) < 1e-5
    assert {path.name for path in folder.glob("duo.*")} == {"duo.pt", "duo.json", "duo.pt2", "duo.onnx"}
    assert cli("export", "tiny/fold0", "--name", "duo", "--root", workplace)[0] == 0
    assert {path.name for path in folder.glob("duo.*")} == {"duo.pt", "duo.json"}


def test_an_unknown_format_is_told_at_once(cli: Cli, tmp_path: Path):
    code, out, err = cli("export", "tiny/fold0", "--name", "x", "--format", "onxx", "--root", tmp_path)
    assert (code, out) == (1, "")
    assert "no format 'onxx', expected torchscript, pt2 or onnx" in err
    assert "did you mean 'onnx'?" in err
    assert list(tmp_path.iterdir()) == []
