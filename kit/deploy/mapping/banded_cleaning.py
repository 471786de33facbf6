"""The clean-up of `kit submit` for masks that are read band by band: the result is that of the whole mask.

Connected components cross bands, so their sizes are measured in a first pass over all bands and applied in a second.
"""

from collections.abc import Callable, Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from kit.deploy.weights.cleaning import HOLES, OBJECTS, Cleaning

Mask = NDArray[np.bool_]


class BandedCleaning:
    """Drops small objects, then fills small holes, as `kit.deploy.weights.cleaning.clean` does.

    Args:
        cleaning: smallest object and smallest hole.
        pixel_m2: ground area of a pixel.
        masks: returns the bands of the mask, from top to bottom; called once for each step.
    """

    def __init__(self, cleaning: Cleaning, pixel_m2: float, masks: Callable[[], Iterable[Mask]]) -> None:
        self.objects = self.holes = None
        if cleaning.smallest_m2 > pixel_m2:
            self.objects = SizeFilter(OBJECTS, cleaning.smallest_m2 / pixel_m2)
            self.objects.measure(masks())
        if cleaning.holes_m2 > pixel_m2:
            self.holes = SizeFilter(HOLES, cleaning.holes_m2 / pixel_m2)
            self.holes.measure(~self._without_small(index, mask) for index, mask in enumerate(masks()))

    def cleaned(self, index: int, mask: Mask) -> Mask:
        """Returns a band of the clean mask, (h, W).

        Args:
            index: of the band.
            mask: buildings, (h, W), as `masks` gave it.
        """
        mask = self._without_small(index, mask)
        return mask if self.holes is None else ~self.holes.kept(index, ~mask)

    def _without_small(self, index: int, mask: Mask) -> Mask:
        return mask if self.objects is None else self.objects.kept(index, mask)


class SizeFilter:
    """Keeps the connected components of a mask that are large enough, or touch the mask's border.

    Args:
        neighbours: of a pixel, 4 or 8.
        smallest_px: components of fewer pixels are dropped.
    """

    def __init__(self, neighbours: int, smallest_px: float) -> None:
        self.neighbours, self.smallest_px = neighbours, smallest_px
        # components that reach a band's first or last row: sizes and parents of the union-find
        self.sizes: list[float] = []
        self.parents: list[int] = []
        self.labels: list[NDArray[np.int32]] = []  # of each band: labels of these components, ascending,
        self.firsts: list[int] = []  # and the place of the first one in `sizes`

    def measure(self, masks: Iterable[Mask]) -> None:
        """Measures the components of a mask that comes in bands, from top to bottom."""
        above: NDArray[np.int64] | None = None  # for each pixel of the last row: its component, or -1
        for mask in masks:
            labels, sizes = self._labelled(mask)
            if above is None:
                sizes[labels[0]] = np.inf
            places = np.full(len(sizes), -1)
            ends = np.unique(labels[[0, -1]])
            ends = ends[ends > 0]
            places[ends] = len(self.sizes) + np.arange(len(ends))
            self.labels.append(ends)
            self.firsts.append(len(self.sizes))
            self.parents += places[ends].tolist()
            self.sizes += sizes[ends].tolist()
            if above is not None:
                self._join_rows(above, places[labels[0]])
            above = places[labels[-1]]
        for place in np.unique(above) if above is not None else ():
            if place >= 0:
                self.sizes[self._root(place)] = np.inf

    def kept(self, index: int, mask: Mask) -> Mask:
        """Returns a band without the small components; `index` counts the bands that were measured."""
        labels, sizes = self._labelled(mask)
        first, ends = self.firsts[index], self.labels[index]
        sizes[ends] = [self.sizes[self._root(first + i)] for i in range(len(ends))]
        sizes[0] = np.inf
        large = sizes >= self.smallest_px
        return mask if large.all() else mask & large[labels]

    def _labelled(self, mask: Mask) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Returns the label of each pixel, (h, W), and each label's size, infinite at the left and right border."""
        _, labels, stats, _ = cv2.connectedComponentsWithStats(
            mask.astype(np.uint8), connectivity=self.neighbours, ltype=cv2.CV_32S
        )
        sizes = stats[:, cv2.CC_STAT_AREA].astype(np.float64)
        sizes[labels[:, [0, -1]]] = np.inf
        return np.asarray(labels, np.int32), sizes

    def _join_rows(self, above: NDArray[np.int64], below: NDArray[np.int64]) -> None:
        """Joins components that touch across two neighbouring rows, given the component of each pixel, (W,)."""
        touching = [(above, below)]
        if self.neighbours == 8:
            touching += [(above[1:], below[:-1]), (above[:-1], below[1:])]
        for upper, lower in touching:
            both = (upper >= 0) & (lower >= 0)
            for pair in np.unique(np.stack([upper[both], lower[both]]), axis=1).T:
                one, other = sorted(map(self._root, pair.tolist()))
                if one != other:
                    self.parents[other] = one
                    self.sizes[one] += self.sizes[other]

    def _root(self, place: int) -> int:
        while self.parents[place] != place:
            self.parents[place] = self.parents[self.parents[place]]
            place = self.parents[place]
        return place
