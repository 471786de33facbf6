"""The joined index of several data sets: `kit run RECIPE --data tier1 --add pseudo1=0.5`.

Folds and validation come from `--data` alone. In the joined index, tiles of added sets have the fold `ADDED`: they
train in every fold and are never held out, which `kit.data.dataset.Fold` checks.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from kit.console import say
from kit.data.added import AddedSet
from kit.data.folds.ground import lay_out
from kit.data.folds.leaks import ADDED
from kit.data.index import read_index
from kit.errors import DataError
from kit.paths import Paths
from kit.system.files import sha256_of

MOST_APART = 4.0  # largest ratio to the resolution of --data, or its inverse


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
    """Prints how many tiles have no georeference, if there are added sets."""
    if not (index["fold"] == ADDED).any():
        return
    unknown = index["data"][~lay_out(index).known].value_counts(sort=False)
    if len(unknown):
        counts = ", ".join(f"{count} of {(index['data'] == name).sum()} of {name}" for name, count in unknown.items())
        say(f"tiles without georeference: {counts}. Whether added ones show the ground of validation tiles is unknown")
