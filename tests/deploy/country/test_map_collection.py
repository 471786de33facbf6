"""`kit map COLLECTION` as people call it, and docs/cluster.md."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from country_fakes import SMALL, Country, draw_country, export_brightness
from test_docs import COMMANDS, DOCS, inline, rows_below

from kit.deploy.country.cell_rows import write_rows
from kit.deploy.country.cells import MOST_GROWN, MOST_WINDOWS
from kit.deploy.country.merge import LEAST_ZOOM, MOST_ZOOM
from kit.deploy.country.records import EMPTY, FAILED, MAPPED

Cli = Callable[..., tuple[int, str, str]]
PAGE = (DOCS / "cluster.md").read_text()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    export_brightness(folder / "weights")
    return folder


@pytest.fixture(scope="module")
def country(tmp_path_factory: pytest.TempPathFactory) -> Country:
    """One scene away from meridians. Read only."""
    return draw_country(tmp_path_factory.mktemp("scenes"), per_side=1, side_px=120, seams=(32.6,))


def test_plan_part_and_merge(cli: Cli, root: Path, country: Country):
    command = ("map", country.folder, *SMALL, "--root", root, "--name", "town", "--cell", 100)
    code, out, err = cli(*command, "--part", "1/2")
    assert code == 1
    assert "no plan in" in err
    code, out, err = cli(*command, "--plan")
    assert code == 0, err
    plan = dict(line.rsplit(maxsplit=1) for line in out.splitlines()[:-1])
    assert plan["scenes"] == "1"
    assert {"hours, this machine", "hours, 10 workers", "hours, 100 workers", "disk, GB", "gigapixels"} <= set(plan)
    code, out, err = cli(*command, "--plan", "--workers", 25)
    assert "hours, 25 workers" in out
    assert "hours, 100 workers" not in out
    assert out.splitlines()[-1] == str(root / "maps" / "town" / "plan.json")
    code, _, err = cli(*command, "--part", "1/2", "--workers", 1)
    assert code == 0, err
    code, _, err = cli(*command, "--merge")
    assert code == 1
    assert "of part 2/2" in err
    code, _, err = cli(*command, "--part", "2/2", "--workers", 1, "--square")
    assert code == 1
    assert "other options: options.square" in err
    assert cli(*command, "--part", "2/2", "--workers", 1)[0] == 0
    code, out, err = cli(*command, "--merge")
    assert code == 0, err
    assert f"{len(country.houses)} buildings" in err
    assert out.splitlines()[-1] == str(root / "maps" / "town" / "town.parquet")
    made = {path.name for path in (root / "maps" / "town").iterdir() if not path.name.startswith(".")} - {"parts"}
    listed = {
        name.replace("NAME", "town").strip("/") for row in rows_below("Its files", PAGE) for name in inline(row[0])
    }
    assert made == listed


def test_wrong_usage(cli: Cli, root: Path, country: Country):
    scene = country.scenes[0]
    assert cli("map", scene, "--root", root, "--plan")[0] == 2
    code, _, err = cli("map", country.folder, "--root", root, "--part", "3/2", *SMALL)
    assert code == 2
    assert "the first part is 1" in err
    assert cli("map", country.folder, "--root", root, "--part", "1/2", "--merge", *SMALL)[0] == 2
    code, _, err = cli("map", country.folder, "--root", root, "--cluster", "head", *SMALL)
    assert code == 1
    assert "no cluster 'head'" in err


def test_the_page_tells_what_the_code_does(tmp_path: Path):
    options = {text for command in COMMANDS.values() for p in command.params for text in (*p.opts, *p.secondary_opts)}
    for code in inline(PAGE):
        for option in re.findall(r"(?<!\S)--[a-z-]+", code):
            assert option in options | {"--nthreads", "--no-nanny"}, code
    page = " ".join(PAGE.split())
    write_rows(tmp_path / "m.parquet", [], with_seam=False)
    names = pq.read_schema(tmp_path / "m.parquet").names
    assert [row[0].strip("`") for row in rows_below("Fields of the layer", PAGE)] == [
        name for name in names if name != "geometry"
    ]
    assert f"at most {MOST_WINDOWS} windows" in page
    assert MOST_GROWN == 2
    assert "up to two rows" in page
    assert f"zooms {LEAST_ZOOM} to {MOST_ZOOM}" in page
    assert f"`{MAPPED}`, `{EMPTY}` or `{FAILED}` with the reason" in page


def test_messages_of_the_page_are_those_of_the_code():
    sources = " ".join(re.sub(r"\s+", " ", path.read_text()) for path in (DOCS.parent / "kit").rglob("*.py"))
    for message, *_ in rows_below("When something goes wrong", PAGE):
        for code in inline(message):
            for words in filter(None, (part.strip(" :,") for part in code.split("..."))):
                assert words in sources, words


def test_the_refused_scenes_are_in_the_coverage(cli: Cli, root: Path, country: Country, tmp_path: Path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    (folder / "a.tif").hardlink_to(country.scenes[0])
    (folder / "broken.tif").write_bytes(b"II*\0nothing")
    code, _, err = cli("map", folder, *SMALL, "--root", root, "--name", "half", "--workers", 1)
    assert code == 0, err
    assert "left out: broken.tif: cannot read" in err
    coverage = json.loads((root / "maps" / "half" / "half_coverage.geojson").read_text())
    assert [scene["scene"] for scene in coverage["refused"]] == ["broken.tif"]
