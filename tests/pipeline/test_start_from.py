"""`kit run --start-from`: training begins with trained weights, of the run that has held out the same tiles."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from factories import TINY_RECIPE, prepare, write_catalog, write_run
from safetensors.torch import load_file, save_file

from kit.errors import KitError, RunError, WeightsError
from kit.paths import Paths
from kit.pipeline import start_from
from kit.pipeline.export_runs import export_runs
from kit.pipeline.start_from import start_file
from kit.training.fit import rebuild
from kit.training.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

Cli = Callable[..., tuple[int, str, str]]

# one step at the rate 0, and batch norms that keep their running means: it ends with what it began with
STILL = TINY_RECIPE.replace("crops_per_tile=0.75), EMA(0.9)]", "crops_per_tile=0.25), Still()]").replace(
    "fit_one_cycle(2, slice(1e-4, 1e-3))", "fit(1, 0.0, wd=0)"
) + '''

class Still(fv.Callback):
    def before_train(self):
        for module in self.model.modules():
            if isinstance(module, fv.nn.BatchNorm2d):
                module.eval()
'''  # fmt: skip


def write_best(root: Path, fold: int, seed: int) -> None:
    """Writes weights that no training would begin or end with."""
    model = rebuild(load_recipe("tiny", Paths(root))).model
    random = torch.Generator().manual_seed(seed)
    weights = {
        name: value + 0.1 * torch.rand(value.shape, generator=random) if value.is_floating_point() else value + seed
        for name, value in model.state_dict().items()
    }
    save_file(weights, root / f"runs/tiny/fold{fold}/best.safetensors")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the finished runs tiny/fold0 and tiny/fold1, and weights/tiny.pt made of them. Read only."""
    folder = tmp_path_factory.mktemp("start")
    areas = {"kam": {"a": {"seed": 1}}, "znz": {"c": {"seed": 3}}}
    root = folder / "root"
    (root / "recipes").mkdir(parents=True)
    (root / "recipes/tiny.py").write_text(TINY_RECIPE)
    (root / "recipes/still.py").write_text(STILL)
    catalog = write_catalog(folder / "train_tier_1", areas)
    prepare(catalog, Paths(root), grid="native", side_px=64, by="scene", k=2)
    for fold in (0, 1):
        known = {"recipe": "tiny", "recipe_path": "", "data": "train_tier_1", "gsd_m": 1.0}
        write_run(root / f"runs/tiny/fold{fold}", {"kam/a": (1, 1, 1)}, **known)
        result = root / f"runs/tiny/fold{fold}/result.json"
        result.write_text(json.dumps(json.loads(result.read_text()) | {"fold": fold}))
        write_best(root, fold, seed=10 + fold)
    export_runs(["tiny/fold0", "tiny/fold1"], "tiny", Paths(root), "none")
    return root


@pytest.fixture
def root(exported: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(exported, tmp_path / "root"))


def best_of(root: Path, run: str) -> Path:
    return root / "runs" / run / "best.safetensors"


NAMES: dict[str, tuple[str, str]] = {  # what is given -> the runs whose weights folds 0 and 1 begin with
    "tiny/fold1": ("tiny/fold1", "tiny/fold1"),
    "tiny": ("tiny/fold0", "tiny/fold1"),
    "ROOT/runs/tiny/fold0/best.safetensors": ("tiny/fold0", "tiny/fold0"),
    "ROOT/weights/tiny.pt": ("tiny/fold0", "tiny/fold1"),
}


@pytest.mark.parametrize("name", NAMES)
def test_training_begins_with_those_weights(root: Path, cli: Cli, name: str):
    """No weights of the encoder are asked for: `--no-pretrained` is not needed."""
    code, out, err = cli(
        "run", "still", "--root", root, "--no-export", "--start-from", name.replace("ROOT", str(root))
    )  # fmt: skip
    assert code == 0, err
    assert out
    for fold, source in enumerate(NAMES[name]):
        start = best_of(root, source)
        kept, expected = load_file(best_of(root, f"still/fold{fold}")), load_file(start)
        assert kept.keys() == expected.keys()
        assert all(torch.equal(kept[key], expected[key]) for key in expected)
        settings = json.loads((root / f"runs/still/fold{fold}/settings.json").read_text())
        assert settings["start_from"] == settings["encoder_weights"] == str(start)
        assert settings["start_sha256"] == hashlib.sha256(start.read_bytes()).hexdigest()
        assert f"still fold {fold}: test_efficientnet, all weights from {start}" in err


def test_without_it_training_begins_elsewhere(root: Path, cli: Cli):
    """Or the test above could not fail."""
    code, _, err = cli("run", "still", "--root", root, "--no-export", "--no-pretrained", "--fold", "0")
    assert code == 0, err
    kept, other = load_file(best_of(root, "still/fold0")), load_file(best_of(root, "tiny/fold0"))
    assert not any(torch.equal(kept[key], other[key]) for key in other)
    settings = json.loads((root / "runs/still/fold0/settings.json").read_text())
    assert (settings["start_from"], settings["start_sha256"]) == ("", "")


