"""Objects in masks: connected components or rasters of ids, compared pixel by pixel."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kit.data.instances import read_ids
from kit.data.masks import BUILDING, IGNORE
from kit.data.splitting import INSIDE, SMALLEST_M2, split_instances
from kit.measures.object_counts import BOUNDARY_M, ObjectCounts, matched_counts

__all__ = ["boundary_width", "compare_ids", "compare_masks", "compare_tile", "components"]

TABLE = 1 << 22  # pairs of ids that are counted in a table; more are sorted


def components(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Returns the connected components of a mask, (H, W), numbered from 1; 0 elsewhere.

    Pixels are connected by their sides, as in the polygons of `kit map`.
    """
    _, ids = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    return np.asarray(ids, np.int32)


def boundary_width(gsd_m: float) -> int:
    """Returns the width of the boundary band in pixels, at least 1; 0, for none, where the resolution is unknown.

    Args:
        gsd_m: metres per pixel; 0 where unknown.
    """
    return max(1, round(BOUNDARY_M / gsd_m)) if gsd_m > 0 else 0


def compare_masks(predicted: NDArray[np.bool_], truth: NDArray[np.uint8], boundary_px: int = 0) -> ObjectCounts:
    """Returns the counts of a mask whose objects are connected components.

    Args:
        predicted: building or not, (H, W).
        truth: 0, 1, 255 = no data, (H, W).
        boundary_px: width of the boundary band; 0: do not measure it.
    """
    return compare_ids(components(predicted), components(truth == BUILDING), truth != IGNORE, boundary_px)


def compare_tile(
    mask: NDArray[np.bool_],
    inside: NDArray[np.floating] | None,
    mask_file: str | Path,
    truth: NDArray[np.uint8],
    gsd_m: float,
) -> ObjectCounts:
    """Returns the counts of a validation tile: what a building is in `kit run`, `kit compare` and `kit report`.

    True buildings are those of the data set's ids, see `kit.data.instances.read_ids`. Predicted ones are connected
    components, split at standard markers where the network tells neighbours apart.

    Args:
        mask: building or not, as predicted, (H, W).
        inside: see `kit.data.splitting.inside_of`, (H, W), 0..1; None of a network without layers.
        mask_file: path of the true mask.
        truth: as read from it, (H, W): 0, 1, 255.
        gsd_m: metres per pixel; 0 where unknown.
    """
    smallest_px = SMALLEST_M2 / gsd_m**2 if gsd_m else 0
    predicted = components(mask) if inside is None else split_instances(mask, inside > INSIDE, smallest_px)
    return compare_ids(predicted, read_ids(mask_file, truth), truth != IGNORE, boundary_width(gsd_m))


def compare_ids(
    predicted: NDArray[np.integer[Any]],
    true: NDArray[np.integer[Any]],
    known: NDArray[np.bool_],
    boundary_px: int = 0,
) -> ObjectCounts:
    """Returns the counts of objects given as rasters of ids.

    Areas count known pixels alone. A predicted object of which more than half lies in pixels without data, and which
    matches nothing, is left out (Kirillov et al. 2019, section 4.2).

    Args:
        predicted: id of each pixel's object, (H, W); 0: none. Ids need not be consecutive.
        true: likewise.
        known: where the truth has data, (H, W).
        boundary_px: width of the band inside each outline, below half of the image; 0: do not measure it.
    """
    true, predicted = np.where(known, true, 0), np.asarray(predicted)
    whole = _areas(predicted)
    predicted = np.where(known, predicted, 0)
    true_area, predicted_area = _areas(true), _areas(predicted)
    true_at, predicted_at = np.flatnonzero(true_area), np.flatnonzero(predicted_area)
    pairs, shared = _overlaps(true, predicted)
    pairs = np.stack([np.searchsorted(true_at, pairs[:, 0]), np.searchsorted(predicted_at, pairs[:, 1])], axis=1)
    counts, matches = matched_counts(true_area[true_at], predicted_area[predicted_at], pairs, shared)
    outside = 2 * predicted_area[predicted_at] < whole[predicted_at]
    outside[matches[:, 1]] = False
    counts = replace(counts, predicted=counts.predicted - int(outside.sum()))
    if not boundary_px:
        return counts
    bands = [_band(ids, boundary_px) for ids in (true, predicted)]
    hit, union = int((bands[0] & bands[1]).sum()), int((bands[0] | bands[1]).sum())
    return replace(counts, boundary_hit=float(hit), boundary_union=float(union))


def _areas(ids: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Returns the pixels of each id from 0 on, (largest id + 1,); none for id 0."""
    areas = np.bincount(ids.ravel())
    areas[0] = 0
    return areas


def _overlaps(
    true: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the ids of true and predicted objects that overlap, (N, 2), and how many pixels they share, (N,)."""
    both = np.flatnonzero((true.ravel() > 0) & (predicted.ravel() > 0))
    first, second = true.ravel()[both].astype(np.int64), predicted.ravel()[both]
    columns = int(second.max(initial=0)) + 1
    codes = first * columns + second
    if codes.max(initial=0) < TABLE:
        shared = np.bincount(codes)
        codes = np.flatnonzero(shared)
        shared = shared[codes]
    else:
        codes, shared = np.unique(codes, return_counts=True)
    return np.stack(np.divmod(codes, columns), axis=1), shared


def _band(ids: NDArray[np.integer[Any]], width: int) -> NDArray[np.bool_]:
    """Returns which pixels of objects lie within `width` pixels of another object, of none, or of the image's edge.

    Distance counts the larger of rows and columns, as in the code of Cheng et al. 2021 (erosion by a 3 x 3 square).
    """
    values = ids.astype(np.float32)  # exact up to 2**24 objects
    square = np.ones((3, 3), np.uint8)
    least = cv2.erode(values, square, iterations=width, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    inside = (least == values) & (cv2.dilate(values, square, iterations=width) == values)
    band: NDArray[np.bool_] = (ids > 0) & ~inside
    return band
