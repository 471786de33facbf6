"""`kit prepare --part`: scenes cut by several commands make the data set of one."""

from pathlib import Path

import pytest
from factories import write_catalog

from kit.data.tiles.options import PrepareOptions, Style
from kit.data.tiles.prepare import prepare, prepare_part
from kit.paths import Paths
from kit.system.workers import on_cluster

OPTIONS = PrepareOptions("set", by="scene", k=2, workers=1, style=Style(grid="native", side_px=48))
AREAS = {"kam": {"a": {"seed": 1}, "b": {"seed": 2}}, "znz": {"c": {"seed": 3}}}


def files(root: Path) -> dict[str, bytes]:
    folder = root / "data" / "set"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def test_parts_and_a_last_call_give_the_data_set_of_one_call(tmp_path: Path):
    catalog = write_catalog(tmp_path / "train", AREAS)
    prepare(catalog, Paths(tmp_path / "one"), OPTIONS)
    root = Paths(tmp_path / "two")
    assert prepare_part(catalog, root, OPTIONS, (2, 2))[1] == 1
    assert not (root.data("set") / "index.csv").exists()
    assert prepare_part(catalog, root, OPTIONS, (1, 2))[1] == 2
    assert prepare(catalog, root, OPTIONS).kept == 3
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.slow
def test_a_cluster_cuts_the_same_data_set(tmp_path: Path):
    catalog = write_catalog(tmp_path / "train", AREAS)
    prepare(catalog, Paths(tmp_path / "one"), OPTIONS)
    with on_cluster("local:2"):
        prepare(catalog, Paths(tmp_path / "two"), OPTIONS)
    assert files(tmp_path / "one") == files(tmp_path / "two")
