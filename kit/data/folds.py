"""Folds: which tiles are held out together."""

import hashlib
from typing import Any

import pandas as pd

from kit.errors import DataError, nearest


def _order(identity: str) -> str:
    """Returns a key that shuffles ids the same way on every machine and for every file order."""
    return hashlib.sha256(identity.encode()).hexdigest()


def area_scene(index: pd.DataFrame) -> "pd.Series[str]":
    """Returns the group `area_scene` of each tile: what the seed stratified and balanced by."""
    return index["area"] + "_" + index["scene"]


def _by_tile(index: pd.DataFrame, k: int) -> tuple[dict[str, int], str]:
    """Returns the fold of each tile, dealt out in turn within each area_scene (the seed's way: it leaks)."""
    folds: dict[str, int] = {}
    small = []
    groups: Any = index.groupby(area_scene(index))
    for number, (group, rows) in enumerate(groups):
        if len(rows) < k:
            small.append(f"{group} ({len(rows)})")
        for place, tile in enumerate(sorted(rows["tile"], key=_order)):
            folds[tile] = (place + number) % k
    return folds, f"scenes with fewer tiles than folds are kept: {', '.join(small)}" if small else ""


def _by_group(index: pd.DataFrame, groups: "pd.Series[str]", k: int, what: str) -> tuple[dict[str, int], str]:
    """Returns the fold of each tile: whole groups, the largest first, each to the lightest fold."""
    sizes = groups.value_counts()
    notice = f"{len(sizes)} {what}s make {len(sizes)} folds, not {k}" if len(sizes) < k else ""
    loads = [0] * min(k, len(sizes))
    home: dict[str, int] = {}
    for group in sorted(sizes.index, key=lambda g: (-sizes[g], g)):
        home[group] = loads.index(min(loads))
        loads[home[group]] += int(sizes[group])
    return {tile: home[group] for tile, group in zip(index["tile"], groups, strict=True)}, notice


def _choose(index: pd.DataFrame) -> tuple[str, list[str]]:
    """Returns the way that `auto` stands for, and what to tell of it."""
    scenes = index.groupby("area")["scene"].nunique()
    lone = sorted(scenes[scenes == 1].index)
    if not lone:
        return "scene", []
    return "tile", [f"by tile, since {', '.join(lone)} has one scene only: out-of-fold scores will be optimistic"]


def assign_folds(index: pd.DataFrame, by: str, k: int) -> tuple["pd.Series[int]", str]:
    """Returns the fold of each row (0 to k - 1) and a notice to tell, or nothing. It depends on ids, not on order.

    Args:
        index: with `tile`, `area`, `scene`.
        by: `scene` holds out whole scenes, so that the score does not leak; `area` whole areas; `tile` is the seed's:
            stratified by area_scene, with neighbouring tiles on both sides. `auto` is `scene` where every area has
            two scenes or more, else `tile`: a model should not miss an area altogether.
        k: number of folds.

    Raises:
        DataError: another way, or fewer than two folds.
    """
    ways = ("auto", "scene", "tile", "area")
    if by not in ways:
        raise DataError(f"no way {by!r} to make folds", nearest(by, ways))
    if k < 2:
        raise DataError(f"{k} folds, expected at least 2", "give -k 2 or more")
    told: list[str] = []
    if by == "auto":
        by, told = _choose(index)
    if by == "tile":
        folds, notice = _by_tile(index, k)
    else:
        folds, notice = _by_group(index, area_scene(index) if by == "scene" else index["area"], k, by)
    return index["tile"].map(folds).astype(int), "; ".join([*told, *([notice] if notice else [])])
