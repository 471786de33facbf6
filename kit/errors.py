"""Errors, one class per cause; each carries a hint: what to do about it."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class KitError(Exception):
    """An error that the user can correct; printed as `error:` and `hint:`, exit code 1.

    Args:
        message: what is wrong, with the value, and what was expected.
        hint: what to do next; a command where there is one.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class OutputError(KitError):
    """An output has an impossible name, cannot be written, or would replace or remove what kit did not write."""


class CatalogError(KitError):
    """A STAC catalogue is missing or does not have the challenge's layout."""


class RasterError(KitError):
    """An image cannot be read, or has the wrong bands."""


class FootprintError(KitError):
    """A label file is missing, empty or not made of polygons."""


class DataError(KitError):
    """A prepared data set is missing, ambiguous or incomplete."""


class CutError(DataError):
    """Some tiles or scenes could not be cut; the others were.

    Args:
        message: see `KitError`.
        hint: see `KitError`.
        prepared: the others, a `kit.data.tiles.prepare.Prepared`; None if there are none.
    """

    def __init__(self, message: str, hint: str = "", prepared: Any = None) -> None:
        super().__init__(message, hint)
        self.prepared = prepared


class RecipeError(KitError):
    """A recipe is missing, or one of its functions is missing or misshapen."""


class EncoderError(KitError):
    """An encoder is unknown, or its pretrained weights cannot be loaded."""


class RunError(KitError):
    """A training run is missing, unfinished or was trained with other settings."""


class RankError(KitError):
    """One of several processes that work together ended early, or never started.

    Args:
        message: see `KitError`.
        hint: see `KitError`.
        shown: whether that process has shown its own error already.
    """

    def __init__(self, message: str, hint: str = "", shown: bool = False) -> None:
        super().__init__(message, hint)
        self.shown = shown


class WeightsError(KitError):
    """A weights file is missing, not kit's, or does not match its card."""


class SubmissionError(KitError):
    """Predictions or a submission are incomplete or malformed."""


class ScoreError(KitError):
    """Predictions and truth cannot be compared."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint that offers the known name nearest to `name`, or lists them all."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(names)}" if names else "there are none yet"
