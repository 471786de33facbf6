"""Every recipe that comes with kit, found by glob: loads, builds, fits the budget of its family, steps once."""

from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch

from kit.paths import Paths
from kit.training.fit import rebuild
from kit.training.recipe import Recipe, installed_recipes, load_recipe

RECIPES = sorted(p.stem for p in installed_recipes().glob("*.py") if not p.stem.startswith("_"))


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Recipe:
    return load_recipe(request.param, Paths(tmp_path))


def test_the_docstring_says_purpose_and_command(recipe: Recipe):
    assert recipe.purpose
    assert f"kit run {recipe.name}" in (recipe.module.__doc__ or "")


def test_one_step(recipe: Recipe):
    learn = rebuild(recipe)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    masks = torch.randint(0, 2, (2, 64, 64))
    loss = learn.loss_func(learn.model.train()(images), masks)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in learn.model.parameters())


def test_augmentation_gives_one_crop_size_and_whole_masks(recipe: Recipe):
    import recipes.lite0 as lite0

    augment: A.Compose = getattr(recipe.module, "AUGMENT", lite0.AUGMENT)
    image = np.random.default_rng(0).integers(0, 256, (600, 700, 3), dtype=np.uint8)
    mask = np.ones((600, 700), np.uint8)
    sizes = set()
    for seed in range(12):
        augment.set_random_seed(seed)
        made = augment(image=image, mask=mask)
        sizes.add((made["image"].shape, made["mask"].shape))
        assert set(np.unique(made["mask"])) <= {1, 255}  # what is put around a tile is ignored, not background
    assert len(sizes) == 1
