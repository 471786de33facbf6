"""Object measures: matching predicted to true buildings, and the scores that follow from the counts.

Source:
    Kirillov, He, Girshick, Rother and Dollar, Panoptic Segmentation, CVPR 2019: matching, panoptic quality.
    Lin et al., Microsoft COCO, ECCV 2014: the sweep of IoU from 0.5 to 0.95.
    Cheng, Girshick, Dollar, Berg and Kirillov, Boundary IoU, CVPR 2021.
    Hoover et al., An Experimental Comparison of Range Image Segmentation Algorithms, TPAMI 18(7), 1996: over- and
    under-segmentation, here splits and merges.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BOUNDARY_M", "IOUS", "ObjectCounts", "matched_counts", "pool_objects"]

IOUS = tuple(percent / 100 for percent in range(50, 100, 5))  # 0.5, 0.55 ... 0.95
BOUNDARY_M = 1.0  # width of the band inside an outline that boundary IoU compares, metres
MATCHED = tuple(f"matched_{100 * iou:.0f}" for iou in IOUS)  # columns of a table of counts
SINGLE = ("true", "predicted", "iou_sum", "merges", "splits", "boundary_hit", "boundary_union")  # likewise


@dataclass(frozen=True)
class ObjectCounts:
    """Counts of buildings; those of several images add up."""

    true: int = 0  # buildings in the truth
    predicted: int = 0  # predicted buildings
    matched: tuple[int, ...] = (0,) * len(IOUS)  # pairs of a true and a predicted one whose IoU is above each of IOUS
    iou_sum: float = 0.0  # over the pairs above 0.5
    merges: int = 0  # predicted buildings that cover more than half of each of several true ones
    splits: int = 0  # true buildings that cover more than half of each of several predicted ones
    boundary_hit: float = 0.0  # area that the bands along predicted and true outlines share, in px or m²
    boundary_union: float = 0.0  # area of both bands together; 0 where they were not measured

    def __add__(self, other: "ObjectCounts") -> "ObjectCounts":
        return ObjectCounts.from_row({name: value + other.row()[name] for name, value in self.row().items()})

    def row(self) -> dict[str, Any]:
        """Returns the counts as the cells of a table, by column."""
        return {name: getattr(self, name) for name in SINGLE} | dict(zip(MATCHED, self.matched, strict=True))

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "ObjectCounts":
        """Returns the counts of a row that `row` returned."""
        whole = ("true", "predicted", "merges", "splits")
        single: dict[str, Any] = {name: int(row[name]) if name in whole else float(row[name]) for name in SINGLE}
        return cls(matched=tuple(int(row[name]) for name in MATCHED), **single)

    @property
    def precision(self) -> float:
        """Share of predicted buildings that match at an IoU above 0.5. 0/0 is 1 where the truth has none either."""
        return self._share(self.matched[0], self.predicted)

    @property
    def recall(self) -> float:
        """Share of true buildings that match at an IoU above 0.5. 0/0 is 1 where none is predicted either."""
        return self._share(self.matched[0], self.true)

    @property
    def f1_by_iou(self) -> tuple[float, ...]:
        """F1 of precision and recall at each of IOUS."""
        return tuple(self._share(2 * matched, self.true + self.predicted) for matched in self.matched)

    @property
    def f1(self) -> float:
        """F1 at an IoU above 0.5."""
        return self.f1_by_iou[0]

    @property
    def f1_mean(self) -> float:
        """Mean of F1 over IOUS."""
        return sum(self.f1_by_iou) / len(IOUS)

    @property
    def segmentation_quality(self) -> float:
        """Mean IoU of the pairs above 0.5."""
        return self._share(self.iou_sum, self.matched[0])

    @property
    def panoptic_quality(self) -> float:
        """Segmentation quality times F1."""
        return self._share(2 * self.iou_sum, self.true + self.predicted)

    @property
    def boundary_iou(self) -> float | None:
        """IoU of the bands along predicted and true outlines; None where they were not measured."""
        if not self.boundary_union and (self.true or self.predicted):
            return None
        return self._share(self.boundary_hit, self.boundary_union)

    @property
    def count_error(self) -> float | None:
        """(predicted - true) / true; None where buildings are predicted and the truth has none."""
        if not self.true:
            return None if self.predicted else 0.0
        return (self.predicted - self.true) / self.true

    def measures(self) -> dict[str, Any]:
        """Returns all scores by name, as JSON takes them."""
        return {
            "true": self.true,
            "predicted": self.predicted,
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "f1_mean": self.f1_mean,
            "f1_by_iou": {f"{iou:.2f}": f1 for iou, f1 in zip(IOUS, self.f1_by_iou, strict=True)},
            "panoptic_quality": self.panoptic_quality,
            "segmentation_quality": self.segmentation_quality,
            "boundary_iou": self.boundary_iou,
            "count_error": self.count_error,
            "merges": self.merges,
            "splits": self.splits,
        }

    def _share(self, part: float, whole: float) -> float:
        return part / whole if whole else float(not (self.true or self.predicted))


def pool_objects(counts: Iterable[ObjectCounts]) -> ObjectCounts:
    """Returns the sum of counts."""
    rows = [list(each.row().values()) for each in counts]
    names = ObjectCounts().row()
    return ObjectCounts.from_row(dict(zip(names, np.sum(rows, axis=0), strict=True))) if rows else ObjectCounts()


def matched_counts(
    true: NDArray[Any], predicted: NDArray[Any], pairs: NDArray[np.int64], shared: NDArray[Any]
) -> tuple[ObjectCounts, NDArray[np.int64]]:
    """Returns the counts of objects that overlap, and the pairs that match at an IoU above 0.5, (M, 2).

    A building matches one other at most. Of objects that do not overlap within their own set, no two can have an IoU
    above 0.5 with the same object. Others are paired from the highest IoU downwards.

    Args:
        true: area of each true building, (T,).
        predicted: area of each predicted building, (P,).
        pairs: places of a true and a predicted building that overlap, (N, 2); each pair once.
        shared: area that each pair shares, (N,).
    """
    first, second = pairs.T
    iou = shared / (true[first] + predicted[second] - shared)
    chosen = _one_to_one(pairs, iou)
    inside_prediction = second[2 * shared > true[first]]
    inside_truth = first[2 * shared > predicted[second]]
    counts = ObjectCounts(
        true=len(true),
        predicted=len(predicted),
        matched=tuple(int((iou[chosen] > least).sum()) for least in IOUS),
        iou_sum=float(iou[chosen].sum()),
        merges=int((np.bincount(inside_prediction) > 1).sum()),
        splits=int((np.bincount(inside_truth) > 1).sum()),
    )
    return counts, pairs[chosen]


def _one_to_one(pairs: NDArray[np.int64], iou: NDArray[Any]) -> NDArray[np.int64]:
    """Returns the places of pairs with an IoU above IOUS[0], of which no two share an object; best pairs first."""
    places = np.flatnonzero(iou > IOUS[0])
    first, second = pairs[places].T
    shared = (np.bincount(first)[first] > 1) | (np.bincount(second)[second] > 1)
    chosen = [places[~shared]]
    disputed = places[shared]
    taken: tuple[set[int], set[int]] = set(), set()
    for place in disputed[np.argsort(-iou[disputed], kind="stable")]:
        one, other = map(int, pairs[place])
        if one not in taken[0] and other not in taken[1]:
            taken[0].add(one)
            taken[1].add(other)
            chosen.append(np.array([place]))
    return np.sort(np.concatenate(chosen))
