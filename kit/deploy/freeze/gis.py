"""The ensemble as QGIS (plugin Deepness) and WebODM (GeoDeep) read it: an ONNX file of tiles, and metadata keys.

Both programs cut a scene into square tiles at the `resolution` of the metadata, divide bytes by 255, run the file, and
take the largest of the first output's channels, those below `seg_thresh` set to 0.

Sources: GeoDeep 0.9.13 (`inference.py`, `segmentation.py`), Deepness 0.6 (`model_base.py`, `segmentor.py`).
"""

import json
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.deploy.freeze.ensemble import OneGraph
from kit.deploy.weights.card import Card
from kit.errors import KitError, WeightsError

__all__ = ["DEFAULT_TILE_PX", "TileChannels", "TileEnsemble", "gis_metadata", "tile_px_of"]

DEFAULT_TILE_PX = 512
SMALLEST_TILE_PX, LARGEST_TILE_PX = 64, 4096
BLACK, BLACK_PX = 8 / 255, 9  # an area of this or darker and at least this wide is no data, as in kit.data.collars
OVERLAP_PERCENT = 25  # of neighbouring tiles: a margin of 64 px on each side of a tile of 512 px


class TileEnsemble(OneGraph):
    """The ensemble for tiles whose side is a multiple of `pad_multiple`: nothing is padded or cropped."""

    def padded(self, x: Tensor) -> Tensor:
        """Returns x."""
        return x

    def cropped(self, probs: Tensor, x: Tensor) -> Tensor:
        """Returns probs."""
        return probs


class TileChannels(nn.Module):
    """A tile to two channels, background and building.

    The programs drop alpha and fill the outside of a scene with 0, so black areas count as background.

    Shape:
        float32 (1, 3, S, S), RGB in 0..1 -> float32 (1, 2, S, S), 0..1; the channels add to 1.
    """

    def __init__(self, ensemble: TileEnsemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, image: Tensor) -> Tensor:
        """Returns the probabilities of background and building."""
        building = self.ensemble.vote(self.ensemble.members(image * 255.0))
        building = building * (1.0 - no_data(image))
        return torch.cat([1.0 - building, building], dim=1)


def no_data(image: Tensor) -> Tensor:
    """Returns 1 in black areas at least `BLACK_PX` wide, else 0: (1, 3, S, S) -> (1, 1, S, S) float32."""
    brightest = image.amax(dim=1, keepdim=True)
    inside = (F.max_pool2d(brightest, BLACK_PX, 1, BLACK_PX // 2) <= BLACK).float()
    return F.max_pool2d(inside, BLACK_PX, 1, BLACK_PX // 2) * (brightest <= BLACK).float()


def tile_px_of(name: str) -> int:
    """Returns the side of the tiles in a format's name, `onnx-gis` or `onnx-gis:SIDE`, px.

    Raises:
        KitError: the side is not a number, or out of range.
    """
    side = name.partition(":")[2] or str(DEFAULT_TILE_PX)
    if not side.isdecimal() or not SMALLEST_TILE_PX <= int(side) <= LARGEST_TILE_PX:
        raise KitError(
            f"tiles of {side!r} px in --format {name}, expected {SMALLEST_TILE_PX} to {LARGEST_TILE_PX}",
            f"onnx-gis alone takes tiles of {DEFAULT_TILE_PX} px",
        )
    return int(side)


def gis_metadata(card: Card, tile_px: int) -> dict[str, str]:
    """Returns the metadata keys that Deepness and GeoDeep read, in their units.

    Both take the largest channel, so a threshold below 0.5 cannot be expressed: 0.5 is written.

    Args:
        card: of the weights.
        tile_px: side of the tiles.

    Raises:
        WeightsError: the card has no ground resolution, or the side is no multiple of `pad_multiple`.
    """
    gsd_m = card.resolution_m("onnx-gis")
    if tile_px % card.pad_multiple:
        fitting = math.ceil(tile_px / card.pad_multiple) * card.pad_multiple
        raise WeightsError(
            f"tiles of {tile_px} px, expected a multiple of {card.pad_multiple} px for these networks",
            f"--format onnx-gis:{fitting}",
        )
    cleaning = card.postprocess
    smallest_px = cleaning.smallest_m2 / gsd_m**2 if cleaning else 0.0
    values: dict[str, object] = {
        "model_type": "Segmentor",
        "class_names": {str(number): name for number, name in enumerate(card.classes)},
        "resolution": round(gsd_m * 100, 4),  # cm per px
        "tile_size": tile_px,
        "tiles_overlap": OVERLAP_PERCENT,
        "seg_thresh": max(0.5, cleaning.threshold) if cleaning else 0.5,
        "seg_small_segment": round(math.sqrt(smallest_px) / 2),  # GeoDeep removes objects below (2 x this)² px
    }
    return {key: json.dumps(value) for key, value in values.items()}
