"""The data sets of `kit run --add`, and their weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kit.errors import DataError


@dataclass(frozen=True)
class AddedSet:
    """A data set to train on in addition to that of `--data`."""

    name: str  # of the data set
    weight: float = 1.0  # above 0; of its groups in the draw of `BalancedSampler`, where groups of `--data` have 1
    index_sha256: str = ""  # of its index, in hex; empty until it was read

    def __str__(self) -> str:
        return f"{self.name}={self.weight:g}{f' ({self.index_sha256[:8]})' if self.index_sha256 else ''}"


def parse_added(texts: Sequence[str]) -> tuple[AddedSet, ...]:
    """Returns the sets of texts such as `pseudo1` or `pseudo1=0.5`.

    Raises:
        DataError: a name is missing or given twice, or a weight is not a number above 0.
    """
    added: list[AddedSet] = []
    for text in texts:
        name, equals, number = text.partition("=")
        try:
            weight = float(number) if equals else 1.0
        except ValueError:
            weight = math.nan
        if not name or not 0 < weight < math.inf:
            raise DataError(
                f"--add {text!r}: expected a data set, or a data set and a weight above 0",
                "for example --add pseudo1 or --add pseudo1=0.5",
            )
        if name in [each.name for each in added]:
            raise DataError(f"--add {name} is given twice", "give each data set once; a weight lets it count more")
        added.append(AddedSet(name, weight))
    return tuple(added)
