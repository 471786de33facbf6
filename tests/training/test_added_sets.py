"""`kit run --add`: several data sets in one training, through the command line."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from factories import TINY_RECIPE, prepare, write_catalog

from kit.data.index import write_table
from kit.paths import Paths

pytestmark = pytest.mark.usefixtures("one_thread")

Cli = Callable[..., tuple[int, str, str]]
SHORT = ("--no-pretrained", "--no-export", "--steps", 2, "--fold", 0)


@pytest.fixture
def root(workplace: Path, tmp_path: Path) -> Path:
    """A root with the data sets `train_tier_1`, `second`, on other ground and with soft labels, and `same`, on its."""
    write_catalog(tmp_path / "second_city", {"ent": {"e": {"seed": 11}, "f": {"seed": 12}}})
    paths = Paths(workplace)
    prepare(tmp_path / "second_city", paths, "second", grid="native", side_px=64, by="scene", k=2)
    prepare(tmp_path / "train_tier_1", paths, "same", grid="native", side_px=64, by="scene", k=2)
    return workplace


def soften(folder: Path) -> None:
    """Gives a data set soft labels: 0.1 and 0.9 instead of 0 and 1."""
    index = pd.read_csv(folder / "index.csv", dtype=str, keep_default_na=False)
    for mask in index["mask"]:
        with rasterio.open(folder / mask) as source:
            labels, profile = source.read(), source.profile
        soft = np.where(labels == 255, 255, np.where(labels == 1, 229, 25)).astype(np.uint8)
        (folder / "soft").mkdir(exist_ok=True)
        with rasterio.open(folder / "soft" / Path(mask).name, "w", **profile) as target:
            target.write(soft)
    index["soft"] = ["soft/" + Path(mask).name for mask in index["mask"]]
    write_table(folder / "index.csv", index)


def tiles_of(folder: Path) -> set[str]:
    return set(pd.read_csv(folder / "index.csv")["tile"])


def test_added_sets_train_are_recorded_and_never_validated(root: Path, cli: Cli):
    soften(root / "data/second")
    options = ("run", "tiny", "--root", root, "--data", "train_tier_1", *SHORT)
    code, _, err = cli(*options, "--add", "second=0.5", "--add", "same")
    assert code == 0, err
    said = " ".join(err.split())
    own, second, same = (tiles_of(root / "data" / name) for name in ("train_tier_1", "second", "same"))
    assert f"{len(own)} tiles and {len(second) + len(same)} of second, same" in said
    held_out = pd.read_csv(root / "data/train_tier_1/index.csv").query("fold == 0")
    assert f"fold 0: {len(held_out)} of {len(same)} tiles of same lie on the ground of validation tiles" in said
    folder = root / "runs/tiny/fold0"
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["data"], settings["gsd_m"]) == ("train_tier_1", pytest.approx(1, rel=0.01))
    assert [(each["name"], each["weight"], len(each["index_sha256"])) for each in settings["added"]] == [
        ("second", 0.5, 64),
        ("same", 1.0, 64),
    ]
    scored = pd.read_csv(folder / "oof.csv")
    assert set(scored["tile"]) == set(held_out["tile"])
    assert {file.stem for file in (folder / "oof").iterdir()} == set(held_out["tile"])
    assert not set(scored["tile"]) & second

    code, _, err = cli(*options, "--add", "second=0.5", "--add", "same")
    assert code == 0, err
    assert "finished before, kept" in err
    for added in ((), ("--add", "second=0.5"), ("--add", "second=0.7", "--add", "same")):
        code, _, err = cli(*options, *added)
        assert code == 1
        assert "run with other settings: added second=0.5 (" in " ".join(err.split())
    index = root / "data/second/index.csv"
    index.write_text(index.read_text().replace(",1,", ",2,", 1))  # a row's tier
    index.with_suffix(".sha256").unlink()  # changed on purpose
    code, _, err = cli(*options, "--add", "second=0.5", "--add", "same")
    assert code == 1
    assert "run with other settings: added second=0.5 (" in " ".join(err.split())


def test_check_and_lr_find_see_the_added_tiles(root: Path, cli: Cli):
    steps = []
    for added in ((), ("--add", "second=2", "--add", "same")):
        code, out, err = cli("check", "tiny", "--root", root, "--data", "train_tier_1", *added)
        assert code == 0, err
        steps += re.findall(r"^epoch .*?(\d+) steps, ", out, re.M)
    assert int(steps[0]) < int(steps[1])
    asked = ("lr-find", "tiny", "--root", root, "--data", "train_tier_1", "--no-pretrained", "--steps", 20)
    code, _, err = cli(*asked, "--add", "same")
    assert code == 0, err
    assert "tiles of same lie on the ground of validation tiles" in " ".join(err.split())
    for command in (asked, ("check", "tiny", "--root", root, "--data", "train_tier_1")):
        code, _, err = cli(*command, "--add", "sceond")
        assert (code, "no data set 'sceond'" in err) == (1, True)


def test_everything_trains_with_all(root: Path, cli: Cli):
    code, _, err = cli(
        "run", "tiny", "--root", root, "--data", "train_tier_1", "--add", "same", *SHORT[:-2], "--all"
    )  # fmt: skip
    assert code == 0, err
    assert "on the ground" not in err
    assert json.loads((root / "runs/tiny/foldall/result.json").read_text())["score"] is None


def test_a_run_without_added_sets_is_not_resumed_with_some(root: Path, cli: Cli):
    options = ("run", "tiny", "--root", root, "--data", "train_tier_1", *SHORT)
    assert cli(*options)[0] == 0
    file = root / "runs/tiny/fold0/settings.json"
    settings = json.loads(file.read_text())
    assert settings.pop("added") == []
    file.write_text(json.dumps(settings))  # as an older kit wrote it
    assert cli(*options)[0] == 0
    code, _, err = cli(*options, "--add", "second")
    assert code == 1
    assert "added none is now second=1 (" in " ".join(err.split())


@pytest.mark.parametrize(
    ("old", "new", "add", "error"),
    [
        ("CrossEntropy(),", "Lovasz(),", "second", "Lovasz does not accept soft targets"),
        ("EMA(0.9)]", "EMA(0.9), LossSwitch(1)]", "second", "Lovasz does not accept soft targets"),
        ("BalancedSampler(crops_per_tile=0.75), ", "", "second=2", "uses every tile once per epoch"),
        ("AUGMENT, 2)", "AUGMENT, 2, layers=True)", "second", "second has soft labels, and the recipe needs layers"),
        ("EMA(0.9)]", "EMA(0.9)]", "train_tier_1", "--add train_tier_1: this is the data set of --data"),
        ("EMA(0.9)]", "EMA(0.9)]", "sceond", "no data set 'sceond'"),
        ("EMA(0.9)]", "EMA(0.9)]", "second=0", "a weight above 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    root: Path, cli: Cli, old: str, new: str, add: str, error: str
):  # fmt: skip
    soften(root / "data/second")
    recipe = TINY_RECIPE.replace("import CrossEntropy", "import CrossEntropy, Lovasz")
    recipe = recipe.replace("import EMA, ", "import EMA, LossSwitch, ").replace(old, new)
    (root / "recipes/tiny.py").write_text(recipe)
    code, _, err = cli("run", "tiny", "--root", root, "--data", "train_tier_1", "--add", add, *SHORT)
    assert code == 1
    assert err.count("error:") == 1
    assert error in " ".join(err.split())
    assert not list((root / "runs").glob("*/*/*"))


def test_soft_labels_mix(root: Path, cli: Cli):
    """MixUp and CutMix, and a loss of the overlap, take soft labels as they are."""
    soften(root / "data/second")
    recipe = TINY_RECIPE.replace("EMA(0.9)]", "EMA(0.9), MixUp(), CutMix()]")
    recipe = recipe.replace("CrossEntropy(),", "Sum((1.0, CrossEntropy()), (0.5, Dice())),")
    recipe = recipe.replace("import CrossEntropy", "import CrossEntropy, Dice, Sum")
    recipe = recipe.replace("\nAUGMENT", "from kit.training.mixing import CutMix, MixUp\n\nAUGMENT")
    (root / "recipes/tiny.py").write_text(recipe)
    code, _, err = cli("run", "tiny", "--root", root, "--data", "train_tier_1", "--add", "second=8", *SHORT)
    assert code == 0, err
    assert pd.read_csv(root / "runs/tiny/fold0/log.csv")["train_loss"].between(0, 10).all()
