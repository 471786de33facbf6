"""`kit export`: earlier weights of the name; recipes that changed or lie elsewhere; damaged runs; closed folders."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from factories import write_run
from safetensors.torch import load_file, save_file

from kit.deploy.weights.load import load_weights
from kit.paths import Paths
from kit.system.files import sha256_of
from kit.training.fit import rebuild
from kit.training.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

Cli = Callable[..., tuple[int, str, str]]
FOLDS = ("tiny/fold0", "tiny/fold1")


@pytest.fixture
def root(workplace: Path) -> Path:
    """A root with two finished runs of the recipe `tiny`."""
    model = rebuild(load_recipe("tiny", Paths(workplace))).model
    for run in FOLDS:
        folder = workplace / "runs" / run
        known = {"recipe": "tiny", "recipe_path": "", "data": "train_tier_1", "gsd_m": 1.0}
        write_run(folder, {"kam/a": (1, 1, 1)}, **known)
        save_file(model.state_dict(), folder / "best.safetensors")
    return workplace


@pytest.mark.parametrize(("before", "after", "gone"), [(FOLDS, FOLDS[:1], FOLDS[1:]), (FOLDS[:1], FOLDS, ())])
def test_members_that_go_are_told(
    root: Path, cli: Cli, before: Sequence[str], after: Sequence[str], gone: Sequence[str]
):
    options = ("--name", "tiny", "--views", "none", "--root", root)
    code, _, err = cli("export", *before, *options)
    assert code == 0, err
    assert "the earlier tiny.pt" not in err
    code, _, err = cli("export", *after, *options)
    assert code == 0, err
    assert ("the earlier tiny.pt also held tiny/fold1, this one does not" in err) == bool(gone)
    assert ("kit export tiny/fold0 tiny/fold1 --name tiny" in err) == bool(gone)


def change(folder: Path, file: str, **values: object) -> None:
    """Writes keys of a run's JSON file."""
    record = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(record | values))


def export(cli: Cli, root: Path) -> tuple[int, str, str]:
    return cli("export", "tiny/fold0", "--name", "solo", "--views", "none", "--root", root)


def refused(cli: Cli, root: Path) -> str:
    """Returns the error of an export that must fail and write nothing."""
    code, out, err = export(cli, root)
    assert (code, out) == (1, "")
    assert "a fault of kit" not in err
    assert not list(root.glob("weights/solo*"))
    return err


def test_the_recipe_that_settings_name_is_not_run(root: Path, cli: Cli, tmp_path: Path):
    """A run folder may come from somebody else: its recipe is found by name, in the user's own folders."""
    evil = tmp_path / "evil.py"
    evil.write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'canary')!r}).touch()\n")
    run = root / "runs/tiny/fold0"
    change(run, "settings.json", recipe_path=str(evil))
    assert export(cli, root)[0] == 0
    (root / "weights/solo.pt").unlink()
    (root / "weights/solo.json").unlink()
    for name in (str(evil), "evil", "../evil", "../../evil.py"):
        change(run, "settings.json", recipe=name)
        code, _, err = export(cli, root)
        assert code == 1
        assert f"was trained with the recipe {name!r}, which is neither in {root / 'recipes'} nor installed" in err
        assert "copy the recipe's file into" in err.splitlines()[-1]
    assert not (tmp_path / "canary").exists()


def test_a_recipe_that_has_changed_since(root: Path, cli: Cli):
    """The same shapes of tensors may be another network."""
    run, recipe = root / "runs/tiny/fold0", root / "recipes/tiny.py"
    change(run, "settings.json", recipe_sha256=load_recipe("tiny", Paths(root)).sha256)
    assert export(cli, root)[0] == 0
    for file in root.glob("weights/solo*"):
        file.unlink()
    recipe.write_text(recipe.read_text() + "\n# another thought\n")
    err = refused(cli, root)
    assert "recipes/tiny.py has changed since tiny/fold0 was trained" in err
    assert "kit run tiny --restart" in err.splitlines()[-1]


def test_damaged_weights_of_a_run(root: Path, cli: Cli):
    run = root / "runs/tiny/fold0"
    best = run / "best.safetensors"
    change(run, "result.json", best_sha256=sha256_of(best))
    assert export(cli, root)[0] == 0
    assert load_weights(root / "weights/solo.pt").card.members[0].sha256 == sha256_of(best)
    for file in root.glob("weights/solo*"):
        file.unlink()
    data = bytearray(best.read_bytes())
    data[-100] ^= 4
    best.write_bytes(data)
    err = refused(cli, root)
    assert f"best.safetensors is damaged: sha256 {sha256_of(best)[:12]}..., expected " in err
    assert "kit run tiny --fold 0 --restart" in err.splitlines()[-1]
    best.unlink()
    assert "tiny/fold0 has no best.safetensors" in refused(cli, root)


def test_weights_of_a_run_that_are_nan(root: Path, cli: Cli):
    best = root / "runs/tiny/fold0/best.safetensors"
    tensors = load_file(best)
    name = next(name for name, tensor in tensors.items() if name.endswith("weight") and tensor.dim() == 4)
    tensors[name][0] = float("nan")
    save_file(tensors, best)
    err = refused(cli, root)
    assert "solo: a network holds weights that are NaN or infinite" in err
    assert "lower learning rate" in err.splitlines()[-1]


@pytest.mark.parametrize("obstacle", ["a file", "a dangling link"])
def test_a_folder_that_cannot_be_written_is_found_at_once(
    root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, obstacle: str
):
    monkeypatch.setattr("kit.pipeline.export_runs.rebuild", lambda *_: pytest.fail("work began"))
    if obstacle == "a file":
        (root / "weights").write_text("")
    else:
        (root / "weights").symlink_to(root / "nowhere")
    code, _, err = export(cli, root)
    assert code == 1
    assert f"cannot write {root / 'weights'}" in err
