"""The ground resolution of a mosaic, which nobody tells, from how trained weights see it at several scales.

Networks know buildings at the size, in pixels, that they were trained on. An image that is brought to that size gives
probabilities near 0 and 1, and nearly the same mask a little larger or smaller; elsewhere neither. So chips are
predicted at scales of 0.5 to 2, and the best scale tells how many metres a pixel has. One network in one view tells as
much as the ensemble.

Source of the Jaccard index that a mask's own probabilities expect: Nowozin, Optimal decisions from probabilistic
models: the intersection-over-union case, CVPR 2014.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from kit.data.rasters import read_image
from kit.deploy.mosaics.find import Mosaic, Placed
from kit.deploy.mosaics.sides import Floats
from kit.errors import DataError

if TYPE_CHECKING:
    from kit.deploy.weights.load import Weights

SCALES = tuple(2 ** (step / 4) for step in range(-4, 5))  # 0.5 to 2: a factor of 1.19 apart
CHIPS = 4  # predicted, of each mosaic
CROP_PX = 1024  # of each chip; at scale 2 that is four times as much to predict
DRAWS = 200  # of chips, for the interval
NEARLY = 0.96  # of the best support: the right scale had 0.97 and 0.99 of it in the sample's two mosaics, with lite0
LEAST_BUILDING = 0.002  # of the pixels: with less in sight nothing can be said

Image = NDArray[np.uint8]
Pixels = TypeVar("Pixels", Image, Floats)
Predictor = Callable[[Image], Floats]  # (H, W, 3 or 4) uint8 -> probability of building (H, W), 0..1


@dataclass(frozen=True)
class Resolution:
    """What a mosaic's predictions tell about its ground resolution.

    Args:
        gsd_m: metres per pixel.
        low_m: the least that it may be: down to here support is nearly as high, or another draw of chips would lead.
        high_m: the most, likewise.
        support: by scale, how sure and stable the masks are, 0..1.
    """

    gsd_m: float
    low_m: float
    high_m: float
    support: tuple[tuple[float, float], ...]


def estimate_gsd(weights: "Weights", mosaic: Mosaic, chips: int = CHIPS) -> Resolution:
    """Returns the ground resolution of a mosaic.

    Args:
        weights: as loaded; their card tells the resolution that they were trained at.
        mosaic: as found.
        chips: how many are predicted, the ones with neighbours on all sides first.

    Raises:
        DataError: the weights see hardly any building at any scale.
        RasterError: a chip is missing or broken.
    """
    from kit.deploy.engine.predict import predict_image
    from kit.deploy.engine.tuning import first_look

    images = [_middle(read_image(placed.chip.path)) for placed in _choose(mosaic, chips)]
    return estimate_from(partial(predict_image, first_look(weights)), images, weights.card.gsd_m)


def estimate_from(predict: Predictor, images: Sequence[Image], trained_gsd_m: float) -> Resolution:
    """Returns the ground resolution of images of one mosaic.

    Args:
        predict: of an image at any size.
        images: (H, W, 3 or 4) uint8 each.
        trained_gsd_m: metres per pixel of what the predictor was trained on.

    Raises:
        DataError: it sees hardly any building at any scale.
    """
    counts = np.stack([_counts(predict, image) for image in images])  # (N, scales, 4)
    seen = counts[..., 3].sum(0) / sum(image.shape[0] * image.shape[1] for image in images)
    if seen.max() < LEAST_BUILDING:
        raise DataError(
            f"no buildings are found at any scale ({seen.max():.2%} of the pixels): the resolution cannot be told",
            "choose chips with buildings, or tell the resolution",
        )
    support = _support(counts.sum(0))
    rng = np.random.default_rng(0)
    draws = [_peak(_support(counts[rng.integers(len(images), size=len(images))].sum(0))) for _ in range(DRAWS)]
    best = _peak(support)
    fine = np.linspace(np.log(SCALES[0]), np.log(SCALES[-1]), 200)
    likely = fine[np.interp(fine, np.log(SCALES), support) >= NEARLY * support.max()]
    span = best, min(likely[0], *draws), max(likely[-1], *draws)
    gsd_m, low_m, high_m = (float(trained_gsd_m * np.exp(at)) for at in span)
    return Resolution(gsd_m, low_m, high_m, tuple(zip(SCALES, support.tolist(), strict=True)))


def _choose(mosaic: Mosaic, chips: int) -> list[Placed]:
    """Returns chips of a mosaic, spread over it; those inside it show the most imagery."""
    around = [sum((p.row + down, p.col + right) in mosaic.at for down, right in _AROUND) for p in mosaic.placed]
    order = sorted(range(len(around)), key=lambda i: (-around[i], i))
    best = [i for i in order if around[i] == around[order[0]]]
    if len(best) < chips:
        best = order[:chips]
    return [mosaic.placed[best[i]] for i in np.unique(np.linspace(0, len(best) - 1, chips).round().astype(int))]


_AROUND = ((-1, 0), (1, 0), (0, -1), (0, 1))


def resized(image: Pixels, height: int, width: int) -> Pixels:
    """Returns an image or a map, (H, W) or (H, W, C), at another size; what is made smaller is averaged."""
    if image.shape[:2] == (height, width):
        return image
    how = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), image.dtype)  # type: ignore[return-value]


def _middle(image: Image) -> Image:
    """Returns the middle of an image, at most `CROP_PX` on a side."""
    top, left = (max(0, (size - CROP_PX) // 2) for size in image.shape[:2])
    return np.ascontiguousarray(image[top : top + CROP_PX, left : left + CROP_PX])


def _counts(predict: Predictor, image: Image) -> NDArray[np.float64]:
    """Returns for each scale what is summed over chips, (scales, 4).

    Expected intersection and union of the mask with the buildings by its own probabilities; soft intersection with the
    probabilities at the two scales beside, over the soft union; and how many pixels are building.
    """
    height, width = image.shape[:2]
    found = []
    for scale in SCALES:
        seen = resized(image, max(32, round(height * scale)), max(32, round(width * scale)))
        found.append(resized(predict(np.ascontiguousarray(seen)), height, width))
    agreed = [(float(np.minimum(a, b).sum()), float(np.maximum(a, b).sum())) for a, b in pairwise(found)]
    rows = []
    for number, probability in enumerate(found):
        mask = probability > 0.5
        inside = float(probability[mask].sum())
        union = float(mask.sum() + probability[~mask].sum())
        beside = agreed[max(0, number - 1) : number + 1]
        ratio = sum(a for a, _ in beside) / max(sum(b for _, b in beside), 1e-6)
        rows.append((inside, union, ratio * union, float(mask.sum())))
    return np.array(rows)


def _support(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns for each scale how sure (expected Jaccard index) times how stable the masks are, 0..1."""
    union = np.maximum(counts[:, 1], 1e-6)
    sure, stable = counts[:, 0] / union, counts[:, 2] / union
    support: NDArray[np.float64] = sure * stable
    return support


def _peak(support: NDArray[np.float64]) -> float:
    """Returns the logarithm of the scale with the most support, between the scales by a parabola near five of them."""
    scales = np.log(SCALES)
    best = int(support.argmax())
    near = slice(max(0, best - 2), best + 3)
    bend, slope, _ = np.polyfit(scales[near], support[near], 2)
    step = scales[1] - scales[0]
    top = -slope / (2 * bend) if bend < 0 else scales[best]
    return float(np.clip(top, max(scales[0], scales[best] - step), min(scales[-1], scales[best] + step)))
