"""Damaged text files end in one clear error, or do no harm: never in a traceback, never in lost files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from deploy_fakes import export_tiny, noise, write_tiff
from factories import write_run
from mutations import mutations

pytestmark = pytest.mark.slow
Cli = Callable[..., tuple[int, str, str]]
COUNT = 48  # damaged versions of each file


@pytest.fixture
def root(tmp_path: Path, workplace: Path, cli: Cli) -> Path:
    """A root with a data set, three runs, weights, and a finished submission."""
    for number in range(3):
        write_run(workplace / "runs" / "seen" / f"fold{number}", {"kam/a": (10 + number, 2, 3)})
    export_tiny(workplace / "weights")
    for seed, name in enumerate("abc"):
        write_tiff(workplace / "chips" / f"{name}.tif", noise(40, 48, seed=seed))
    assert cli("submit", workplace / "chips", "--no-tune", "--root", workplace)[0] == 0
    return workplace


def hurt(cli: Cli, file: Path, seed: int, *commands: tuple[object, ...], root: Path, refused: bool = False) -> None:
    """Runs commands on a root in which one file is damaged, `COUNT` times; `refused`: none may use the file."""
    whole = file.read_bytes()
    faults = []
    for kind, damaged in mutations(whole, COUNT, seed):
        for command in commands:
            file.write_bytes(damaged)
            code, _, err = cli(*command, "--root", root)
            if code not in (0, 1) or "a fault of kit" in err or "Traceback" in err or (code and "error:" not in err):
                faults.append(f"{command[0]}, {file.name}, {kind}: exit {code}\n{err[-400:]}")
            if refused and damaged != whole and code == 0:
                faults.append(f"{command[0]}, {file.name}, {kind}: used")
    file.write_bytes(whole)
    assert not faults, f"{len(faults)} faults, first\n" + "\n".join(faults[:3])


def test_the_index(root: Path, cli: Cli):
    folder = root / "data" / "train_tier_1"
    hurt(cli, folder / "index.csv", 1, ("folds", "train_tier_1", "-k", 2), root=root, refused=True)


def test_the_settings_of_a_data_set(root: Path, cli: Cli):
    catalog = root.parent / "train_tier_1"
    command = ("prepare", catalog, "--grid", "native", "--side", 64, "--workers", 1)
    hurt(cli, root / "data" / "train_tier_1" / "settings.json", 2, command, root=root)


def test_a_record_of_the_ledger(root: Path, cli: Cli):
    catalog = root.parent / "train_tier_1"
    command = ("prepare", catalog, "--grid", "native", "--side", 64, "--workers", 1)
    hurt(cli, root / "data" / "train_tier_1" / "scenes" / "kam" / "a.json", 3, command, root=root)


@pytest.mark.parametrize("name", ["settings.json", "result.json"])
def test_a_run(root: Path, cli: Cli, name: str):
    file = root / "runs" / "seen" / "fold1" / name
    export = ("export", "seen/fold1", "--name", "again")
    hurt(cli, file, 4, ("runs",), ("compare", "seen/fold0", "seen/fold1"), export, root=root)


def test_the_progress_of_a_submission(root: Path, cli: Cli):
    """Whatever is left of it: the masks and the table come out as before."""
    folder = root / "submissions" / "tiny-chips"
    table, masks = (folder / "submission.csv").read_bytes(), {f.name: f.read_bytes() for f in folder.glob("*.tif")}
    hurt(cli, folder / ".progress.csv", 5, ("submit", root / "chips", "--no-tune"), root=root)
    shutil.rmtree(folder)
    (folder.parent / "tiny-chips.tgz").unlink()
    assert cli("submit", root / "chips", "--no-tune", "--root", root)[0] == 0
    assert (folder / "submission.csv").read_bytes() == table
    assert {f.name: f.read_bytes() for f in folder.glob("*.tif")} == masks


@pytest.mark.parametrize("name", ["index.csv", "tiny.json"])
def test_the_list_of_weights(root: Path, cli: Cli, name: str):
    commands = (("weights",), ("weights", "--json"), ("submit", root / "chips", "--no-tune"))
    hurt(cli, root / "weights" / name, 6, *commands, root=root)


def test_a_catalogue(root: Path, cli: Cli):
    catalog = root.parent / "train_tier_1"
    command = ("prepare", catalog, "--name", "fuzzed", "--grid", "native", "--side", 64, "--workers", 1)
    for file in ("catalog.json", "kam/collection.json", "kam/a/a.json", "kam/a-labels/a.geojson"):
        hurt(cli, catalog / file, 7, command, root=root)


def test_damage_is_what_it_says():
    """The campaign would pass if nothing was damaged."""
    whole = json.dumps({"a": 1, "b": [1, 2]}).encode() + b"\nx,y\n1,2\n"
    kinds = [kind for kind, damaged in mutations(whole, 80, 0) if damaged != whole]
    assert len(kinds) > 60
