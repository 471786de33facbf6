"""The logit of building, for each number of output channels."""

from torch import Tensor

from kit.errors import RecipeError


def building_logits(logits: Tensor) -> Tensor:
    """Returns the logit of building; its sigmoid is the probability, 0 to 1.

    Args:
        logits: of one channel: footprint; of two: the classes background and building, a softmax over both; of
            three: the layers footprint, boundary and contact, a sigmoid each.

    Shape:
        (N, 1 to 3, H, W) float -> (N, 1, H, W), same dtype.

    Raises:
        RecipeError: any other number of channels.
    """
    channels = logits.shape[1]
    if channels == 2:  # softmax over two classes is the sigmoid of their difference
        return logits[:, 1:] - logits[:, :1]
    if channels in (1, 3):
        return logits[:, :1]
    raise RecipeError(
        f"the network has {channels} output channels, expected 1 (footprint), 2 (background, building) or "
        "3 (footprint, boundary, contact)",
        "set n_out of the recipe's network",
    )


def at_least_float32(logits: Tensor) -> Tensor:
    """Returns half-precision logits in float32; others as they are."""
    return logits if logits.dtype.itemsize >= 4 else logits.float()
