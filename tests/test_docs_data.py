"""docs/data.md: its commands run, its columns, options, files, numbers and names are those of the code."""

import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from factories import write_catalog, write_footprints, write_scene
from test_docs import COMMANDS, DATA, inline, rows_below, shell

import kit
from kit.cli import printing
from kit.data.grids import grid_of, ground_m
from kit.data.tiles.tile import Skipped

CODE = inline(DATA)
Cli = Callable[..., tuple[int, str, str]]


def run(cli: Cli, line: str, folder: Path) -> str:
    """Returns what a command of the page prints."""
    code, out, err = cli(*shlex.split(line, comments=True)[1:], "--root", folder)
    assert code == 0, err
    return out


@pytest.fixture
def city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the page's sources lie: catalogues, pairs, chips and a table."""
    monkeypatch.chdir(tmp_path)
    areas = {"kam": {"a": {"seed": 1}, "b": {"seed": 2}}, "znz": {"c": {"seed": 3}, "d": {"seed": 4}}}
    for name in ("train_tier_1", "train_tier_2", "city"):
        write_catalog(tmp_path / name, areas)
    for name in ("kam_a", "kam_b"):
        polygons = write_scene(tmp_path / f"pairs/images/{name}.tif")
        write_footprints(tmp_path / f"pairs/labels/{name}.geojson", polygons)
    (tmp_path / "scenes.csv").write_text("image,labels\npairs/images/kam_a.tif,pairs/labels/kam_a.geojson\n")
    random = np.random.default_rng(0)
    for place in ("znz_05b8_r3_c7", "znz_05b8_r3_c8", "kam_a1_r0_c0"):
        for kind, pixels in (("images", random.integers(9, 255, (64, 64, 3))), ("masks", np.full((64, 64), 255))):
            (tmp_path / "chips" / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / f"chips/{kind}/{place}.png"), pixels)
    return tmp_path


def test_the_page_s_commands_run(city: Path, cli: Cli, recwarn: pytest.WarningsRecorder):
    lines = [line for line in shell(DATA) if line.startswith(("kit prepare", "kit folds")) and "://" not in line]
    assert len(lines) >= 9
    for line in lines:
        run(cli, line, city)
    chips = pd.read_csv(city / "data/chips/index.csv", dtype=str)
    assert "images/znz_05b8_r3_c7.png" in CODE
    assert set(chips["area"] + "/" + chips["scene"]) == {"znz/05b8", "kam/a1"}
    assert set(chips["gsd_m"]) == {"0.075"}
    assert {str(tier) for tier in pd.read_csv(city / "data/scenes/index.csv")["tier"]} == {"2"}
    assert not [warning for warning in recwarn if "geotransform" in str(warning.message)]  # chips have none


def test_what_the_command_makes_is_as_told(city: Path, cli: Cli, capsys: pytest.CaptureFixture[str]):
    shown = run(cli, "kit prepare train_tier_1 --name tier1 --workers 1", city)
    folder = city / "data/tier1"
    documented = [row[0].strip("`") for row in rows_below("The folder", DATA)]
    assert set(documented) - {"failed.csv"} == {path.name + "/" * path.is_dir() for path in folder.iterdir()}
    assert list((folder / "sheets").glob("*/*.png"))

    index = pd.read_csv(folder / "index.csv")
    columns = re.search(r"\| column of `index.csv` .+\n\|[-|]+\n((?:\|.+\n)+)", DATA)
    assert columns
    names = [name for line in columns[1].splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(names) == sorted(index.columns)
    skipped = (folder / "skipped.csv").read_text().splitlines()[0].split(",")
    assert skipped == list(Skipped.__dataclass_fields__)
    assert " ".join(skipped) in CODE
    assert set(json.loads((folder / "settings.json").read_text())) == {"style", "by", "k"} <= set(CODE)

    heads = [name for row in rows_below("The table", DATA) for name in re.findall(r"`(\w+)`", row[0])]
    assert heads == list(printing.COLUMNS) == shown.splitlines()[0].split()
    assert " ".join(heads) in re.sub(r" +", " ", DATA)

    snippet = re.search(r"```python\n(.+?)```", DATA, re.S)
    assert snippet
    exec(snippet[1], {})
    first = index.iloc[0]
    assert f"{first['tile']} EPSG:3857 (3, 1024, 1024)" in capsys.readouterr().out


def test_xyz_tiles_have_the_resolutions_of_the_table():
    header = re.search(r"^\| \| (`--side 1024`.+) \|$", DATA, re.M)
    assert header
    sides = [int(side) for side in re.findall(r"--side (\d+)", header[1])]
    rows = re.findall(r"^\| (z\d+) \| (.+) \|$", DATA, re.M)
    assert len(rows) == 3
    for name, cells in rows:
        *metres, square = cells.split(" | ")
        for side_px, cell in zip(sides, metres, strict=True):
            assert cell == " / ".join(f"{_ground(name, side_px, latitude):.3f}" for latitude in (0, 6))
        assert square == " / ".join(f"{256 * _ground(name, 256, latitude):.1f}" for latitude in (0, 6))


def _ground(name: str, side_px: int, latitude: float) -> float:
    """Metres per pixel of the tile at a latitude."""
    grid = grid_of(name, side_px, None)  # of XYZ tiles no scene is asked
    northing = 6378137.0 * math.asinh(math.tan(math.radians(latitude)))
    return ground_m(grid, int((grid.top - northing) / grid.y_pixel / side_px), 2 ** int(name[1:]) // 2)


def test_the_counts_add_up():
    *areas, whole = rows_below("The challenge", DATA)
    numbers = [(int(scenes), float(share.split()[0]), int(n.replace(",", ""))) for _, scenes, share, n in areas]
    total = int(whole[3].replace(",", ""))
    assert sum(scenes for scenes, _, _ in numbers) == int(whole[1]) == 31
    assert sum(n for _, _, n in numbers) == pytest.approx(total, abs=60)  # the shares are rounded
    assert all(n == pytest.approx(share / 100 * total, abs=8) for _, share, n in numbers)
    documented = re.search(r"takes ([\d.]+) to ([\d.]+) MB, so tier 1 at 0.1 m (\d+) to (\d+) GB", DATA)
    assert documented
    low, high, low_gb, high_gb = map(float, documented.groups())
    assert (round(total * low / 1000), round(total * high / 1000)) == (low_gb, high_gb)
    assert round(256e6 / 102.4**2, -2) == 24_400  # km² of tier 2 in tiles of 102.4 m
    assert f"{(0.1 / _ground('z19', 1024, 6)) ** 2:.1f} times as many" in DATA
    assert "24,400 full tiles" in DATA


def test_every_option_is_told():
    for name in ("prepare", "folds"):
        known = {text for parameter in COMMANDS[name].params for text in parameter.opts if text.startswith("-")}
        documented = set(re.findall(r"(?<![\w-])(-k|--[a-z-]+)", DATA))
        assert known - {"--root", "--help"} <= documented, name


def test_variables_and_ways_are_those_of_the_code():
    code = "".join(file.read_text() for file in Path(kit.__file__).parent.glob("data/**/*.py"))
    for name in re.findall(r"`(AWS_\w+)", DATA):
        assert f'"{name}"' in code, name
    options = {parameter.name: parameter.default for parameter in COMMANDS["prepare"].params}
    assert rows_below("Image formats", DATA)[0][0] == f"`{options['images']}`"
    assert f"{options['min_valid']:g} by default" in DATA
    for name in ("boundary", "contact"):
        assert f"({options[name]}" in DATA
