import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from factories import TINY_RECIPE

from kit.errors import RecipeError
from kit.paths import Paths
from kit.training.length import count_epochs
from kit.training.recipe import installed_recipes, known_recipes, load_recipe

VARIANT = '''"""A variant."""
from kit.recipes import {parent} as parent
data, learner, fit = parent.data, parent.learner, parent.fit
'''


def write(root: Path, text: str, name: str = "mine") -> Paths:
    (root / "recipes").mkdir(exist_ok=True, parents=True)
    (root / "recipes" / f"{name}.py").write_text(text)
    return Paths(root)


def test_own_recipes_come_before_the_installed_ones(tmp_path: Path):
    paths = write(tmp_path, TINY_RECIPE, "lite0")
    assert load_recipe("lite0", paths).purpose == "A tiny recipe for tests"
    assert {"lite0", "quickstart"} <= set(known_recipes(paths))


def test_a_recipe_may_be_a_path(tmp_path: Path):
    write(tmp_path, TINY_RECIPE)
    assert load_recipe(str(tmp_path / "recipes/mine.py"), Paths(tmp_path / "elsewhere")).name == "mine"


def test_unknown_recipe_offers_the_nearest(tmp_path: Path):
    with pytest.raises(RecipeError, match="no recipe 'quickstar'") as caught:
        load_recipe("quickstar", Paths(tmp_path))
    assert caught.value.hint == "did you mean 'quickstart'?"


def test_a_recipe_is_a_regular_file(tmp_path: Path):
    paths = write(tmp_path, TINY_RECIPE)
    os.mkfifo(paths.recipes / "pipe.py")
    (paths.recipes / "link.py").symlink_to("gone.py")
    assert {"pipe", "link"}.isdisjoint(known_recipes(paths))
    with pytest.raises(RecipeError, match=r"pipe\.py' is not a regular file"):
        load_recipe(str(paths.recipes / "pipe.py"), paths)
    with pytest.raises(RecipeError, match="no recipe 'pipe'"):
        load_recipe("pipe", paths)


@pytest.mark.parametrize("name", ["data", "learner", "fit"])
def test_missing_function_is_named_with_its_signature(tmp_path: Path, name: str):
    paths = write(tmp_path, TINY_RECIPE.replace(f"def {name}(", f"def other_{name}("))
    with pytest.raises(RecipeError, match=f"has no function `{name}`") as caught:
        load_recipe("mine", paths)
    assert f"def {name}(" in caught.value.hint


def test_misshapen_function_is_named_with_its_signature(tmp_path: Path):
    paths = write(tmp_path, TINY_RECIPE.replace("def fit(learn):", "def fit(learn, epochs):"))
    with pytest.raises(RecipeError, match=r"`fit\(learn, epochs\)` cannot be called with one argument") as caught:
        load_recipe("mine", paths)
    assert "def fit(learn)" in caught.value.hint


def test_a_recipe_that_cannot_be_imported_names_the_line(tmp_path: Path):
    paths = write(tmp_path, '"""x"""\n\nimport no_such_module\n')
    with pytest.raises(RecipeError, match=r"mine\.py cannot be imported at line 3: ModuleNotFoundError"):
        load_recipe("mine", paths)


def test_an_augmentation_argument_that_would_be_ignored_is_an_error(tmp_path: Path):
    paths = write(tmp_path, TINY_RECIPE.replace("A.D4()", "A.GaussNoise(var_limit=10)"))
    with pytest.raises(RecipeError, match=r"var_limit.*not valid for transform"):
        load_recipe("mine", paths)


def test_a_wrong_return_is_told(tmp_path: Path):
    recipe = load_recipe(
        "mine", write(tmp_path, TINY_RECIPE.replace("    return dataloaders(fold, AUGMENT, 2)", "    pass"))
    )
    with pytest.raises(RecipeError, match=r"data\(\) returned NoneType, expected DataLoaders") as caught:
        recipe.data(None)
    assert "def data(fold) -> DataLoaders" in caught.value.hint


