"""Pictures: predictions beside the truth, augmented crops."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from kit.data.masks import BUILDING, IGNORE
from kit.system.files import replacing

TP, FP, FN = (60, 200, 90), (230, 60, 50), (60, 110, 240)  # RGB
LAYER_COLOURS = ((255, 220, 0), (230, 60, 50), (0, 230, 255))  # RGB of footprint, boundary, contact
SHEET_COLUMNS, SHEET_PANEL_PX, SHEET_GAP_PX = 4, 320, 4


def overlay(
    image: NDArray[np.uint8], truth: NDArray[np.uint8], predicted: NDArray[np.bool_], title: str = ""
) -> NDArray[np.uint8]:
    """Returns four panels in a row: image, truth, prediction, errors.

    In the fourth panel, true positives are green, false positives red, false negatives blue.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) uint8: 0, 1, 255 = no data.
        predicted: (H, W) bool.
        title: written on the first panel.

    Returns:
        (h, 4 w, 3) uint8 RGB, h and w at most 512.
    """
    building, known = truth == BUILDING, truth != IGNORE
    panels = [
        image,
        _outlined(image, building, (255, 220, 0)),
        _outlined(image, predicted, (0, 230, 255)),
        _painted(image, {TP: building & predicted, FP: predicted & ~building & known, FN: building & ~predicted}),
    ]
    scale = min(1.0, 512 / max(image.shape[:2]))
    small = [cv2.resize(p, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for p in panels]
    for panel, text in zip(small, (title or "image", "truth", "prediction", "errors"), strict=True):
        panel[:24] = panel[:24] // 3  # a dark strip to write on
        cv2.putText(panel, text, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate(small, axis=1)


def crop_sheet(crops: Iterable[tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> NDArray[np.uint8]:
    """Returns crops in rows of four: footprints outlined, boundary and contact painted, ignored pixels dark.

    Args:
        crops: image (H, W, 3) uint8 RGB and mask (H, W), or (3, H, W) with layers: 0, 1, 255 = no data.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    panels = []
    for image, mask in crops:
        layers = mask if mask.ndim == 3 else mask[None]
        drawn = _outlined(image, layers[0] == BUILDING, LAYER_COLOURS[0])
        drawn = _painted(drawn, dict(zip(LAYER_COLOURS[1:], layers[1:] == BUILDING, strict=False)))
        drawn[layers[0] == IGNORE] //= 3
        panel = cv2.resize(drawn, (SHEET_PANEL_PX, SHEET_PANEL_PX), interpolation=cv2.INTER_AREA)
        panels.append(np.pad(panel, ((0, SHEET_GAP_PX), (0, SHEET_GAP_PX), (0, 0)), constant_values=255))
    blank = np.full_like(panels[0], 255)
    panels += [blank] * (-len(panels) % SHEET_COLUMNS)
    rows = [np.concatenate(panels[i : i + SHEET_COLUMNS], axis=1) for i in range(0, len(panels), SHEET_COLUMNS)]
    return np.concatenate(rows)


def _outlined(image: NDArray[np.uint8], mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    drawn = _painted(image, {colour: mask}, strength=0.25)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, colour, 3)
    return drawn


def _painted(
    image: NDArray[np.uint8], layers: dict[tuple[int, int, int], NDArray[np.bool_]], strength: float = 0.55
) -> NDArray[np.uint8]:
    drawn = image.astype(np.float32)
    for colour, mask in layers.items():
        drawn[mask] = (1 - strength) * drawn[mask] + strength * np.array(colour, np.float32)
    return drawn.astype(np.uint8)


def save_png(picture: NDArray[np.uint8], path: Path) -> None:
    """Writes an RGB picture."""
    with replacing(path) as file:
        cv2.imwrite(str(file), picture[..., ::-1])
