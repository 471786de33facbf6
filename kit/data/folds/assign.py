"""Assigns tiles to folds."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kit.data.folds.ground import SQUARE, Ground, Pairs, lay_out
from kit.data.folds.leaks import ADDED, NO_FOLD, Labels, check_apart, joined, numbered, without_leaks
from kit.errors import DataError, nearest

WAYS = ("auto", "scene", "tile", "block", "area")
# Sides of a tile to a block. With a gap of one tile and five folds, areas of tier 1's sizes lose 20 % of their tiles;
# with 4 they lose 36 %; with 16 a tenth, but the small areas are single blocks, and missing from most folds.
BLOCK_TILES = 8

Assigned = tuple[NDArray[np.int64], list[str]]  # the fold of each row, and notices for the user


def _order(identity: str) -> str:
    """Returns a key that shuffles ids the same way on every machine and for every file order."""
    return hashlib.sha256(identity.encode()).hexdigest()


def area_scene(index: pd.DataFrame) -> "pd.Series[str]":
    """Returns the group `area_scene` of each tile: what the seed stratified and balanced by."""
    return index["area"] + "_" + index["scene"]


def fold_numbers(index: pd.DataFrame) -> list[int]:
    """Returns the numbers of the folds of an index, in order, without those of tiles that are never held out."""
    return sorted({int(fold) for fold in index["fold"]} - {NO_FOLD, ADDED})


def _by_tile(index: pd.DataFrame, k: int) -> Assigned:
    """Returns the fold of each tile, in turn within each area_scene. Neighbours of validation tiles train: it leaks."""
    folds: dict[str, int] = {}
    small = []
    groups: Any = index.groupby(area_scene(index))
    for number, (group, rows) in enumerate(groups):
        if len(rows) < k:
            small.append(f"{group} ({len(rows)})")
        for place, tile in enumerate(sorted(rows["tile"], key=_order)):
            folds[tile] = (place + number) % k
    notices = [f"some scenes have fewer tiles than there are folds: {', '.join(small)}"] if small else []
    return index["tile"].map(folds).to_numpy(np.int64), notices


def _deal(groups: Labels, areas: Iterable[str], k: int) -> NDArray[np.int64]:
    """Returns the fold of each row: whole groups, the largest first, each to the fold with the least of its area."""
    sizes = Counter(groups.tolist())
    parts: dict[str, Counter[str]] = defaultdict(Counter)
    for group, area in zip(groups.tolist(), areas, strict=True):
        parts[group][area] += 1
    loads: list[Counter[str]] = [Counter() for _ in range(min(k, len(sizes)))]
    home: dict[str, int] = {}
    for group in sorted(sizes, key=lambda g: (-sizes[g], _order(g))):
        area = max(sorted(parts[group]), key=parts[group].__getitem__)
        home[group] = min(range(len(loads)), key=lambda fold: (loads[fold][area], loads[fold].total()))
        loads[home[group]].update(parts[group])
    return np.array([home[group] for group in groups.tolist()], np.int64)


def _unchecked(index: pd.DataFrame, ground: Ground) -> list[str]:
    """Returns a notice where overlaps cannot be checked."""
    if ground.known.all():
        return []
    if not set(SQUARE) <= set(index.columns):
        return [
            "overlaps on the ground were not checked: an older version of kit cut this data set; give kit prepare again"
        ]
    missing = int((~ground.known).sum())
    return [f"{missing} of {len(index)} tiles have no georeference: overlaps with other tiles were not checked"]


def _groups(index: pd.DataFrame, ground: Ground, what: str) -> tuple[Labels, Pairs, list[str]]:
    """Returns the group (scene or area) of each tile, the pairs of overlapping tiles of two groups, and notices."""
    names = (area_scene(index) if what == "scene" else index["area"]).to_numpy(str)
    pairs = ground.overlapping(numbered(names))
    groups, notices = joined(names, pairs)
    return groups, pairs, notices


def _by_group(index: pd.DataFrame, ground: Ground, k: int, what: str) -> Assigned:
    """Returns the fold of each tile, by scene or area; groups that overlap are held out together."""
    groups, pairs, notices = _groups(index, ground, what)
    remedy = "--by area or --by block" if what == "scene" else "--by block"
    folds = _deal(groups, index["area"], k)
    folds, lost = without_leaks(index, folds, pairs, "they overlap tiles of another fold", remedy)
    fold_count = len(set(groups))
    count = len(set(area_scene(index) if what == "scene" else index["area"]))
    few = [f"{count} {what}s make {fold_count} folds, not {k}"] if fold_count < k else []
    return folds, [*notices, *few, *lost, *_unchecked(index, ground)]


def _by_block(index: pd.DataFrame, ground: Ground, k: int, block_m: float | None, gap_m: float | None) -> Assigned:
    """Returns the fold of each tile, by blocks of ground with a gap around them."""
    lost = np.flatnonzero(~ground.known)
    if len(lost):
        raise DataError(
            f"{len(lost)} of {len(index)} tiles have no georeference, which --by block needs, "
            f"first {index['tile'].iloc[lost[0]]}",
            "use --by scene, or cut the data set again from georeferenced images",
        )
    side_m = block_m or BLOCK_TILES * float(np.median(ground.sides_m))
    groups = np.array([f"{row}_{column}" for row, column in ground.blocks(side_m).tolist()], str)
    folds = _deal(groups, index["area"], k)
    gaps_m = ground.sides_m if gap_m is None else np.full(len(index), gap_m)
    pairs = ground.overlapping(folds) if gap_m == 0 else ground.near(folds, gaps_m)
    folds, notices = without_leaks(
        index, folds, pairs, "they are within the gap of another fold", "a larger --block-m or a smaller --gap-m"
    )
    count, gap = len(set(groups)), "one tile" if gap_m is None else f"{gap_m:g} m"
    few = [f"{count} blocks make {count} folds, not {k}: a smaller --block-m makes more"] if count < k else []
    return folds, [f"{count} blocks of {side_m:.0f} m with a gap of {gap}", *few, *notices]


def _choose(index: pd.DataFrame, ground: Ground) -> tuple[str, list[str]]:
    """Returns what `auto` stands for, `scene` or `tile`, and a notice."""
    counts = index.assign(group=_groups(index, ground, "scene")[0]).groupby("area")[["scene", "group"]].nunique()
    lone = sorted(counts[counts["scene"] == 1].index)
    heaped = sorted(counts[(counts["scene"] > 1) & (counts["group"] == 1)].index)
    if not lone and not heaped:
        return "scene", []
    reasons = [f"{', '.join(lone)} {'has' if len(lone) == 1 else 'have'} one scene only"] if lone else []
    reasons += [f"the scenes of {', '.join(heaped)} overlap"] if heaped else []
    return "tile", [
        f"by tile, since {' and '.join(reasons)}: out-of-fold scores will be optimistic, because neighbours of "
        "validation tiles are trained on; kit folds --by block avoids it"
    ]


def check_way(by: str, k: int, block_m: float | None = None, gap_m: float | None = None) -> None:
    """Checks the options of `assign_folds`, before there are tiles.

    Raises:
        DataError: `by` is unknown, `k` below 2, or blocks or gaps are out of range.
    """
    if by not in WAYS:
        raise DataError(f"folds cannot be made by {by!r}", nearest(by, WAYS))
    if k < 2:
        raise DataError(f"{k} folds, expected at least 2", "give -k 2 or more")
    if by != "block" and (block_m is not None or gap_m is not None):
        raise DataError(f"folds by {by} have neither blocks nor gaps", "add --by block, or leave both out")
    if block_m is not None and not 0 < block_m < math.inf:
        raise DataError(f"blocks of {block_m:g} m, expected more than 0", f"leave it out for {BLOCK_TILES} tiles")
    if gap_m is not None and not 0 <= gap_m < math.inf:
        raise DataError(f"a gap of {gap_m:g} m, expected 0 or more", "leave it out for one tile")


def assign_folds(
    index: pd.DataFrame, by: str, k: int, block_m: float | None = None, gap_m: float | None = None
) -> tuple["pd.Series[int]", str]:
    """Returns the fold of each row (0 to k - 1, or -1: none) and a notice for the user, or an empty text.

    Folds depend on ids and ground, not on the order of rows. Except by `tile`, tiles of different folds never overlap
    on the ground: scenes or areas that share more than a quarter of the smaller one's tiles are held out together. Of
    other tiles that would overlap, the one with less imagery is in no fold.

    Args:
        index: with `tile`, `area`, `scene`; to know the ground `crs`, `left bottom right top`, and `valid_fraction`.
        by: `scene` holds out whole scenes, so that the score does not leak; `area` whole areas; `block` squares of
            ground, with a gap around them; `tile` single tiles, stratified by area_scene, with neighbours in training.
            `auto` is `scene` where every area has two scenes or more that do not overlap, else `tile`: a network
            should not miss an area altogether, and with blocks it would see little of a small one.
        k: number of folds.
        block_m: side of a block, metres on the ground; 8 tiles by default.
        gap_m: least distance between tiles of different folds, metres on the ground (to 1 %); one tile by default;
            0: they may touch.

    Raises:
        DataError: `by` is unknown, `k` below 2, blocks or gaps are out of range, or `block` lacks georeference.
    """
    check_way(by, k, block_m, gap_m)
    ground = lay_out(index)
    notices: list[str] = []
    if by == "auto":
        by, notices = _choose(index, ground)
    if by == "tile":
        folds, more = _by_tile(index, k)
    elif by == "block":
        folds, more = _by_block(index, ground, k, block_m, gap_m)
    else:
        folds, more = _by_group(index, ground, k, by)
    if by != "tile":
        check_apart(index.assign(fold=folds), ground)
    return pd.Series(folds, index=index.index, dtype=int), "; ".join([*notices, *more])
