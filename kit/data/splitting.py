"""Splits a mask into buildings: a watershed on the footprint, from markers where neither wall nor contact is."""

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["inside_of", "split_instances"]

INSIDE, SMALLEST_M2 = 0.5, 3.0  # threshold and smallest marker, where none were chosen on validation tiles
GROUND = 1  # marker of everything outside the buildings to split


def inside_of(channels: NDArray[np.floating]) -> NDArray[np.float32]:
    """Returns footprint minus boundary minus contact, (H, W), 0..1: high inside each building, low along its walls.

    Args:
        channels: probabilities of `kit.data.masks.LAYERS`, (3, H, W), 0..1.
    """
    footprint, boundary, contact = channels
    inside: NDArray[np.float32] = np.clip(footprint - boundary - contact, 0, 1).astype(np.float32)
    return inside


def split_instances(mask: NDArray[np.bool_], markers: NDArray[np.bool_], smallest_px: float = 0) -> NDArray[np.int32]:
    """Returns the building of each pixel, (H, W), numbered from 1; 0 elsewhere.

    A connected component of the mask with several markers is divided among them by OpenCV's watershed. One with fewer
    markers stays whole. Components do not affect each other: a window that holds a whole component divides it like any
    other window does.

    Args:
        mask: buildings, (H, W). Pixels are connected by their sides, as in the polygons of `kit map`.
        markers: pixels inside buildings, (H, W). Each connected component in the mask is one marker.
        smallest_px: markers of fewer pixels are ignored.

    Source:
        F. Meyer, Color image segmentation, ICIP 1992, as implemented by cv2.watershed.
    """
    count, components = _connected(mask)
    marker_count, marked = _connected(markers & mask)
    flat = np.flatnonzero(marked)
    pixels = np.bincount(marked.ravel()[flat], minlength=marker_count)
    owners = np.zeros(marker_count, np.int32)  # the component of each marker
    owners[marked.ravel()[flat]] = components.ravel()[flat]
    kept = pixels >= max(1.0, smallest_px)
    several = np.bincount(owners[kept], minlength=count) > 1  # of components
    kept &= several[owners]
    if not kept.any():
        return components
    seeds = np.where(kept, count + np.arange(marker_count), 0).astype(np.int32)[marked]
    divided = several[components]
    labels = np.where(divided, _flooded(seeds, divided), components)
    present = np.bincount(labels.ravel()) > 0
    present[0] = False
    numbers = np.where(present, np.cumsum(present), 0).astype(np.int32)
    return numbers[labels]


def _connected(mask: NDArray[np.bool_]) -> tuple[int, NDArray[np.int32]]:
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    return count, np.asarray(labels, np.int32)


def _flooded(seeds: NDArray[np.int32], mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Returns seeds grown over the mask, (H, W); each connected component of the mask holds one seed at least.

    Args:
        seeds: numbers above `GROUND`, 0 elsewhere, (H, W).
        mask: (H, W).
    """
    around = 2  # px of ground: cv2.watershed writes over the outermost
    labels = np.pad(np.where(mask, seeds, GROUND).astype(np.int32), around, constant_values=GROUND)
    plain = np.pad(np.where(mask, 0, 255).astype(np.uint8), around, constant_values=255)
    flooded = np.asarray(cv2.watershed(cv2.merge([plain] * 3), labels), np.int32)  # -1 where two labels meet
    inner = np.pad(mask, around)
    flooded[~inner | (flooded <= GROUND)] = 0
    values, width = flooded.ravel(), flooded.shape[1]
    left = np.flatnonzero(inner.ravel() & (values == 0))  # lines between buildings, and the edge towards the ground
    while len(left):
        beside = values[left[:, None] + (-width, -1, 1, width)]  # (N, 4)
        nearest = beside[np.arange(len(left)), (beside > 0).argmax(axis=1)]
        values[left] = nearest
        left = left[nearest == 0]
    return values.reshape(flooded.shape)[around:-around, around:-around]
