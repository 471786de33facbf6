"""Every recipe that comes with kit, found by glob: its docstring, its augmentation, its cost beside a plain U-Net."""

from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch.utils.flop_counter import FlopCounterMode

from kit.paths import Paths
from kit.pipeline.cost import _NormsAreFree, cost_of
from kit.training.fit import rebuild
from kit.training.recipe import Recipe, known_recipes, load_recipe

RECIPES = sorted(known_recipes(Paths(Path("none"))))
# the same network under segmentation_models_pytorch's name; others are found as tu-<timm name>
SMP = {
    "densenet161": "densenet161", "dpn92": "dpn92", "inception_v4": "inceptionv4", "senet154": "senet154",
    "inception_resnet_v2": "inceptionresnetv2", "seresnext50_32x4d": "se_resnext50_32x4d",
    "tf_efficientnet_b1": "efficientnet-b1", "tf_efficientnet_b3": "efficientnet-b3",
    "tf_efficientnet_b4": "efficientnet-b4",
}  # fmt: skip
# GFLOP that the seed's own U-Nets take, as the project set them
CAPS = {
    "efficientnet_b4": 36.0, "seresnext50": 86.6, "inception_v4": 122.7, "densenet161": 135.1, "senet154": 260.9,
}  # fmt: skip


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Recipe:
    return load_recipe(request.param, Paths(tmp_path))


def smp_gflop(encoder: str) -> float:
    timm_name = encoder.split(".")[0]
    with _NormsAreFree(), torch.device("meta"):
        model = smp.Unet(SMP.get(timm_name, f"tu-{timm_name}"), encoder_weights=None, classes=2).eval()
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(torch.zeros(1, 3, 512, 512))
    return counter.get_total_flops() / 1e9


def test_a_recipe_costs_no_more_than_a_plain_unet(recipe: Recipe):
    cost = cost_of(recipe)
    assert 0 < cost.gflop_512 <= smp_gflop(cost.encoder)
    assert cost.gflop_512 <= CAPS.get(recipe.name, float("inf"))


def test_skips_and_odd_sizes(recipe: Recipe):
    with _NormsAreFree(), torch.device("meta"):
        model = rebuild(recipe).model.eval()
        channels = 3 if recipe.name == "lite0_instances" else 2
        assert model(torch.zeros(2, 3, 91, 257)).shape == (2, channels, 91, 257)
    within = [stride for stride in model.strides[:-1] if stride in model.skip_strides]
    assert sum(block.norm is not None for block in model.blocks) == len(within)
    assert len(within) >= 3
    assert model.strides[-1] == 32


def test_the_count_on_the_meta_device_is_the_real_one(tmp_path: Path):
    recipe = load_recipe("lite0", Paths(tmp_path))
    model = rebuild(recipe).model.eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, 512, 512))
    assert cost_of(recipe).gflop_512 == round(counter.get_total_flops() / 1e9, 2)
    assert cost_of(recipe).params_m == round(sum(p.numel() for p in model.parameters()) / 1e6, 2)


def test_the_docstring_says_purpose_command_needs_and_cost(recipe: Recipe):
    text = recipe.module.__doc__ or ""
    assert recipe.purpose
    assert f"kit run {recipe.name}" in text
    if recipe.name != "quickstart":  # which is lite0 on the sample
        assert "Needs" in text
        assert "Measured on" in text


def test_augmentation_gives_one_crop_size_and_whole_masks(recipe: Recipe):
    data = recipe.module.data
    names = getattr(data, "__globals__", {})  # of the recipe that defines it: a parent, for most
    augment: A.Compose = names.get("AUGMENT") or names.get("HARD") or names["parent"].AUGMENT
    image = np.random.default_rng(0).integers(0, 256, (600, 700, 3), dtype=np.uint8)
    mask = np.ones((600, 700), np.uint8)
    sizes = set()
    for seed in range(12):
        augment.set_random_seed(seed)
        made = augment(image=image, mask=mask)
        sizes.add((made["image"].shape, made["mask"].shape))
        assert set(np.unique(made["mask"])) <= {1, 255}  # what is put around a tile is ignored, not background
    assert len(sizes) == 1
