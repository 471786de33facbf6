"""Estimates the ground resolution of mosaics from how trained weights see them at several scales.

Networks know buildings at the size, in pixels, that they were trained on. At that size they give probabilities near 0
and 1, and nearly the same mask when the image is a little larger or smaller; at other sizes neither. So chips are
predicted at scales of 0.5 to 2, and the best scale gives the metres per pixel. One network in one view is as good for
this as the whole ensemble.

Source of the Jaccard index that is expected from a mask's own probabilities: Nowozin, Optimal decisions from
probabilistic models: the intersection-over-union case, CVPR 2014.
"""

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from kit.console import meter, say
from kit.data.rasters import read_image
from kit.deploy.engine.predict import predict_image
from kit.deploy.engine.tuned import first_network
from kit.deploy.mosaics.mosaic import Mosaic, PlacedChip
from kit.deploy.mosaics.sides import Floats
from kit.deploy.weights.load import Weights
from kit.errors import DataError
from kit.system.files import file_version, replacing

__all__ = ["estimate_gsd"]

COLUMNS = ("mosaic", "chips", "gsd_m", "low_m", "high_m", "made_from")
ALIKE = 1.1  # a mosaic within this factor of the training resolution is not resized: estimates are no better
SCALES = tuple(2 ** (step / 4) for step in range(-4, 5))  # 0.5 to 2: a factor of 1.19 apart
CHIPS = 4  # predicted per mosaic
CROP_PX = 1024  # of each chip; at scale 2 that is four times as much to predict
DRAWS = 200  # random draws of the chips, for the interval
NEARLY = 0.96  # scales with this share of the best support may be right: the true ones of the sample had 0.97 and 0.99
LEAST_BUILDING = 0.002  # share of building pixels; with fewer nothing can be estimated

Image = NDArray[np.uint8]
Pixels = TypeVar("Pixels", Image, Floats)
Predictor = Callable[[Image], Floats]  # (H, W, 3 or 4) uint8 -> probability of building (H, W), 0..1


@dataclass(frozen=True)
class Resolution:
    """An estimated ground resolution."""

    gsd_m: float  # metres per pixel
    low_m: float  # lower end of the interval in which support is nearly as high, or another draw of chips would lead
    high_m: float  # upper end
    support: tuple[tuple[float, float], ...]  # by scale, how confident and stable the masks are, 0..1


def estimate_gsd(weights: Weights, mosaic: Mosaic, chips: int = CHIPS) -> Resolution:
    """Returns the ground resolution of a mosaic.

    Args:
        weights: as loaded; their card has the resolution of their training.
        mosaic: as found.
        chips: how many are predicted; those with neighbours on all sides come first.

    Raises:
        DataError: the weights find hardly any building at any scale.
        RasterError: a chip is missing or broken.
    """
    images = [_middle(read_image(placed.chip.path)) for placed in _choose(mosaic, chips)]
    return estimate_from(partial(predict_image, first_network(weights)), images, weights.card.gsd_m)


def estimate_from(predict: Predictor, images: Sequence[Image], trained_gsd_m: float) -> Resolution:
    """Returns the ground resolution of images of one mosaic.

    Args:
        predict: of an image at any size.
        images: (H, W, 3 or 4) uint8 each.
        trained_gsd_m: metres per pixel of what the predictor was trained on.

    Raises:
        DataError: it finds hardly any building at any scale.
    """
    counts = np.stack([_counts(predict, image) for image in images])  # (N, scales, 4)
    building = counts[..., 3].sum(0) / sum(image.shape[0] * image.shape[1] for image in images)
    if building.max() < LEAST_BUILDING:
        raise DataError(
            f"no buildings are found at any scale ({building.max():.2%} of the pixels): no resolution can be estimated",
            "choose chips with buildings, or give the resolution: --gsd",
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


def _choose(mosaic: Mosaic, chips: int) -> list[PlacedChip]:
    """Returns chips spread over a mosaic; those inside it have the most imagery."""
    around = [sum((p.row + down, p.col + right) in mosaic.at for down, right in _AROUND) for p in mosaic.placed]
    order = sorted(range(len(around)), key=lambda i: (-around[i], i))
    best = [i for i in order if around[i] == around[order[0]]]
    if len(best) < chips:
        best = order[:chips]
    return [mosaic.placed[best[i]] for i in np.unique(np.linspace(0, len(best) - 1, chips).round().astype(int))]


_AROUND = ((-1, 0), (1, 0), (0, -1), (0, 1))


def resized(image: Pixels, height: int, width: int) -> Pixels:
    """Returns an image or a map, (H, W) or (H, W, C), at another size; averages pixels where it becomes smaller."""
    if image.shape[:2] == (height, width):
        return image
    how = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), image.dtype)  # type: ignore[return-value]


