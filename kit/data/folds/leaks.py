"""Leaks from training into validation: tiles of two folds that overlap on the ground."""

from collections import Counter, defaultdict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kit.data.folds.ground import Ground, Pairs, lay_out
from kit.errors import DataError

NO_FOLD = -1  # of tiles that would leak: never validated on, and only trained on with --all
ADDED = -2  # of tiles of added sets, in memory: never validated on, and trained on in every fold
# groups that share more than this of the smaller one's tiles are merged, since removing tiles would leave too few
TOGETHER = 0.25
MUCH = 1 / 3  # of the tiles: a larger loss gives a warning

Labels = NDArray[np.str_]  # the group of each row


def numbered(groups: Labels) -> NDArray[np.int64]:
    """Returns a number for each row, the same within a group."""
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def joined(groups: Labels, pairs: Pairs) -> tuple[Labels, list[str]]:
    """Returns the group of each row, where groups that share much of their ground become one, and notices.

    Args:
        groups: of each row.
        pairs: rows of different groups that overlap.
    """
    both = np.concatenate([pairs, pairs[:, ::-1]])
    table = pd.DataFrame({"group": groups[both[:, 0]], "other": groups[both[:, 1]], "row": both[:, 0]})
    shared = table.drop_duplicates().groupby(["group", "other"]).size()
    sizes = Counter(groups.tolist())
    union = {group: {group} for group in sizes}
    for (group, other), count in shared.items():  # type: ignore[misc]  # the key is a tuple
        if sizes[group] <= sizes[other] and count > TOGETHER * sizes[group]:
            one = union[group] | union[other]
            union |= dict.fromkeys(one, one)
    several = sorted({" + ".join(sorted(one)) for one in union.values() if len(one) > 1})
    notices = [f"held out together, since they overlap: {', '.join(several)}"] if several else []
    return np.array([min(union[group]) for group in groups.tolist()], str), notices


def leaking(index: pd.DataFrame, pairs: Pairs) -> list[int]:
    """Returns the rows to remove so that no pair remains: of a pair the tile with less imagery, then by id.

    A tile is only removed if a better one of its pairs is kept.
    """
    if not len(pairs):
        return []
    rank = np.empty(len(index), np.int64)
    rank[np.lexsort((index["tile"].to_numpy(str), -index["valid_fraction"].to_numpy(float)))] = np.arange(len(index))
    before: dict[int, list[int]] = defaultdict(list)
    for first, second in np.take_along_axis(pairs, np.argsort(rank[pairs], axis=1), axis=1).tolist():
        before[second].append(first)
    out: set[int] = set()
    for row in sorted(before, key=rank.__getitem__):
        if not out.issuperset(before[row]):
            out.add(row)
    return sorted(out)


def without_leaks(
    index: pd.DataFrame, folds: NDArray[np.int64], pairs: Pairs, why: str, remedy: str
) -> tuple[NDArray[np.int64], list[str]]:
    """Returns the fold of each row, -1 for tiles that would leak, and notices.

    Args:
        index: with `tile` and `valid_fraction`.
        folds: of each row.
        pairs: rows that must not stand in different folds.
        why: tiles are taken out, for the notice.
        remedy: what to do where many tiles are lost.
    """
    out = leaking(index, pairs[folds[pairs[:, 0]] != folds[pairs[:, 1]]])
    left = folds.copy()
    left[out] = NO_FOLD
    notices = [f"{len(out)} of {len(index)} tiles are in no fold: {why}"] if out else []
    if len(out) > MUCH * len(index):
        notices.append(f"that is more than a third: try {remedy}")
    empty = sorted(set(folds.tolist()) - set(left.tolist()))
    if empty:
        notices.append(f"no tile is left in fold {', '.join(map(str, empty))}: try {remedy}, or fewer folds")
    return left, notices


def check_apart(index: pd.DataFrame, ground: Ground | None = None) -> None:
    """Checks that no two tiles of different folds overlap on the ground; tiles without georeference are ignored.

    Args:
        index: with `tile` and `fold`.
        ground: of its tiles, where it is known already.

    Raises:
        DataError: two tiles do.
    """
    folds = index["fold"].to_numpy(np.int64)
    pairs = (ground or lay_out(index)).overlapping(folds)
    if not len(pairs):
        return
    tiles = index["tile"].to_numpy(str)
    (first, fold), (second, other) = min(sorted((tiles[row], folds[row]) for row in pair) for pair in pairs)
    more = f", and {len(pairs) - 1} pairs more" if len(pairs) > 1 else ""
    raise DataError(
        f"{first} of fold {fold} and {second} of fold {other} overlap on the ground{more}",
        "make the folds again: kit folds NAME --by scene, block or area",
    )
