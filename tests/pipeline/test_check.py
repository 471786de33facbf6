"""`kit check`: every recipe that comes with kit, and what it says of a recipe that is wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from factories import TINY_RECIPE, write_catalog

from kit.data.index import write_table
from kit.errors import KitError, RecipeError
from kit.paths import Paths
from kit.pipeline.check import check, in_words
from kit.training.recipe import known_recipes

RECIPES = sorted(known_recipes(Paths(Path("none"))))
# their export takes 10 to 30 s each; CI runs them
LIGHT = {"lite0", "quickstart"}
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set with layers."""
    from factories import prepare

    folder = tmp_path_factory.mktemp("check")
    catalog = write_catalog(folder / "train", {"kam": {"a": {"seed": 1}, "b": {"seed": 2}}})
    prepare(catalog, Paths(folder), grid="native", side_px=64, by="scene", k=2, layers=True)
    return folder


@pytest.fixture
def own(root: Path) -> Callable[[str], Paths]:
    """Writes the user's recipe `mine`."""

    def write(text: str) -> Paths:
        (root / "recipes").mkdir(exist_ok=True)
        (root / "recipes" / "mine.py").write_text(text)
        return Paths(root)

    return write


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in LIGHT)) for n in RECIPES])
def test_every_recipe_steps_and_exports(name: str, root: Path):
    checked = check(name, Paths(root), tiny=True)
    rows = dict(checked.rows)
    assert rows["image"].startswith("(2, 3, ")
    assert rows["logits"].startswith(("(2, 2, ", "(2, 3, "))
    assert "no gradient" not in rows["parameters"]  # distributed training would wait for them
    assert "100.00% of mask pixels equal" in rows["export"]
    assert checked.sheet == root / "runs" / name / "check.png"
    assert checked.sheet.is_file()


def test_the_command_estimates(own: Callable[[str], Paths], cli: Cli):
    paths = own(TINY_RECIPE)
    code, out, err = cli("check", "mine", "--root", paths.root)
    assert code == 0, err
    rows = dict(line.split("  ", 1) for line in out.splitlines() if "  " in line)
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["image"] == "(2, 3, 64, 64) uint8"
    assert rows["target"] == "(2, 64, 64) int64"
    assert "GFLOP for an image of 512 x 512 px" in rows["cost"]
    assert rows["peak memory"].endswith("GB")
    assert rows["epoch"].endswith("steps, 4 validation tiles of train_tier_1")
    assert rows["fold"].endswith("2 epochs")
    assert out.splitlines()[-1] == str(paths.root / "runs/mine/check.png")


@pytest.mark.slow
def test_without_data_some_is_drawn_and_removed(own: Callable[[str], Paths], tmp_path: Path, capsys):
    text = own(TINY_RECIPE).recipes.joinpath("mine.py")
    rows = dict(check(str(text), Paths(tmp_path)).rows)
    assert "validation tiles of the challenge's tier 1" in rows["epoch"]
    assert "3,250 validation" in rows["epoch"]
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_the_sheet_shows_the_crops(own: Callable[[str], Paths]):
    sheet = cv2.imread(str(check("mine", own(TINY_RECIPE), tiny=True).sheet))
    assert sheet.shape == (3 * 324, 4 * 324, 3)
    yellow = np.array([0, 220, 255])  # outlines of footprints, BGR
    assert (np.abs(sheet.astype(int) - yellow).sum(axis=2) < 30).any()


def test_soft_labels_without_folds(own: Callable[[str], Paths], tmp_path: Path):
    """As `kit pseudo --soft` makes them: no tile belongs to a fold."""
    paths = Paths(tmp_path)
    recipe = own(TINY_RECIPE)
    shutil.copytree(recipe.root / "data/train_tier_1", paths.data("pseudo1"))
    index = pd.read_csv(paths.data("pseudo1") / "index.csv").assign(fold=-1)
    for mask in index["mask"]:
        soft = paths.data("pseudo1") / mask.replace("masks/", "soft/")
        soft.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(paths.data("pseudo1") / mask) as source:
            labels, profile = source.read(1), source.profile | {"count": 1}
        with rasterio.open(soft, "w", **profile) as target:
            target.write(np.where(labels == 1, 254, labels), 1)
    index["soft"] = index["mask"].str.replace("masks/", "soft/")
    write_table(paths.data("pseudo1") / "index.csv", index)
    checked = check(str(recipe.recipes / "mine.py"), paths, tiny=True)
    assert dict(checked.rows)["target"].endswith("float32")
    yellow = np.array([0, 220, 255])
    assert (np.abs(cv2.imread(str(checked.sheet)).astype(int) - yellow).sum(axis=2) < 30).any()


def test_layers_and_the_auxiliary_head(own: Callable[[str], Paths]):
    text = TINY_RECIPE.replace("dataloaders(fold, AUGMENT, 2)", "dataloaders(fold, AUGMENT, 2, layers=True)")
    text = text.replace("reduce=1)", "n_out=3, auxiliary=True)").replace("CrossEntropy()", "Auxiliary(BCE())")
    rows = dict(check("mine", own(text.replace("import CrossEntropy", "import BCE, Auxiliary")), tiny=True).rows)
    assert rows["target"] == "(2, 3, 64, 64) int64"
    assert rows["logits"] == "(2, 3, 64, 64) float32 and (2, 3, 64, 64) float32"


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("A.D4()", "A.GaussNoise(var_limit=10)", "var_limit.*not valid for transform"),
        ("return dataloaders(fold, AUGMENT, 2)", "return dataloaders(fold, A.Blur(value=1), 2)", "value.*not"),
        ("CrossEntropy(), split", "lambda p, y: p.sum() * float('nan'), split", "the loss is nan after 1 steps"),
        ("EMA(0.9)]", "LossSwitch(25, BCE())]", r"logits \(2, 2, 64, 64\)"),  # else seen in epoch 25
        ("CrossEntropy(), split", "BCE(), split", r"logits \(2, 2, 64, 64\)"),
        ("fv.Learner(dls, model,", "fv.Learner(dls, fv.nn.Conv2d(3, 2, 1),", "trains a Conv2d, expected a PixelNet"),
        ("unet(\"test_efficientnet\"", "unet(\"swin_tiny_patch4_window7_224\"", "cannot be used as an encoder"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_it_costs_days(own: Callable[[str], Paths], old: str, new: str, error: str):
    text = TINY_RECIPE.replace("import CrossEntropy", "import BCE, CrossEntropy")
    text = text.replace("import EMA", "import EMA, LossSwitch")
    assert old in text
    with pytest.raises(KitError if "encoder" in error else RecipeError, match=error):
        check("mine", own(text.replace(old, new)), tiny=True)
    assert torch.autocast_increment_nesting() == 1  # no autocast is left on
    torch.autocast_decrement_nesting()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59, "59 s"), (90, "2 min"), (3599, "1 h 00 min"), (11_100, "3 h 05 min"), (180_000, "2 d 2 h")],
)
def test_durations_in_words(seconds: float, words: str):
    assert in_words(seconds) == words
