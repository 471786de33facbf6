"""Which pixels of a tile belong to which building, and the layers that teach a network to tell buildings apart."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioIOError

from kit.data.masks import BUILDING, IGNORE, LAYERS
from kit.data.rasters import without_notice

__all__ = ["Walls", "ids_file", "pack_ids", "read_ids"]

IDS, MASKS = "ids", "masks"  # folders of a data set


@dataclass(frozen=True)
class Walls:
    """Draws footprint, boundary and contact from the buildings of a crop.

    Widths are those of the crop, whatever its scale: a network sees walls of one width.
    """

    boundary_px: int = 13  # side of the square that erodes each building, odd; what it removes is the boundary
    contact_px: int = 17  # side of the square in which ground that sees two buildings is contact, odd

    def draw(self, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Returns the layers of `LAYERS`, (3, H, W) uint8: 0 no, 1 yes, 255 no data.

        Args:
            packed: see `pack_ids`.
        """
        mask, low, high = cv2.split(packed)
        known, building = mask != IGNORE, mask == BUILDING
        ids = (low.astype(np.uint16) | high.astype(np.uint16) << 8) * building
        layers = np.empty((len(LAYERS), *mask.shape), np.uint8)
        layers[0] = building
        square = np.ones((self.boundary_px, self.boundary_px), np.uint8)
        layers[1] = building & (cv2.erode(ids, square) != cv2.dilate(ids, square))
        square = np.ones((self.contact_px, self.contact_px), np.uint8)
        nearest = cv2.erode(np.where(building, ids, np.uint16(0xFFFF)), square)  # the lowest number in reach
        layers[2] = ~building & (nearest < cv2.dilate(ids, square))
        layers[:, ~known] = IGNORE
        return layers


def ids_file(mask_file: str | Path) -> Path:
    """Returns the raster of ids beside a tile's mask; of ready-made masks there is none."""
    mask_file = Path(mask_file)
    area = mask_file.parent.parent
    return area.parent.with_name(IDS) / mask_file.relative_to(area.parent)


def read_ids(mask_file: str | Path, mask: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Returns the number of the building of each pixel, (H, W), from 1; 0 elsewhere.

    Without a raster of ids, or where it does not fit the mask any more, they are the connected components of the mask.

    Args:
        mask_file: path of the mask.
        mask: as read from it, (H, W): 0, 1, 255.
    """
    building = mask == BUILDING
    try:
        with without_notice, rasterio.open(ids_file(mask_file)) as source:
            ids: NDArray[np.uint16] = source.read(1)
        if ids.dtype == np.uint16 and np.array_equal((ids > 0) & (mask != IGNORE), building):
            return np.where(building, ids, np.uint16(0))
    except RasterioIOError:
        pass
    components = cv2.connectedComponents(building.astype(np.uint8), connectivity=4)[1]
    return np.where(building, (components - 1) % 0xFFFE + 1, 0).astype(np.uint16)


def pack_ids(mask: NDArray[np.uint8], ids: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Returns mask, low byte and high byte of the ids, (H, W, 3) uint8: as one image, augmentations move them alike."""
    return np.asarray(cv2.merge([mask, (ids & 0xFF).astype(np.uint8), (ids >> 8).astype(np.uint8)]), np.uint8)
