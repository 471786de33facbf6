"""Scores tiles: how well their labels agree with the prediction, beside tiles whose labels are right."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT

from kit.audit.predicted import IMAGERY, PROBABILITY
from kit.data.audits import TileFinding, TileVerdict
from kit.data.masks import BUILDING, IGNORE, Counts, count
from kit.data.rasters import without_notice
from kit.data.tiles.tile import read_mask
from kit.deploy.mapping.windows import LEVELS
from kit.errors import RasterError

__all__ = [
    "Agreement",
    "agree",
    "agree_repaired",
    "image_of",
    "mask_of",
    "probability_on",
    "score_tiles",
    "tile_jaccard",
]

TOLERATED_M2 = 20.0  # a disagreement of this area halves the index of a tile without buildings
LEAST_SCORE = 0.05  # share of the calibration tiles that may be worse than a tile that trains as it is
UNCALIBRATED = 0.7  # Jaccard index in its place where no tiles are known to be right
DISAGREEMENT = 2.0  # of repaired labels may be so many times that limit: other imagery is harder to predict
MOST_IGNORED = 0.5  # share of a tile's buildings that a repair may ignore


@dataclass(frozen=True)
class Agreement:
    """A tile's labels compared with the prediction."""

    tile: str  # id
    area: str  # of the scene
    scene: str  # of the tile
    jaccard: float  # of the labels as they are, see `tile_jaccard`
    repaired: float | None = None  # of the repaired ones; None where there are no outlines to repair
    ignored: float = 0.0  # share of the buildings that the repair ignores, 0..1


def tile_jaccard(counts: Counts, gsd_m: float) -> float:
    """Returns the Jaccard index of a tile, 0..1, of which a few square metres are no great part.

    Args:
        counts: of its pixels.
        gsd_m: metres per pixel; 0 where unknown, then 0.1.
    """
    tolerated = TOLERATED_M2 / (gsd_m or 0.1) ** 2
    return (counts.tp + tolerated) / (counts.tp + counts.fp + counts.fn + tolerated)


def agree(row: Any, probability: NDArray[np.floating], threshold: float) -> Agreement:
    """Returns how a tile's mask agrees with its prediction.

    Args:
        row: of the index.
        probability: (H, W), 0..1.
        threshold: building is where the probability is above it.
    """
    jaccard = tile_jaccard(count(probability > threshold, mask_of(row)), row.gsd_m)
    return Agreement(row.tile, row.area, row.scene, jaccard)


def agree_repaired(
    row: Any, known: Agreement, probability: NDArray[np.floating], threshold: float,
    buildings: NDArray[np.object_], ignored: NDArray[np.object_],
) -> Agreement:  # fmt: skip
    """Returns the agreement with that of the repaired labels added.

    Args:
        row: of the index.
        known: of the labels as they are.
        probability: see `agree`.
        threshold: likewise.
        buildings: repaired outlines, in the tile's CRS.
        ignored: outlines of which nothing is said, likewise.
    """
    mask = mask_of(row)
    transform = transform_of(row)
    truth = _burn(buildings, transform, mask.shape).astype(np.uint8)
    unsure = _burn(ignored, transform, mask.shape)
    left_out = int((unsure & (mask != IGNORE)).sum())
    built = int(((truth == BUILDING) & ~unsure & (mask != IGNORE)).sum())
    truth[unsure | (mask == IGNORE)] = IGNORE
    jaccard = tile_jaccard(count(probability > threshold, truth), row.gsd_m)
    return Agreement(known.tile, known.area, known.scene, known.jaccard, jaccard, left_out / max(1, left_out + built))


def _burn(outlines: NDArray[np.object_], transform: Affine, shape: tuple[int, int]) -> NDArray[np.bool_]:
    if not len(outlines):
        return np.zeros(shape, bool)
    drawn: NDArray[np.bool_] = rasterize(outlines, shape, transform=transform, dtype=np.uint8).astype(bool)
    return drawn


def transform_of(row: Any) -> Affine:
    """Returns the pixel-to-CRS transform of a tile, from its row of the index."""
    x, y = (row.right - row.left) / row.width_px, (row.top - row.bottom) / row.height_px
    return Affine(x, 0, row.left, 0, -y, row.top)


def mask_of(row: Any) -> NDArray[np.uint8]:
    """Returns the mask of a tile, (H, W) uint8, from its row of the index.

    Raises:
        RasterError: it cannot be read.
    """
    try:
        return read_mask(row.mask)
    except RasterioError as cause:
        raise RasterError(f"{row.mask} cannot be read: {cause}", "give the same kit prepare again") from cause


def image_of(row: Any) -> NDArray[np.uint8]:
    """Returns the image of a tile, (H, W, 3) uint8, from its row of the index.

    Raises:
        RasterError: it cannot be read.
    """
    try:
        with without_notice, rasterio.open(row.image) as source:
            return np.ascontiguousarray(source.read((1, 2, 3)).transpose(1, 2, 0))
    except RasterioError as cause:
        raise RasterError(f"{row.image} cannot be read: {cause}", "give the same kit prepare again") from cause


def probability_on(raster: rasterio.DatasetReader, row: Any) -> NDArray[np.float32]:
    """Returns the predicted probability on a tile's pixels, (H, W), 0..1, from the raster of its scene."""
    with WarpedVRT(
        raster, crs=row.crs, transform=transform_of(row), width=row.width_px, height=row.height_px,
        resampling=Resampling.bilinear, nodata=None, src_nodata=None,
    ) as tile:  # fmt: skip
        level, imagery = tile.read((PROBABILITY, IMAGERY)).astype(np.float32)
    level[imagery == 0] = 0
    return np.asarray(level / LEVELS, np.float32)


def score_tiles(tiles: Sequence[Agreement], calibration: Sequence[float]) -> Iterator[TileFinding]:
    """Yields the score and the verdict of each tile.

    Args:
        tiles: compared.
        calibration: `tile_jaccard` of tiles whose labels are right, predicted by weights that have not seen them;
            empty where none are known.
    """
    right = np.sort(np.asarray(calibration, float))

    def score(jaccard: float) -> float:
        if not len(right):
            return jaccard
        return float(np.searchsorted(right, jaccard, side="right") / len(right))

    least = float(np.quantile(right, LEAST_SCORE)) if len(right) else UNCALIBRATED
    for tile in tiles:
        verdict, reason = _judge(tile, least)
        repaired = None if tile.repaired is None else round(tile.repaired, 4)
        yield TileFinding(
            tile.tile, tile.area, tile.scene, round(tile.jaccard, 4), repaired, round(score(tile.jaccard), 4),
            verdict, reason,
        )  # fmt: skip


def _judge(tile: Agreement, least: float) -> tuple[TileVerdict, str]:
    """Returns the verdict of a tile, and its reason; `least` is the Jaccard index from which it trains as it is."""
    if tile.jaccard >= least:
        return "train", ""
    if tile.repaired is None:
        return "leave_out", "the labels differ from the prediction, and there are no outlines to repair"
    if tile.ignored > MOST_IGNORED:
        return "leave_out", f"{tile.ignored:.0%} of its buildings are not sure"
    if 1 - tile.repaired <= DISAGREEMENT * (1 - least):
        return "repair", "the labels differ from the prediction, the repaired ones do not"
    return "leave_out", "the repaired labels differ from the prediction, too"
