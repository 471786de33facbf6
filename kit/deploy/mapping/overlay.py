"""A small picture of a map: outlines over the scene, to see at a glance whether they sit on the roofs."""

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
COLOUR = (0, 80, 255)  # BGR: stands out against roofs, soil and trees
FINE = 4  # bits of a pixel's fraction that OpenCV draws with


class Overlay:
    """A scene, small, that gets outlines.

    Args:
        source: the scene, open.
        frame: of the polygons that will come, in its pixels.

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
        """Draws outlines, in pixels of the frame."""
        rings = shapely.get_rings(polygons)
        points = [
            np.rint((shapely.get_coordinates(ring) * self.scale - 0.5) * 2**FINE).astype(np.int32) for ring in rings
        ]
        thick = 2 if max(self.scale) > 0.5 else 1
        cv2.polylines(self.image, points, True, COLOUR, thick, cv2.LINE_AA, FINE)

    def write(self, path: Path) -> None:
        """Writes the picture, a PNG.

        Raises:
            KitError: the disk is full.
        """
        _, encoded = cv2.imencode(".png", self.image)
        with replacing(path) as temporary:
            temporary.write_bytes(encoded.tobytes())
