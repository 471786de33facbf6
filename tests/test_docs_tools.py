"""docs/tools.md and docs/install.md: commands, links, metadata keys and messages are those of the code."""

import inspect
import re

import pytest
from test_docs import COMMANDS, DOCS, options, rows_below, shell

from kit.deploy.freeze import gis
from kit.deploy.weights import card
from kit.deploy.weights.card import CLASSES, Card, Member

PAGES = {name: (DOCS / f"{name}.md").read_text() for name in ("tools", "install")}
CARD = Card(
    "0", "r", (Member("r", 0, 0, "ab", None),), None, CLASSES, 0.1, (), (), "none", 32, "", "", "2", "now", 0, 1
)  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_links_exist(page: str):
    for line in shell(PAGES[page]):
        words = line.split()
        assert words[:1] == ["kit"]
        assert words[1] in COMMANDS
        assert not {word for word in words if word.startswith("--")} - options(words[1])
    for path in re.findall(r"\]\(((?!https?:)[^)#]+)", PAGES[page]):
        assert (DOCS / path).exists(), path


def test_metadata_keys_are_listed():
    listed = [re.findall(r"`(.+?)`", cell)[0] for cell, _ in rows_below("QGIS and WebODM", PAGES["tools"])[:8]]
    assert listed == [*gis.gis_metadata(CARD, 512), "card.json"]


def test_messages_are_those_of_the_code():
    messages = [cell.strip("`") for cell in re.findall(r"^\| (`(?:the card|tiles of).+?`) \|", PAGES["tools"], re.M)]
    assert len(messages) == 3
    source = (
        (inspect.getsource(gis) + inspect.getsource(card))
        .replace("{SMALLEST_TILE_PX}", "64")
        .replace("{LARGEST_TILE_PX}", "4096")
    )
    for message in messages:
        pieces = [re.escape(piece) for piece in re.split(r"\.\.\.", message)]
        assert re.search(r"(?:\{[^}]+\}|.)*?".join(pieces), source), message
