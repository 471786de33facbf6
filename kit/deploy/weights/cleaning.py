"""Probabilities to clean masks: a threshold, then small objects are removed, then small holes are filled."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from kit.deploy.weights.card import Card, Postprocess
from kit.errors import WeightsError

OBJECTS, HOLES = 8, 4  # connectivity: buildings that touch at a corner are one object, and holes are closed there


@dataclass(frozen=True)
class Cleaning:
    """Threshold and cleaning of masks; by default what `NAME.pt` itself does."""

    threshold: float = 0.5  # building is where the probability is above it, 0..1
    smallest_m2: float = 0.0  # smaller objects are removed
    holes_m2: float = 0.0  # smaller holes are filled

    @classmethod
    def of(cls, postprocess: Postprocess) -> "Cleaning":
        """Returns the cleaning in a card."""
        return cls(postprocess.threshold, postprocess.smallest_m2, postprocess.hole_m2)

    def __str__(self) -> str:
        return f"threshold {self.threshold:g}, smallest {self.smallest_m2:g} m2, holes {self.holes_m2:g} m2"


AS_SHIPPED = Cleaning()


def clean(
    probability: NDArray[np.floating], threshold: float = 0.5, smallest_px: float = 0, holes_px: float = 0
) -> NDArray[np.uint8]:
    """Returns the mask of building, uint8 (H, W) of 0 and 1; the probability is not changed.

    Small objects are removed, then small holes are filled. Those that touch the border stay: they may continue in the
    neighbouring image. Objects are 8-connected, holes 4-connected. Cleaning twice changes nothing.

    Args:
        probability: (H, W), 0..1.
        threshold: building is where the probability is above it.
        smallest_px: objects of fewer pixels are removed.
        holes_px: holes of fewer pixels are filled.
    """
    mask: NDArray[np.uint8] = (probability > threshold).astype(np.uint8)
    if smallest_px > 1:
        labels, areas = inner_parts(mask, OBJECTS)
        mask &= ~(areas < smallest_px)[labels]
    if holes_px > 1:
        labels, areas = inner_parts(1 - mask, HOLES)
        mask |= (areas < holes_px)[labels]
    return mask


def inner_parts(mask: NDArray[np.uint8], neighbours: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Returns the connected component of each pixel, (H, W), and the area of each component, (components,), px.

    Component 0 is where the mask is 0. Its area, and that of components at the border, is infinite: they are never
    small.

    Args:
        mask: uint8 (H, W) of 0 and 1.
        neighbours: the connectivity, 4 or 8.
    """
    height, width = mask.shape
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=neighbours, ltype=cv2.CV_32S)
    left, top = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
    right, bottom = left + stats[:, cv2.CC_STAT_WIDTH], top + stats[:, cv2.CC_STAT_HEIGHT]
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.float64)
    areas[(left == 0) | (top == 0) | (right == width) | (bottom == height)] = np.inf
    areas[0] = np.inf
    return np.asarray(labels, np.int32), areas


def clean_image(
    probability: NDArray[np.floating], image: NDArray[np.uint8], cleaning: Cleaning, gsd_m: float
) -> NDArray[np.uint8]:
    """Returns the mask of an image, uint8 (H, W) of 0 and 1; 0 where alpha is 0, also in filled holes.

    Args:
        probability: (H, W), 0..1.
        image: uint8 (H, W, 3 or 4) that it was predicted from.
        cleaning: see `Cleaning`.
        gsd_m: metres per pixel.
    """
    pixel_m2 = gsd_m**2
    mask = clean(probability, cleaning.threshold, cleaning.smallest_m2 / pixel_m2, cleaning.holes_m2 / pixel_m2)
    if image.shape[2] == 4:
        mask[image[..., 3] == 0] = 0
    return mask


def chosen_cleaning(
    card: Card,
    name: str,
    clean: bool,
    threshold: float | None = None,
    smallest_m2: float | None = None,
    holes_m2: float | None = None,
    default: Cleaning = AS_SHIPPED,
) -> Cleaning:
    """Returns threshold and clean-up by the options of a command.

    Args:
        card: of the weights.
        name: of the weights, for the error.
        clean: use the card's, which were chosen on validation tiles.
        threshold, smallest_m2, holes_m2: replace the card's or the default; None: not given.
        default: used without `clean`.

    Raises:
        WeightsError: `clean`, and the card has none; or a size is not a number.
    """
    for option, value in (("--smallest", smallest_m2), ("--holes", holes_m2)):
        if value is not None and not 0 <= value < float("inf"):
            raise WeightsError(f"{option} is {value:g}", "expected square metres, 0 or more")
    base = default
    if clean:
        if card.postprocess is None:
            raise WeightsError(
                f"{name} has no postprocess in its card: it has no validation tiles, or an older version exported it",
                "give --threshold, --smallest and --holes instead of --clean; or export its runs again",
            )
        base = Cleaning.of(card.postprocess)
    return Cleaning(
        base.threshold if threshold is None else threshold,
        base.smallest_m2 if smallest_m2 is None else smallest_m2,
        base.holes_m2 if holes_m2 is None else holes_m2,
    )
