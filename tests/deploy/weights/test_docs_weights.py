"""docs/weights.md: it shows the examples; its commands, options, keys, files and messages are those of the code."""

import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from deploy_fakes import TinyNet, left_in
from test_docs import COMMANDS, DOCS, inline, options, rows_below

from kit.deploy.freeze import formats
from kit.deploy.freeze.ensemble import METHODS, VIEWS
from kit.deploy.weights import torchscript
from kit.deploy.weights.card import Card, Member, Postprocess
from kit.pipeline.export import Exported

PAGE = (DOCS / "weights.md").read_text()
ROOT = DOCS.parent
SHOWN = dict(re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.+?)```", PAGE, re.S))


def names(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)


def test_the_examples_are_shown_as_they_are():
    assert SHOWN.keys() == {"python/predict.py", "cpp/predict.cpp", "onnxruntime/predict.py"}
    for name, text in SHOWN.items():
        assert (ROOT / "examples" / name).read_text() == text, name


@pytest.mark.parametrize("code", [code for code in inline(PAGE) if re.match(r"kit |--", code)])
def test_commands_and_options_in_the_text_exist(code: str):
    words = code.removeprefix("kit ").split()
    if words[0].startswith("--"):
        words = [next((name for name in COMMANDS if words[0] in options(name)), "submit"), *words]
    missing = {word for word in words[1:] if word.startswith("-")} - options(words[0])
    assert not missing


def test_links_lead_to_files():
    linked = re.findall(r"\]\((\.\./[^)#]+)\)", PAGE)
    assert len(linked) == len(SHOWN) + 1
    assert all((DOCS / path).is_file() for path in linked)


def test_the_interface_is_as_told(tiny_weights: Exported):
    model = torchscript.load(tiny_weights.path, "cpu")
    image, shape = torch.zeros(3, 4, 33, 20, dtype=torch.uint8), {"N": 3, "M": 2, "H": 33, "W": 20, "1": 1}
    calls = {call: said for calls, said in rows_below("The file", PAGE) for call in re.findall(r"`(.+?)`", calls)}
    assert calls.keys() == {"model(image)", *(f"model.{method}(image)" for method in METHODS)}
    for call, said in calls.items():
        found = eval(call, {"model": model, "image": image})
        dtype, axes = re.search(r"(uint8|float32) \((.+?)\)", said).groups()
        assert found.dtype == getattr(torch, dtype), call
        assert found.shape == tuple(shape[axis] for axis in axes.split(", ")), call


def test_the_card_is_as_told(
    tiny_weights: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rows = {name: said for cell, said in rows_below("The card", PAGE) for name in names(cell)}
    assert rows.keys() == {field.name for field in fields(Card)} | {"file_sha256"}
    assert {field.name for field in fields(Member)} == set(names(rows["members"])) - {"model.members"}
    assert {field.name for field in fields(Postprocess)} == set(names(rows["postprocess"]))
    assert set(names(rows["views"])) == VIEWS.keys()
    shutil.copytree(tiny_weights.path.parent, tmp_path / "weights")
    (tmp_path / "weights/tiny.pt").rename(tmp_path / "weights/lite0.pt")
    monkeypatch.chdir(tmp_path)
    snippet = re.search(r"```python\n(import json\n.+?)```", PAGE, re.S)
    assert snippet
    exec(snippet[1], {})
    assert capsys.readouterr().out == "0.15 2\n"


def test_pt2_without_torchscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    snippet = re.search(r"```python\n(import torch\n\nprogram.+?)```", PAGE, re.S)
    assert snippet
    shape = re.search(r"# (\(.+\))", snippet[1])
    assert shape
    (tmp_path / "weights").mkdir()
    formats.write("pt2", tmp_path / "weights/lite0.pt2", [TinyNet().eval()], "none", 32, "{}")
    monkeypatch.chdir(tmp_path)
    exec(snippet[1], {})
    assert capsys.readouterr().out == f"torch.Size([{shape[1][1:-1]}])\n"


def test_the_files_are_as_told(tiny_weights: Exported):
    documented = {name for cell, _ in rows_below("The folder", PAGE) for name in names(cell)}
    made = {path.name.replace("tiny.", "NAME.") for path in left_in(tiny_weights.path.parent)}
    assert {"NAME.pt", "NAME.json", "index.csv"} <= made <= documented


def test_the_views_cost_what_is_told():
    documented = {names(cell)[0]: int(times) for cell, _, times in rows_below("Making weights", PAGE)}
    assert documented == {name: len(codes) for name, codes in VIEWS.items()}
