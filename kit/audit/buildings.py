"""Labelled and predicted outlines side by side: the Jaccard index of each label, and predicted parts without a label.

A predicted object may hold several buildings. What of it no label covers is shared among its labels by their overlap,
unless it is large and wide enough to be a building of its own.
"""

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from kit.data.audits import Verdict

__all__ = ["NEAR_M", "OTHER", "Match", "Outlines", "Support", "judge_label", "judge_prediction", "match"]

Outlines = NDArray[np.object_]
Numbers = NDArray[np.float64]

SMALLEST_M2 = 10.0  # predicted buildings to add; a shed has 4, but so have many specks
GAP_M = 0.5  # to a label: a seam this wide around it is part of no other building
NARROW_M = 0.75  # half the width of what is too narrow for a building
OVERLAP = 0.2  # of a predicted object within a label: then the label covers it
SAME = 0.5  # Jaccard index from which a label is right
OTHER = 0.3  # below it, the label and the prediction are not the same building
UNLIKELY, LIKELY = 0.2, 0.7  # mean probability below which there is no building, and from which there is one
UNSURE = 0.25  # mean spread above which members and views disagree
NEAR_M = 3.5  # a label whose shift is not known may belong to a building this near


@dataclass(frozen=True)
class Match:
    """Labels and predicted objects compared."""

    jaccard: Numbers  # of each label with its share of the prediction, (labels,)
    objects: NDArray[np.int64]  # how many predicted objects each label covers, (labels,)
    unlabelled: Outlines  # predicted objects and parts of them that no label covers


def match(labels: Outlines, predicted: Outlines) -> Match:
    """Compares labels with predicted objects; both valid, in metres."""
    areas, label_areas = shapely.area(predicted), shapely.area(labels)
    at, of = shapely.STRtree(predicted).query(labels, predicate="intersects")
    common = shapely.area(shapely.intersection(labels[at], predicted[of]))
    covered = np.bincount(of, common, len(predicted))
    spare = np.maximum(0, areas - covered)
    unlabelled: list[shapely.Polygon] = []
    order = np.argsort(of, kind="stable")
    starts = np.searchsorted(of[order], np.arange(len(predicted) + 1))
    for place in np.flatnonzero(spare >= SMALLEST_M2):
        touching = labels[at[order[starts[place] : starts[place + 1]]]]
        parts = _apart(predicted[place], touching) if len(touching) else predicted[place : place + 1]
        unlabelled += list(parts)
        spare[place] -= shapely.area(parts).sum()
    share = common / np.maximum(covered[of], 1e-9)
    inside = np.bincount(at, common, len(labels))
    union = label_areas + np.bincount(at, np.maximum(0, spare)[of] * share, len(labels))
    objects = np.bincount(at, common >= OVERLAP * np.maximum(areas[of], SMALLEST_M2), len(labels))
    return Match(np.minimum(1, inside / np.maximum(union, 1e-9)), objects.astype(np.int64), _array(unlabelled))


def _apart(outline: shapely.Polygon, labels: Outlines) -> Outlines:
    """Returns the parts of an outline beside labels that are large and wide enough for a building."""
    rest = shapely.difference(outline, shapely.union_all(shapely.buffer(labels, GAP_M)))
    wide = shapely.buffer(shapely.buffer(rest, -NARROW_M, join_style="mitre"), NARROW_M, join_style="mitre")
    parts = shapely.get_parts(wide)
    kept: Outlines = parts[shapely.area(parts) >= SMALLEST_M2]
    return kept


def _array(outlines: list[shapely.Polygon]) -> Outlines:
    return np.array([*outlines, None], dtype=object)[:-1]


@dataclass(frozen=True)
class Support:
    """What is predicted within outlines."""

    confidence: Numbers  # mean probability, (n,)
    spread: Numbers  # mean standard deviation of members and views, (n,)
    imagery: Numbers  # share of the outline with imagery, (n,)

    def of(self, number: int) -> tuple[float, float, float]:
        """Returns confidence, spread and imagery of one outline."""
        return float(self.confidence[number]), float(self.spread[number]), float(self.imagery[number])


MOST_OUTSIDE = 0.5  # share of an outline without imagery, from which nothing is said of it


def judge_label(
    jaccard: float, objects: int, support: tuple[float, float, float], moved: bool, trusted: bool
) -> tuple[Verdict, str]:
    """Returns the verdict of a label, and its reason.

    Args:
        jaccard: see `Match`.
        objects: likewise.
        support: confidence, spread and imagery, see `Support`.
        moved: whether its block moves.
        trusted: whether the shift of its block is known.
    """
    confidence, spread, imagery = support
    if imagery < 1 - MOST_OUTSIDE:
        return "ignore", "hardly any imagery"
    if jaccard >= SAME:
        if objects > 1:
            return "reshape", f"one outline for {objects} predicted buildings"
        return ("shift", "right once it is moved") if moved else ("keep", "")
    if spread > UNSURE:
        return "ignore", "members and views disagree"
    if not trusted:
        return "ignore", "the shift of its block is not known"
    if confidence >= UNLIKELY and jaccard >= OTHER:
        return (
            "reshape",
            f"one outline for {objects} predicted buildings" if objects > 1 else "another outline is predicted",
        )
    if confidence < UNLIKELY:
        return "drop", "no building is predicted"
    return "ignore", "the prediction is not sure"


def judge_prediction(support: tuple[float, float, float], near_unknown: bool) -> tuple[Verdict, str]:
    """Returns the verdict of a predicted building without a label, and its reason.

    Args:
        support: confidence, spread and imagery, see `Support`.
        near_unknown: whether a label without a match, whose shift is not known, lies within `NEAR_M`.
    """
    confidence, spread, _ = support
    if near_unknown:
        return "ignore", "it may belong to a label whose shift is not known"
    if spread > UNSURE:
        return "ignore", "members and views disagree"
    if confidence < LIKELY:
        return "ignore", "the prediction is not sure"
    return "add", "no label"
