import re

import pytest

from kit import console
from kit.console import Meter, failure, table, track


def test_progress_is_plain_when_not_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(console, "PLAIN_EVERY_S", -1.0)
    assert list(track(["a", "b", "c"], "cut tiles")) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"^cut tiles 1/3, [\d.]+/s, \d+ s left$", err, re.M)
    assert re.search(r"^cut tiles 3/3, [\d.]+/s$", err, re.M)
    assert "\x1b" not in err


def test_a_terminal_gets_a_live_bar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bar = Meter("train", 10)
    bar.advance(4, "loss 0.5")
    bar.total += 2
    bar.advance(1)
    assert bar.bar is not None
    shown = bar.bar.tasks[0]
    assert (shown.completed, shown.total, shown.fields["note"]) == (5, 12, "loss 0.5")
    bar.close()


def test_piped_tables_cut_nothing(capsys: pytest.CaptureFixture[str]):
    table(("recipe", "purpose"), [("lite0", "x" * 300), ("quickstart", 0.25)])
    assert capsys.readouterr().out.splitlines() == [
        "recipe      purpose",
        f"lite0       {'x' * 300}",
        "quickstart  0.2500",
    ]


def test_errors_go_to_stderr_with_their_hint(capsys: pytest.CaptureFixture[str]):
    failure("no recipe '[lite]'", "did you mean 'lite0'?")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: no recipe '[lite]'\nhint:  did you mean 'lite0'?\n"