def test_another_start_is_another_run(root: Path, cli: Cli):
    command = ("run", "still", "--root", root, "--no-export", "--fold", "0")
    assert cli(*command, "--start-from", "tiny/fold0")[0] == 0
    before = best_of(root, "still/fold0").read_bytes()
    for other in (("--start-from", "tiny/fold1"), ()):
        code, _, err = cli(*command, *other)
        assert code == 1
        assert "still/fold0 holds a finished run with other settings: start_sha256" in err
        assert "--restart trains from the start" in err
    moved = shutil.copy(best_of(root, "tiny/fold0"), root / "moved.safetensors")  # the same weights
    code, _, err = cli(*command, "--start-from", moved)
    assert code == 0
    assert "finished before, kept" in err
    assert best_of(root, "still/fold0").read_bytes() == before
    code, _, err = cli(*command, "--start-from", "tiny/fold1", "--restart")
    assert code == 0, err
    kept, expected = load_file(best_of(root, "still/fold0")), load_file(best_of(root, "tiny/fold1"))
    assert all(torch.equal(kept[key], expected[key]) for key in expected)


def test_an_own_earlier_run_is_no_start(root: Path, cli: Cli):
    """`--restart` would remove it, and a session that is cut short could not begin again."""
    expected = best_of(root, "tiny/fold0").read_bytes()
    err = refused(cli, root, "tiny", "--fold", "0", "--start-from", "tiny", "--restart")
    assert "is written by this run" in err
    assert best_of(root, "tiny/fold0").read_bytes() == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fold", [0, 1])
def test_the_file_of_the_same_fold(exported: Path, name: str, fold: int):
    found = start_file(name.replace("ROOT", str(exported)), fold, Paths(exported))
    assert found == best_of(exported, NAMES[name][fold])


def test_no_start(exported: Path):
    assert start_file("", 0, Paths(exported)) is None


@pytest.mark.parametrize(
    ("name", "fold", "kind", "message", "hint"),
    [
        ("tiny/fold7", 0, RunError, r"tiny/fold7/best.safetensors does not exist: cannot start from it", "<recipe>/"),
        ("tiny", 5, RunError, r"tiny/fold5/best.safetensors does not exist", "<recipe>/fold<k>"),
        ("tiny", "all", RunError, r"tiny/foldall/best.safetensors does not exist", "<recipe>/fold<k>"),
        ("lite0", 0, RunError, r"lite0/fold0/best.safetensors does not exist", "a safetensors file"),
        ("tiny/0", 0, RunError, r"'tiny/0' names no run", "lite0/fold0"),
        ("ROOT/lost.safetensors", 0, RunError, r"no file .*lost.safetensors", "best.safetensors of a run"),
        ("ROOT/weights/tony.pt", 0, WeightsError, r"no weights .*tony.pt", "did you mean 'tiny'"),
        ("ROOT/weights/tiny.pt", 5, RunError, r"tiny.pt has 0 members of fold 5, expected one", "<recipe>/fold<k>"),
        ("ROOT/weights/tiny.pt", "all", RunError, r"has 0 members of fold all", "<recipe>/fold<k>"),
    ],
)
def test_what_cannot_be_a_start_is_told(
    exported: Path, name: str, fold: int | str, kind: type[KitError], message: str, hint: str
):
    with pytest.raises(kind, match=message) as caught:
        start_file(name.replace("ROOT", str(exported)), fold, Paths(exported))
    assert hint in caught.value.hint


def test_two_members_of_a_fold_are_told(exported: Path, monkeypatch: pytest.MonkeyPatch):
    weights = start_from.load_weights(exported / "weights/tiny.pt")
    twice = tuple(replace(member, fold=1) for member in weights.card.members)
    changed = SimpleNamespace(card=replace(weights.card, members=twice))
    monkeypatch.setattr(start_from, "load_weights", lambda _: changed)
    with pytest.raises(RunError, match="has 2 members of fold 1, expected one"):
        start_file("tiny.pt", 1, Paths(exported))


def refused(cli: Cli, root: Path, *arguments: object) -> str:
    """What is told where a run of two folds does not begin; nothing is written."""
    code, out, err = cli("run", *arguments, "--root", root, "--no-export")
    assert (code, out) == (1, ""), err
    assert "Traceback" not in err
    assert not list((root / "runs").glob("still/fold*"))
    return err


def test_a_run_that_is_not_the_exported_one(root: Path, cli: Cli):
    write_best(root, 0, seed=99)  # trained anew
    err = refused(cli, root, "still", "--start-from", root / "weights/tiny.pt")
    assert "tiny/fold0/best.safetensors has changed since the export: cannot start from it" in err


def test_another_network(root: Path, cli: Cli):
    (root / "recipes/still.py").write_text(STILL.replace("(16, 8, 8)", "(24, 8, 8)"))
    err = refused(cli, root, "still", "--start-from", "tiny")
    assert "best.safetensors does not fit the recipe's network" in err
    assert "start from a run of the same encoder, decoder and outputs" in err


def test_a_broken_file(root: Path, cli: Cli):
    file = best_of(root, "tiny/fold0")
    file.write_bytes(file.read_bytes()[:500])
    assert "best.safetensors does not fit" in refused(cli, root, "still", "--start-from", "tiny")


def test_what_a_later_fold_lacks_is_told_before_the_first_is_trained(root: Path, cli: Cli):
    shutil.rmtree(root / "runs/tiny/fold1")
    assert "tiny/fold1/best.safetensors does not exist" in refused(cli, root, "still", "--start-from", "tiny")


def test_the_same_weights_by_another_name_are_the_same_run(root: Path, cli: Cli):
    command = ("run", "still", "--root", root, "--no-export", "--fold", "1")
    assert cli(*command, "--start-from", root / "weights/tiny.pt")[0] == 0
    code, _, err = cli(*command, "--start-from", "tiny")
    assert code == 0, err
    assert "still fold 1: finished before, kept" in err
