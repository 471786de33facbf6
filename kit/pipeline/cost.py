"""Parameters and FLOPs of recipes, counted on the meta device (`kit recipes`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from kit.console import track
from kit.paths import Paths
from kit.training.fit import rebuild
from kit.training.recipe import Recipe, known_recipes, load_recipe

SIDE_PX = 512


@dataclass(frozen=True)
class Cost:
    """The cost of a recipe's network."""

    encoder: str  # timm name
    params_m: float  # parameters, millions
    # multiplications and additions as torch's counter counts them, for one 512 x 512 image, encoder to logits
    gflop_512: float


class _NormsAreFree(TorchFunctionMode):
    """Skips batch norms, which are not counted and slow on the meta device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func is F.batch_norm else func(*args, **(kwargs or {}))


def cost_of(recipe: Recipe) -> Cost:
    """Returns the cost of a recipe's network, counted on the meta device."""
    with _NormsAreFree(), torch.device("meta"):
        model = rebuild(recipe).model.eval()
        image = torch.zeros(1, 3, SIDE_PX, SIDE_PX)
    with _NormsAreFree(), FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(image)
    params = sum(p.numel() for p in model.parameters())
    return Cost(model.encoder_name, round(params / 1e6, 2), round(counter.get_total_flops() / 1e9, 2))


def describe_recipes(paths: Paths) -> list[dict[str, object]]:
    """Returns a row per recipe: recipe, encoder, params_m (millions), gflop_512, purpose."""
    rows: list[dict[str, object]] = []
    for name in track(sorted(known_recipes(paths)), "count recipes"):
        recipe = load_recipe(name, paths)
        rows.append({"recipe": name, **vars(cost_of(recipe)), "purpose": recipe.purpose})
    return rows
