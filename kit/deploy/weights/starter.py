"""The weights that come with kit, for maps without any training."""

from pathlib import Path

import kit
from kit.console import say

STARTER = "starter"  # a name of weights, and of what training starts from


def starter_weights() -> Path | None:
    """Returns the weights file that comes with kit; None where an installation lacks it."""
    return _shipped(".pt")


def starter_network() -> Path | None:
    """Returns the same network as safetensors, which training can start from; None where an installation lacks it."""
    return _shipped(".safetensors")


def choose_starter() -> Path | None:
    """Returns the weights file that comes with kit, and tells that it is used for want of others."""
    if path := starter_weights():
        say(
            f"no weights of your own: kit's {STARTER} weights predict. Better ones are trained on your own area: "
            "kit run lite0 --start-from starter"
        )
    return path


def _shipped(suffix: str) -> Path | None:
    files = (Path(parent, "weights", STARTER + suffix) for parent in kit.__path__)
    return next((file for file in files if file.is_file()), None)
