"""`kit report`: one page that needs nothing else, and says what was measured."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from factories import TINY_RECIPE, write_scored_run

from kit.paths import Paths
from kit.report.evidence import collect
from kit.report.figures import INK, SERIES, bars, curves, svg
from kit.report.page import MARK, grid, page, paragraph, picture
from kit.report.sections import calibration
from kit.system import energy

pytestmark = pytest.mark.usefixtures("one_thread")

Cli = Callable[..., tuple[int, str, str]]
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Collects texts by tag, and checks that tags are closed in order and that nothing is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:image/jpeg;base64,", "#")), value
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())


def read(file: Path) -> Reader:
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    assert not reader.open
    return reader


def write_folds(root: Path, recipe: str, noise: float, seed: int) -> None:
    """Writes two finished folds of a recipe, which is written too where it is missing."""
    file = root / f"recipes/{recipe}.py"
    if not file.is_file():
        file.write_text(TINY_RECIPE.replace("A tiny recipe", f"The {recipe} recipe"))
    for fold in (0, 1):
        write_scored_run(root, f"{recipe}/fold{fold}", noise, seed + fold)


@pytest.fixture
def root(workplace: Path) -> Path:
    write_folds(workplace, "tiny", 0.1, 0)
    return workplace


def test_the_page(root: Path, cli: Cli):
    write_folds(root, "other", 0.3, 5)
    code, out, err = cli("report", "tiny", "other/fold0", "--view-tiles", 2, "--root", root)
    assert code == 0, err
    file = root / "reports/tiny-other-fold0.html"
    assert out.splitlines() == [str(file)]
    made = read(file)
    assert made.texts["h1"] == ["Report of tiny, other"]
    assert made.texts["h2"] == [
        "Scores", "Calibration", "Where it fails", "What a threshold changes", "What a member changes",
        "What views change", "Worst tiles", "Runs",
    ]  # fmt: skip
    text = file.read_text()
    assert text.count("<svg") == 5
    assert text.count("data:image/jpeg") > 2
    cells = made.texts["td"]
    for name in ("pooled", "kam", "tiny/fold0", "flips", "d4"):
        assert name in cells, name
    assert {"new area", "new scene", "same scene"} & set(cells)
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", text)
    assert not re.search(r"url\((?!#)", text)
    first = file.read_bytes()
    code, *_ = cli("report", "tiny", "other/fold0", "--view-tiles", 0, "--root", root, "--out", root / "again.html")
    assert code == 0
    again = (root / "again.html").read_text()
    assert "Not measured: --view-tiles 0." in again
    assert first.decode().split("<h2>What views")[0] == again.split("<h2>What views")[0]


def test_scores_are_those_of_the_runs(root: Path):
    (evidence,) = collect(["tiny"], Paths(root))
    tiles = evidence.candidate.tiles
    assert evidence.pixels.tolist() == tiles.loc[evidence.tiles["tile"], ["tp", "fp", "fn"]].to_numpy().tolist()
    assert evidence.levels.sum() == sum(counts.levels.sum() for counts in evidence.counts)
    assert set(evidence.tiles["run"]) == {"tiny/fold0", "tiny/fold1"}
    assert evidence.notices == ()


def test_kinds_follow_what_was_trained_on(root: Path):
    """Held out with its area, with its scene, or beside tiles of its scene."""
    from kit.report.evidence import _kinds

    (evidence,) = collect(["tiny/fold0"], Paths(root))
    held_out = evidence.tiles.head(1)
    area, scene = held_out[["area", "scene"]].iloc[0]
    seen = held_out.assign(area="elsewhere")
    assert _kinds(held_out, seen) == ["new area"]
    assert _kinds(held_out, seen.assign(area=area, scene=f"{scene}2")) == ["new scene"]
    assert _kinds(held_out, held_out) == ["same scene"]


def test_what_the_data_no_longer_say(root: Path, cli: Cli):
    """An index that changed, a recipe that changed, and folds that are not finished: said on the page."""
    index = next((root / "data").glob("*/index.csv"))
    index.write_text(index.read_text() + "\n")
    index.with_name("index.sha256").unlink()
    (root / "recipes/tiny.py").write_text((root / "recipes/tiny.py").read_text() + "\n# changed")
    (root / "runs/tiny/fold2").mkdir()
    code, _, err = cli("report", "tiny", "--root", root)
    assert code == 0, err
    text = (root / "reports/tiny.html").read_text()
    assert "has changed since: what training saw" in text
    assert re.search(r"tiny: not measured: .*tiny\.py has changed since tiny/fold\d was trained", text)
    assert "left out: tiny/fold2" in text


def test_every_text_is_escaped(root: Path, cli: Cli):
    settings = root / "runs/tiny/fold0/settings.json"
    settings.write_text(settings.read_text().replace('"recipe_path": ""', '"recipe_path": "<script>alert(1)</script>"'))
    assert cli("report", "tiny", "--view-tiles", 0, "--root", root)[0] == 0
    text = (root / "reports/tiny.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    read(root / "reports/tiny.html")
    strange = '<b onload="x">&amp;\''
    for made in (page(strange, [(strange, [paragraph(strange)])]), grid([strange], [[strange]]), picture("", strange)):
        assert "<b" not in made.replace("<body", "")
        assert 'onload="x"' not in made


def test_refusals(root: Path, cli: Cli):
    (root / "mine.html").write_text("<p>mine</p>")
    code, _, err = cli("report", "tiny", "--root", root, "--out", root / "mine.html")
    assert code == 1
    assert "was not written by kit report" in err
    assert (root / "mine.html").read_text() == "<p>mine</p>"
    for names, message in ((["none"], "no run 'none' here"), (["tiny/fold7"], "no run")):
        code, _, err = cli("report", *names, "--root", root)
        assert code == 1
        assert message in err
    next((root / "runs/tiny/fold0/oof").iterdir()).write_bytes(b"no")
    code, _, err = cli("report", "tiny", "--root", root)
    assert code == 1
    assert "cannot be read" in err
    assert not (root / "reports").exists()


def test_calibration_by_hand():
    levels = np.zeros((2, 256), np.int64)
    levels[:, 51], levels[:, 204] = (80, 20), (20, 80)  # as said: 0.2 and 0.8
    said, built, error = calibration(levels)
    assert (said, built) == (pytest.approx([0.2, 0.8]), [0.2, 0.8])
    assert error == pytest.approx(0)
    levels[:, 204] = (80, 20)
    assert calibration(levels)[2] == pytest.approx(0.3)
    assert calibration(np.zeros((2, 256), np.int64))[2] == 0


def test_plots_take_the_page_s_colours():
    drawn = svg(bars(["a", "b"], {"$one$": [0.5, float("nan")], "<two>": [0.1, 1.0]}, "x", "y"), "Bars & <more>")
    empty = svg(bars(["a", "b"], {"one": [0.5, float("nan")]}, "x", "y"), "x")
    assert ">a<" in empty
    assert ">b<" not in empty
    ElementTree.fromstring(drawn)
    assert "currentColor" in drawn
    assert "var(--series-1)" in drawn
    assert not [colour for colour in (INK, *SERIES) if colour in drawn]
    assert "$one$" in drawn
    assert "&lt;two&gt;" in drawn
    line = curves({"a": ([0, 1], [0, 1])}, "x", "y", diagonal=True)
    assert svg(line, "one") == svg(line, "one") != svg(line, "other")


def test_energy_is_the_sum_of_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    assert energy.cpu_energy_j() is None
    for name, value in (("intel-rapl:0", "2500000"), ("intel-rapl:1", "500000"), ("intel-rapl:0:0", "9")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(value)
    assert energy.cpu_energy_j() == 3.0
    (tmp_path / "intel-rapl:1/energy_uj").unlink()
    assert energy.cpu_energy_j() is None


def test_the_mark_is_at_the_top():
    assert MARK in page("x", [])[:200]
