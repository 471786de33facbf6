"""From drone imagery of a city to building masks: train, freeze, submit, map."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kit.deploy.engine.predict import predict as predict


def __getattr__(name: str) -> Any:  # `kit.predict`, without torch for those who only ask for the version
    if name == "predict":
        from kit.deploy.engine.predict import predict

        return predict
    raise AttributeError(f"module 'kit' has no attribute {name!r}")
