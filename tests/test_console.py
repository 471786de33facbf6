import re
import threading

import pytest

from kit import console
from kit.console import Meter, failure, meter, printable, result, say, table, track


def test_progress_is_plain_when_not_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(console, "PLAIN_EVERY_S", -1.0)
    assert list(track(["a", "b", "c"], "cut tiles")) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"^cut tiles 1/3, [\d.]+/s, \d+ s left$", err, re.M)
    assert re.search(r"^cut tiles 3/3, [\d.]+/s$", err, re.M)
    assert "\x1b" not in err


def test_long_work_is_not_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Lines come from a thread while an item is in work, and end with the meter."""
    monkeypatch.setattr(console, "SILENT_S", 0.001)
    lines = threading.Semaphore(0)
    monkeypatch.setattr(console, "say", lambda text: (print(text), lines.release()))
    with meter("cut tiles", 3):
        for _ in range(3):
            assert lines.acquire(timeout=60)
    said = capsys.readouterr().out.splitlines()
    assert len(said) >= 3
    assert set(said) == {"cut tiles 0/3, 0.0/min"}


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (1, "draw 3/9, 3.0/s, 2 s left"),
        (59, "draw 3/9, 3.1/min, 118 s left"),
        (600, "draw 3/9, 0.3/min, 20 min left"),
        (6000, "draw 3/9, 0.0/min, 3.3 h left"),
    ],
)
def test_speeds_and_times_have_units_to_read(
    seconds: float, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    running = Meter("draw", 9)
    running.done = 3
    monkeypatch.setattr(running, "rate", lambda: 3 / seconds)
    running.close()
    assert capsys.readouterr().err == line + "\n"


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


def test_a_narrow_bar_keeps_counts_and_times(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    with meter("lite0 fold 0", 1200) as running:
        running.advance(345, "epoch 2/12 loss 0.6444 best jaccard 0.0312")
        running.bar.refresh()
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().err).replace("\r", "\n").splitlines()
    last = [line for line in shown if "345" in line][-1]
    assert re.search(r" 345/1200 [\d.]+/s 0:00:00 left \S+ epoch 2/12", last.replace("  ", " ")), last
    assert len(last) <= 80


def test_notebooks_get_lines_on_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Where rich finds IPython, it would show each line as HTML."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    console.say("tune networks 1/1")
    assert capsys.readouterr() == ("", "tune networks 1/1\n")


def test_piped_tables_cut_nothing(capsys: pytest.CaptureFixture[str]):
    table(("recipe", "purpose"), [("lite0", "x" * 300), ("quickstart", 0.25)])
    assert capsys.readouterr().out.splitlines() == [
        "recipe      purpose",
        f"lite0       {'x' * 300}",
        "quickstart  0.2500",
    ]


def test_a_narrow_terminal_cuts_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    columns = [f"column{number}" for number in range(9)]
    table(["scene", *columns], [["kum/kum_a", *(f"value{number}" for number in range(9))]])
    out = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "…" not in out
    assert "kum/kum_a" in out
    assert max(map(len, out.splitlines())) <= 80


def test_errors_go_to_stderr_with_their_hint(capsys: pytest.CaptureFixture[str]):
    failure("no recipe '[lite]'", "did you mean 'lite0'?")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: no recipe '[lite]'\nhint:  did you mean 'lite0'?\n"


def speak(title: str = "") -> None:
    """Says everything that kit can say when nothing is wrong."""
    say("training")
    result("/root/weights/tiny.pt")
    table(("fold", "score"), [(0, 0.5)], title)
    with meter("train", 4) as bar:
        bar.skip(1)
        bar.line("epoch train validation")
        bar.advance(2, "loss 0.5")
        bar.total += 1
    list(track([1, 2], "cut tiles"))


@pytest.mark.parametrize("terminal", [False, True])
def test_the_first_of_several_processes_speaks_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
):
    monkeypatch.setattr(console, "PLAIN_EVERY_S", -1.0)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(console, "_only_errors", True)
    speak()
    assert capsys.readouterr() == ("", "")
    failure("rank 1 has no memory left", "fewer crops")
    out, err = capsys.readouterr()
    assert out == ""
    assert "error:" in err
    assert "rank 1 has no memory left" in err
    assert "fewer crops" in err
    monkeypatch.setattr(console, "_only_errors", False)
    speak()
    out, err = capsys.readouterr()
    for text in ("/root/weights/tiny.pt", "0.5000"):
        assert text in out
    for text in ("training", "epoch train validation", "loss 0.5", "cut tiles"):
        assert text in err


def test_a_line_stands_above_the_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    bar = Meter("train", 4)
    bar.line("   epoch    train [validation]")
    bar.close()
    assert capsys.readouterr().err.splitlines()[0] == "   epoch    train [validation]"


def test_what_was_done_before_took_no_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    bar = Meter("train", 100)
    bar.skip(60)
    now[0] += 10
    bar.advance(20)
    assert bar.rate() == 2
    bar.close()
    assert capsys.readouterr().err == "train 80/100, 2.0/s, 10 s left\n"


@pytest.mark.parametrize("name", ["\x1b[2Jbad", "a\rb", "a\u202eb", "a\u2028b", "a\x9bb", "a\udcffb", "a\x00b"])
def test_names_never_steer_the_terminal(capsys: pytest.CaptureFixture[str], name: str):
    say(name)
    result(name)
    failure(name, name)
    table(("chip",), [(name,)])
    with meter("read", 1) as bar:
        bar.advance(note=name)
    shown = "".join(capsys.readouterr())
    assert name not in shown
    assert "\\x" in shown or "\\u" in shown or "\\r" in shown


def test_a_name_in_any_script_is_shown_as_it_is():
    assert printable("Zürich, 東京, كمبالا\n") == "Zürich, 東京, كمبالا\n"


def test_a_name_is_no_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    with meter("read", 1) as bar:
        bar.advance(note="[/]a[red]b")
    table(("chip",), [("[/]a[red]b",)])
    assert "[/]a[red]b" in capsys.readouterr().out