def test_a_failure_inside_names_the_line(tmp_path: Path):
    recipe = load_recipe(
        "mine", write(tmp_path, TINY_RECIPE.replace("def fit(learn):\n", "def fit(learn):\n    1 / 0\n"))
    )
    with pytest.raises(RecipeError, match=r"fit\(\) failed at line \d+: ZeroDivisionError"):
        recipe.fit(None)


def test_a_variant_imports_installed_recipes_and_its_neighbours(tmp_path: Path):
    paths = write(tmp_path, TINY_RECIPE.replace("A tiny recipe", "A neighbour"), "neighbour")
    write(tmp_path, VARIANT.format(parent="neighbour"))
    write(tmp_path, VARIANT.format(parent="mine"), "grandchild")
    recipe = load_recipe("grandchild", paths)
    assert [file.stem for file in recipe.parents] == ["mine", "neighbour"]
    assert recipe.module.parent.parent.__doc__.startswith("A neighbour")
    installed = load_recipe("mine", write(tmp_path / "other", VARIANT.format(parent="lite0")))
    assert installed.parents == (installed_recipes() / "lite0.py",)
    assert not [name for name in sys.modules if name == "kit.recipes.neighbour"]


def test_own_recipes_of_an_installed_name_do_not_take_its_place_as_a_parent(tmp_path: Path):
    write(tmp_path, "raise RuntimeError", "lite0")
    assert load_recipe("mine", write(tmp_path, VARIANT.format(parent="lite0"))).parents[0].parent == installed_recipes()


def test_the_checksum_covers_parents(tmp_path: Path):
    paths = write(tmp_path, TINY_RECIPE, "neighbour")
    write(tmp_path, VARIANT.format(parent="neighbour"))
    before = load_recipe("mine", paths).sha256
    assert load_recipe("mine", paths).sha256 == before
    write(tmp_path, TINY_RECIPE.replace("1e-3", "2e-3"), "neighbour")
    assert load_recipe("mine", paths).sha256 != before


def test_a_recipe_that_exits_is_an_error(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"mine\.py cannot be imported at line 3: SystemExit: 3"):
        load_recipe("mine", write(tmp_path, "import sys\n\nsys.exit(3)\n"))


def test_there_is_one_way_to_import_a_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder `recipes` in the search path, such as that of the current folder, is no package of recipes."""
    write(tmp_path, TINY_RECIPE, "neighbour")
    monkeypatch.syspath_prepend(tmp_path)
    paths = write(tmp_path, VARIANT.format(parent="neighbour").replace("from kit.recipes", "from recipes"))
    with pytest.raises(RecipeError, match=r"mine\.py cannot be imported at line 2: ModuleNotFoundError") as caught:
        load_recipe("mine", paths)
    assert caught.value.hint == "import a parent with: from kit.recipes import NAME"
    unknown = write(tmp_path, VARIANT.format(parent="nobody"))
    with pytest.raises(RecipeError, match="nobody") as caught:
        load_recipe("mine", unknown)


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        ("raise SystemExit(0)", r"mine\.py: fit\(\) failed at line 26: SystemExit"),
        ("pass", r"mine: fit\(\) trains no epoch"),
        ("learn.fit(0)", r"mine: fit\(\) trains no epoch"),
    ],
)
def test_a_fit_that_does_not_train_is_an_error(tmp_path: Path, fit: str, message: str):
    recipe = load_recipe("mine", write(tmp_path, TINY_RECIPE.replace("learn.fit_one_cycle(2, slice(1e-4, 1e-3))", fit)))
    with pytest.raises(RecipeError, match=message):
        count_epochs(recipe, SimpleNamespace())


def test_recipes_can_be_imported_outside_of_the_loader():
    from kit.recipes import lite0

    assert Path(lite0.__file__).parent == installed_recipes()
