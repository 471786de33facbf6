"""Where a scene's pixels lie on the ground, and at which resolution the weights want to see them."""

import math
from dataclasses import dataclass

import pyproj
import rasterio
from affine import Affine
from pyproj.exceptions import CRSError, ProjError

from kit.errors import RasterError

AS_IT_IS = 1.1  # a scene that is so much finer or coarser than the weights' resolution is not resampled
COARSEST = 8.0  # beyond so many times that resolution a small house is less than a few pixels
MEASURED_PX = 100  # over which a pixel is measured
DEGREES = "EPSG:4326"


@dataclass(frozen=True)
class Frame:
    """A grid of pixels that covers a scene.

    Args:
        width: px.
        height: px.
        transform: pixel to CRS; it may turn or mirror.
        crs: as WKT.
        x_m: metres on the ground from one pixel to the next, along a row in the scene's middle.
        y_m: likewise along a column: in degrees, the two differ.
    """

    width: int
    height: int
    transform: Affine
    crs: str
    x_m: float
    y_m: float

    @property
    def gsd_m(self) -> float:
        """Metres on the ground per pixel, the mean of both directions."""
        return math.sqrt(self.x_m * self.y_m)

    def scale(self, finer: "Frame") -> tuple[float, float]:
        """Returns how many pixels of another frame of the same scene one of these is, along rows and along columns."""
        return finer.width / self.width, finer.height / self.height

    def at(self, gsd_m: float) -> "Frame":
        """Returns the frame of the same scene at another resolution; this one, where it is nearly that already.

        Raises:
            RasterError: this one is much too coarse.
        """
        x, y = gsd_m / self.x_m, gsd_m / self.y_m
        if all(1 / AS_IT_IS < scale < AS_IT_IS for scale in (x, y)):
            return self
        if max(1 / x, 1 / y) > COARSEST:
            raise RasterError(
                f"the scene has {self.gsd_m:.3g} m per pixel, the weights know {gsd_m:.3g} m",
                "take a finer scene, or say how to look at it: --gsd and metres per pixel",
            )
        width, height = max(1, round(self.width / x)), max(1, round(self.height / y))
        x, y = self.width / width, self.height / height  # the edges stay where they are
        return Frame(width, height, self.transform @ Affine.scale(x, y), self.crs, self.x_m * x, self.y_m * y)


def frame_of(source: rasterio.DatasetReader) -> Frame:
    """Returns the frame of a scene's own pixels.

    Raises:
        RasterError: it lies nowhere on the earth.
    """
    crs, lost = source.crs.to_wkt(), f"{source.name} lies nowhere on the earth in {source.crs}"
    x, y = source.width / 2, source.height / 2
    across, down = min(MEASURED_PX, source.width) / 2, min(MEASURED_PX, source.height) / 2
    ends = [source.transform @ at for at in ((x - across, y), (x + across, y), (x, y - down), (x, y + down))]
    try:
        to_degrees = pyproj.Transformer.from_crs(crs, DEGREES, always_xy=True)
        longitudes, latitudes = to_degrees.transform([at[0] for at in ends], [at[1] for at in ends])
    except (CRSError, ProjError) as cause:
        raise RasterError(f"{lost}: {cause}", "assign its coordinate system: gdal_edit.py -a_srs EPSG:...") from cause
    geod = pyproj.Geod(ellps="WGS84")
    if all(map(math.isfinite, (*longitudes, *latitudes))):
        _, _, (row_m, column_m) = geod.inv(longitudes[::2], latitudes[::2], longitudes[1::2], latitudes[1::2])
        x_m, y_m = row_m / (2 * across), column_m / (2 * down)
        if x_m > 0 and y_m > 0:
            return Frame(source.width, source.height, source.transform, crs, x_m, y_m)
    raise RasterError(lost, "check its georeference: gdalinfo")
