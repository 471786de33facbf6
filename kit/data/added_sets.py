"""Data sets that train beside that of `kit run --data`: `kit run RECIPE --data tier1 --add pseudo1=0.5`.

Folds and validation come from `--data` alone. In the joined index, tiles of added sets have the fold `ADDED`: they
train in every fold and are never held out, which `kit.data.dataset.Fold` checks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from kit.console import say
from kit.data.folds.ground import lay_out
from kit.data.folds.leaks import ADDED
from kit.data.index import read_index
from kit.errors import DataError
from kit.paths import Paths
from kit.system.files import sha256_of

MOST_APART = 4.0  # times the resolution of --data, or its part: farther tiles show other things


@dataclass(frozen=True)
class AddedSet:
    """A data set that trains beside that of `--data`.

    Args:
        name: of the data set.
        weight: above 0; of its groups in the draw of `BalancedSampler`, where groups of `--data` have 1.
        index_sha256: of its index, in hex; empty until it was read.
    """

    name: str
    weight: float = 1.0
    index_sha256: str = ""

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


def join_sets(
    paths: Paths, data: str, index: pd.DataFrame, added: Sequence[AddedSet]
) -> tuple[pd.DataFrame, tuple[AddedSet, ...]]:
    """Returns the index of all sets together, and the added ones with their checksums.

    Args:
        paths: of the working root.
        data: name of the set of `--data`.
        index: its index, as `read_index` returns it.
        added: the others.

    Raises:
        DataError: an added set is missing, is that of `--data`, or has a very different resolution.
    """
    parts, known = [index], []
    for each in added:
        if each.name == data:
            raise DataError(f"--add {each.name}: this is the data set of --data", "leave it out, or name another")
        _, other = read_index(paths, each.name)
        _check_resolution(data, index, each.name, other)
        parts.append(other.assign(fold=ADDED, weight=each.weight))
        known.append(replace(each, index_sha256=sha256_of(paths.data(each.name) / "index.csv")))
    return (pd.concat(parts, ignore_index=True) if known else index), tuple(known)


def _check_resolution(data: str, index: pd.DataFrame, name: str, other: pd.DataFrame) -> None:
    ours, theirs = (float(part["gsd_m"][part["gsd_m"] > 0].median()) for part in (index, other))  # 0 is unknown
    if max(ours, theirs) / min(ours, theirs) > MOST_APART:  # nan is not
        raise DataError(
            f"--add {name}: its tiles have {theirs:.3g} m per pixel, those of {data} {ours:.3g}; at most "
            f"{MOST_APART:g} times as much or as little fits",
            "cut it again in a resolution nearer to that of --data: kit prepare",
        )


def on_ground_of(valid: pd.DataFrame, added: pd.DataFrame) -> list[int]:
    """Returns which added tiles overlap a validation tile on the ground, as labels of `added.index`.

    Tiles without georeference are ignored, see `report_unknown_ground`.

    Raises:
        DataError: a coordinate system is unknown, or a tile lies outside of it.
    """
    labels = np.repeat(np.array([0, 1], np.int64), [len(valid), len(added)])
    pairs = lay_out(pd.concat([valid, added], ignore_index=True)).overlapping(labels)
    places = np.unique(pairs[pairs >= len(valid)]) - len(valid)
    rows: list[int] = added.index[places].tolist()
    return rows


def report_unknown_ground(index: pd.DataFrame) -> None:
    """Says of how many tiles it is unknown whether added ones lie on the ground of those of `--data`."""
    known = lay_out(index).known
    unknown = index["data"][~known].value_counts(sort=False)
    if (index["fold"] == ADDED).any() and len(unknown):
        counts = ", ".join(f"{count} of {(index['data'] == name).sum()} of {name}" for name, count in unknown.items())
        say(f"tiles without georeference: {counts}. Whether added ones show the ground of validation tiles is unknown")
