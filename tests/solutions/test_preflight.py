"""What is refused before any training starts, with the round and the stage that it belongs to."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from deploy_fakes import noise, write_tiff
from factories import TINY_RECIPE, prepare
from solution_files import THREE, write_solution

from kit.errors import KitError
from kit.paths import Paths
from kit.solutions import play as playing
from kit.solutions import preflight
from kit.solutions.play import SolutionOptions, play

ONE = "ROUNDS = [Round('a', [Training('{}', folds=(0,))]{})]"
LAYERED = TINY_RECIPE.replace("AUGMENT, 2)", "AUGMENT, 2, layers=True)")
DISTILLED = TINY_RECIPE.replace("EMA(0.9)]", "EMA(0.9), Distillation()]").replace(
    "import EMA, BalancedSampler", "import EMA, BalancedSampler\nfrom kit.training.distillation import Distillation"
)
LOVASZ = TINY_RECIPE.replace("CrossEntropy", "Lovasz")


@pytest.fixture
def root(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set, recipes and two chips; nothing may be trained."""
    for name, text in (("layered", LAYERED), ("distilled", DISTILLED), ("hard", LOVASZ)):
        (workplace / "recipes" / f"{name}.py").write_text(text)
    for number in range(2):
        write_tiff(workplace / "test" / f"chip{number}.tif", noise(64, 64, seed=number))
    monkeypatch.setattr(playing.Player, "play", lambda self, stage: pytest.fail(f"{stage} was begun"))
    return workplace


def refused(root: Path, rounds: str, data: str = "", test: str | None = "test") -> KitError:
    with pytest.raises(KitError) as error:
        play(write_solution(root, rounds), Paths(root), SolutionOptions(data, root / test if test else None))
    assert error.value.hint
    return error.value


def test_a_data_set_that_is_missing(root: Path):
    error = refused(root, THREE, data="tier9")
    assert error.message.startswith("round one, train plan-one-tiny: no data set 'tier9'")
    shutil.rmtree(root / "data")
    assert "round one, train plan-one-tiny: no data set is prepared here" in refused(root, THREE).message


def test_several_data_sets(root: Path, catalog: Path):
    prepare(catalog, Paths(root), "other", grid="native", side_px=64, k=2)
    assert "several data sets are prepared: other, train_tier_1" in refused(root, THREE).message


def test_data_sets_of_pseudo_labels_are_not_chosen(root: Path, catalog: Path):
    prepare(catalog, Paths(root), "labels", grid="native", side_px=64, k=2)
    (root / "data" / "labels" / "pseudo.csv").write_text("")
    assert preflight.data_name(Paths(root), "") == "train_tier_1"


def test_an_added_set_that_is_missing(root: Path):
    error = refused(root, ONE.format("tiny", ", [AddedSet('tier2')]"))
    assert error.message.startswith("round a, train plan-a-tiny: no data set 'tier2'")


def test_a_fold_that_is_missing(root: Path):
    error = refused(root, THREE.replace("folds=(0,)", "folds=(7,)"))
    assert error.message == "round one, train plan-one-tiny: no fold 7 among [0, 1]"


def test_no_unlabelled_chips(root: Path):
    error = refused(root, THREE, test=None)
    assert error.message == "round two, label plan-two-from-one: no unlabelled chips"
    (root / "empty").mkdir()
    assert refused(root, THREE, test="empty").message.startswith("round two, label plan-two-from-one: no chips in")
    only = ONE.format("tiny", "")
    assert refused(root, only, test="none").message.startswith("round a, submit plan: no test set")


def test_a_data_set_without_the_layers_of_the_recipe(root: Path, catalog: Path):
    error = refused(root, ONE.format("layered", ""))
    assert error.message.startswith("round a, train plan-a-layered: ")
    assert "expected 3: footprint, boundary, contact" in error.message
    shutil.rmtree(root / "data")
    prepare(catalog, Paths(root), grid="native", side_px=64, by="scene", k=2, layers=True)
    prepare(catalog, Paths(root), "flat", grid="native", side_px=64)
    error = refused(root, ONE.format("layered", ", [AddedSet('flat')]"), data="train_tier_1")
    assert "flat" in error.message
    two = "ROUNDS = [Round('a', [Training('tiny')]), Round('b', [Training('layered')], [Pseudo('a')])]"
    error = refused(root, two, data="train_tier_1")
    assert error.message.startswith("round b, train plan-b-layered: layered needs the layers of masks")


@pytest.mark.parametrize("what", [", teacher='big'", ", [Pseudo('big')]"])
def test_weights_that_no_round_makes(root: Path, what: str, monkeypatch: pytest.MonkeyPatch):
    recipe = "distilled" if "teacher" in what else "tiny"
    stage = "train plan-a-distilled" if "teacher" in what else "label plan-a-from-big"
    error = refused(root, ONE.format(recipe, what))
    assert error.message.startswith(f"round a, {stage}: 'big' is neither a round nor weights in")
    (root / "weights").mkdir()
    (root / "weights" / "big.pt").write_text("")
    monkeypatch.setattr(preflight, "read_card", lambda _: SimpleNamespace(classes=("background", "road")))
    error = refused(root, ONE.format(recipe, what))
    assert error.message.startswith(f"round a, {stage}: ")
    assert "was trained on the classes background, road, expected background, building" in error.message


def test_teachers_and_recipes_that_do_not_agree(root: Path):
    error = refused(root, ONE.format("distilled", ""))
    assert error.message.startswith("round a, train plan-a-distilled: distilled learns from a teacher, and the round")
    two = "ROUNDS = [Round('a', [Training('tiny')]), Round('b', [Training('tiny')], teacher='a')]"
    error = refused(root, two)
    assert error.message == "round b, train plan-b-tiny: tiny learns from no teacher, and the round has a"


def test_soft_labels_and_a_loss_that_does_not_take_them(root: Path):
    two = "ROUNDS = [Round('a', [Training('hard')]), Round('b', [Training('hard')], [Pseudo('a', soft=True)])]"
    error = refused(root, two)
    assert error.message.startswith("round b, train plan-b-hard: ")
    assert "Lovasz" in error.message


def test_a_disk_that_is_too_small(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    error = refused(root, THREE)
    assert error.message.startswith("round one, train plan-one-tiny: the disk of")
    assert "0.0 GB free" in error.message


def test_an_unknown_recipe_a_name_twice_and_a_circle_are_refused_too(root: Path):
    for rounds in (
        ONE.format("tony", ""),
        "ROUNDS = 2 * [Round('a', [Training('tiny')])]",
        ONE.format("tiny", ", [Pseudo('a')]"),
    ):
        with pytest.raises(KitError, match=r"plan.py, round a: "):
            write_solution(root, rounds)
