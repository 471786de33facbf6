"""From drone imagery of a city to building masks: train, freeze, submit, map.

Public in Python: `kit.predict`, `kit.load`, `kit.KitError`. Commands do the rest, see `kit --help`.
"""

__version__ = "0.2.0"
__all__ = ["KitError", "__version__", "load", "predict"]

from pathlib import Path
from typing import TYPE_CHECKING, Any

if not (Path(__file__).parent / "recipes").is_dir():  # in the repository `kit.recipes` is the folder beside kit
    __path__.append(str(Path(__file__).parents[1]))

from kit.errors import KitError

if TYPE_CHECKING:
    from kit.deploy.engine.predict import load, predict


def __getattr__(name: str) -> Any:  # imports torch only when `kit.load` or `kit.predict` is used
    if name in ("load", "predict"):
        from kit.deploy.engine import predict as module

        return getattr(module, name)
    raise AttributeError(f"module 'kit' has no attribute {name!r}")
