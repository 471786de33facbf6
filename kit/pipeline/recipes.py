"""What each recipe costs, without data."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from kit.paths import Paths
from kit.training.fit import rebuild
from kit.training.recipe import known_recipes, load_recipe

SIDE_PX = 512


def describe_recipes(paths: Paths) -> list[dict[str, object]]:
    """Returns a row per recipe: recipe, encoder, params_m (millions), gflop_512, purpose.

    FLOP are multiplications and additions as torch's counter counts them, for one 512 x 512 image, encoder to logits.
    """
    rows: list[dict[str, object]] = []
    for name in sorted(known_recipes(paths)):
        recipe = load_recipe(name, paths)
        model = rebuild(recipe).model.eval()
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(torch.zeros(1, 3, SIDE_PX, SIDE_PX))
        rows.append(
            {
                "recipe": name,
                "encoder": model.encoder_name,
                "params_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
                "gflop_512": round(counter.get_total_flops() / 1e9, 2),
                "purpose": recipe.purpose,
            }
        )
    return rows