def _middle(image: Image) -> Image:
    """Returns the middle of an image, at most `CROP_PX` on a side."""
    top, left = (max(0, (size - CROP_PX) // 2) for size in image.shape[:2])
    return np.ascontiguousarray(image[top : top + CROP_PX, left : left + CROP_PX])


def _counts(predict: Predictor, image: Image) -> NDArray[np.float64]:
    """Returns for each scale the counts that are summed over chips, (scales, 4).

    The columns: expected intersection, and union, of the mask with the buildings by its own probabilities; the union
    times the soft Jaccard index with the probabilities at the scales beside; number of building pixels.
    """
    height, width = image.shape[:2]
    probabilities = []
    for scale in SCALES:
        scaled = resized(image, max(32, round(height * scale)), max(32, round(width * scale)))
        probabilities.append(resized(predict(np.ascontiguousarray(scaled)), height, width))
    shared = [(float(np.minimum(a, b).sum()), float(np.maximum(a, b).sum())) for a, b in pairwise(probabilities)]
    rows = []
    for number, probability in enumerate(probabilities):
        mask = probability > 0.5
        inside = float(probability[mask].sum())
        union = float(mask.sum() + probability[~mask].sum())
        beside = shared[max(0, number - 1) : number + 1]
        ratio = sum(a for a, _ in beside) / max(sum(b for _, b in beside), 1e-6)
        rows.append((inside, union, ratio * union, float(mask.sum())))
    return np.array(rows)


def _support(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns for each scale how confident (expected Jaccard index) times how stable the masks are, 0..1."""
    union = np.maximum(counts[:, 1], 1e-6)
    confident, stable = counts[:, 0] / union, counts[:, 2] / union
    support: NDArray[np.float64] = confident * stable
    return support


def _peak(support: NDArray[np.float64]) -> float:
    """Returns the logarithm of the scale with the most support, interpolated by a parabola through five scales."""
    scales = np.log(SCALES)
    best = int(support.argmax())
    near = slice(max(0, best - 2), best + 3)
    bend, slope, _ = np.polyfit(scales[near], support[near], 2)
    step = scales[1] - scales[0]
    top = -slope / (2 * bend) if bend < 0 else scales[best]
    return float(np.clip(top, max(scales[0], scales[best] - step), min(scales[-1], scales[best] + step)))


@dataclass(frozen=True)
class ResolutionRow:
    """A row of `resolutions.csv`: one mosaic."""

    mosaic: str  # its name
    chips: int  # how many it has
    gsd_m: float | None  # metres per pixel; None where too few buildings are in sight
    low_m: float | None  # lower end of the interval
    high_m: float | None  # upper end
    made_from: str  # identifies the weights and the chips that it was estimated from

    def factor(self, trained_gsd_m: float) -> float:
        """Returns the factor that brings the mosaic to the training resolution; 1 where it may have that already."""
        if self.gsd_m is None or self.low_m is None or self.high_m is None:
            return 1.0
        ratio = self.gsd_m / trained_gsd_m
        is_other = not self.low_m <= trained_gsd_m <= self.high_m and not 1 / ALIKE < ratio < ALIKE
        return ratio if is_other else 1.0

    def describe(self, trained_gsd_m: float) -> str:
        """Returns the row as a sentence."""
        if self.gsd_m is None:
            return f"{self.mosaic}, {self.chips} chips: too few buildings to estimate its resolution, not resized"
        factor = self.factor(trained_gsd_m)
        resized_ = "not resized" if factor == 1 else f"resized by {factor:.2f}"
        span = f"{self.low_m:.3f} to {self.high_m:.3f}"
        return f"{self.mosaic}, {self.chips} chips: {self.gsd_m:.3f} m per pixel ({span}), {resized_}"


def find_resolutions(weights: Weights, mosaics: Sequence[Mosaic], table: Path) -> list[ResolutionRow]:
    """Returns the resolution of each mosaic of two or more chips; those in the table are not estimated again.

    Args:
        weights: set up to predict.
        mosaics: as found.
        table: that keeps the rows; it is written again.

    Raises:
        RasterError: a chip is missing or broken.
    """
    known = _read(table)
    joined = {_made_from(weights, mosaic): mosaic for mosaic in mosaics if len(mosaic.placed) > 1}
    missing = [made_from for made_from in joined if made_from not in known]
    with meter("estimate resolutions", len(missing)) as progress:
        for made_from in missing:
            known[made_from] = _estimate(weights, joined[made_from], made_from)
            _write(table, list(known.values()))
            progress.advance()
    rows = [known[made_from] for made_from in joined]
    for row in rows:
        say(row.describe(weights.card.gsd_m))
    _write(table, rows)
    return rows


def _estimate(weights: Weights, mosaic: Mosaic, made_from: str) -> ResolutionRow:
    count = len(mosaic.placed)
    try:
        estimate = estimate_gsd(weights, mosaic)
    except DataError:  # hardly any building in sight
        return ResolutionRow(mosaic.name, count, None, None, None, made_from)
    gsd_m, low_m, high_m = (round(metres, 4) for metres in (estimate.gsd_m, estimate.low_m, estimate.high_m))
    return ResolutionRow(mosaic.name, count, gsd_m, low_m, high_m, made_from)  # rounded as the table keeps them


def _made_from(weights: Weights, mosaic: Mosaic) -> str:
    chips = " ".join(f"{placed.chip.id} {file_version(placed.chip.path)}" for placed in mosaic.placed)
    return hashlib.sha256(f"{weights.sha256} {mosaic.name} {chips}".encode()).hexdigest()


def _read(table: Path) -> dict[str, ResolutionRow]:
    """Returns the rows of a table by `made_from`; none where there is no table, or it is damaged."""
    try:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {row["made_from"]: _parsed(row) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}


def _parsed(row: dict[str, str]) -> ResolutionRow:
    gsd_m, low_m, high_m = (float(row[name]) if row[name] else None for name in ("gsd_m", "low_m", "high_m"))
    return ResolutionRow(row["mosaic"], int(row["chips"]), gsd_m, low_m, high_m, row["made_from"])


def _write(table: Path, rows: Sequence[ResolutionRow]) -> None:
    with replacing(table) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            numbers = ("" if number is None else f"{number:.4f}" for number in (row.gsd_m, row.low_m, row.high_m))
            writer.writerow([row.mosaic, row.chips, *numbers, row.made_from])
