"""`kit export` and the export of `kit run`: what becomes of the weights that had the name before."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from factories import write_run
from safetensors.torch import save_file

from kit.paths import Paths
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
    wanted = ("--name", "tiny", "--views", "none", "--root", root)
    code, _, err = cli("export", *before, *wanted)
    assert code == 0, err
    assert "the earlier tiny.pt" not in err
    code, _, err = cli("export", *after, *wanted)
    assert code == 0, err
    assert ("the earlier tiny.pt also held tiny/fold1, this one does not" in err) == bool(gone)
    assert ("kit export tiny/fold0 tiny/fold1 --name tiny" in err) == bool(gone)
