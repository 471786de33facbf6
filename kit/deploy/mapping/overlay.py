"""A small picture of the scene with the buildings' outlines: shows at a glance whether they fit the roofs."""

from pathlib import Path

import cv2
import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from kit.deploy.mapping.scene import Frame
from kit.errors import RasterError
from kit.system.files import replacing

LONGEST_PX = 2000
COLOUR = (0, 80, 255)  # BGR orange: stands out against roofs, soil and trees
FRACTION_BITS = 4  # OpenCV takes coordinates in 16ths of a pixel


class Overlay:
    """A small picture of a scene, to draw outlines on.

    Args:
        source: the open scene.
        frame: in whose pixels the outlines are given.

    Raises:
        RasterError: the scene is broken.
    """

    def __init__(self, source: rasterio.DatasetReader, frame: Frame) -> None:
        shrink = max(1.0, max(source.width, source.height) / LONGEST_PX)
        height, width = max(1, round(source.height / shrink)), max(1, round(source.width / shrink))
        try:
            rgb = source.read((1, 2, 3), out_shape=(3, height, width), resampling=rasterio.enums.Resampling.average)
        except RasterioError as cause:
            raise RasterError(f"{source.name} is broken: {cause.__cause__ or cause}", "fetch the file again") from cause
        self.image: NDArray[np.uint8] = np.ascontiguousarray(rgb[::-1].transpose(1, 2, 0))
        self.scale = width / frame.width, height / frame.height

    def draw(self, polygons: NDArray[np.object_]) -> None:
        """Draws the outlines of polygons, given in pixels of the frame."""
        rings = shapely.get_rings(polygons)
        points = [
            np.rint((shapely.get_coordinates(ring) * self.scale - 0.5) * 2**FRACTION_BITS).astype(np.int32)
            for ring in rings
        ]
        thick = 2 if max(self.scale) > 0.5 else 1
        cv2.polylines(self.image, points, True, COLOUR, thick, cv2.LINE_AA, FRACTION_BITS)

    def write(self, path: Path) -> None:
        """Writes the picture as PNG.

        Raises:
            KitError: the disk is full.
        """
        _, encoded = cv2.imencode(".png", self.image)
        with replacing(path) as temporary:
            temporary.write_bytes(encoded.tobytes())
