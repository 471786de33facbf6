"""What `kit prepare` tells at its end."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

Cli = Callable[..., tuple[int, str, str]]


def cells(line: str, head: str) -> dict[str, str]:
    """Returns a line of the table by column: columns begin where their names do."""
    starts = [*(head.index(name) for name in head.split()), None]
    return {name: line[a:b].strip() for name, a, b in zip(head.split(), starts[:-1], starts[1:], strict=True)}


def test_the_last_row_adds_the_scenes_up(catalog: Path, tmp_path: Path, cli: Cli):
    options = ("--grid", "native", "--side", 32, "--min-valid", "0.9", "--root", tmp_path)
    _, shown, _ = cli("prepare", catalog, *options)
    head, *lines = shown.splitlines()[:-1]
    *scenes, whole = [cells(line, head) for line in lines]
    assert whole["scene"] == "all"
    for name in ("tiles", "skipped", "failed", "footprints", "crossing", "beyond", "repaired", "dropped"):
        assert sum(int(row[name]) for row in scenes) == int(whole[name]), name
    assert sum(int(part.split()[0]) for part in whole["why"].split("; ")) == int(whole["skipped"]) > 0
    _, out, _ = cli("prepare", catalog, *options, "--json")
    rows = json.loads(out)
    assert [f"{row['area']}/{row['scene']}" for row in rows] == [row["scene"] for row in scenes]
    km2 = sum(row["km2"] for row in rows)
    built = sum(row["km2"] * row["building_fraction"] for row in rows)
    assert whole["buildings"] == f"{built / km2:.1%}"


def test_chips_of_unknown_resolution_have_a_share_of_buildings(tmp_path: Path, cli: Cli):
    mask = np.zeros((64, 64), np.uint8)
    mask[:16] = 255
    for kind, pixels in (("images", np.full((64, 64, 3), 99, np.uint8)), ("masks", mask)):
        (tmp_path / "chips" / kind).mkdir(parents=True)
        for name in ("a", "b"):
            cv2.imwrite(str(tmp_path / f"chips/{kind}/{name}.png"), pixels)
    _, shown, _ = cli("prepare", tmp_path / "chips", "--by", "tile", "-k", 2, "--root", tmp_path)
    head, line, _ = shown.splitlines()
    row = cells(line, head)
    assert (row["km2"], row["buildings"]) == ("0.000", "25.0%")
