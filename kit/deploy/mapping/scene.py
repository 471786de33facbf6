"""A scene's pixel grid on the ground, and the reader that gives windows of it at the weights' resolution."""

import math
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import pyproj
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj.exceptions import CRSError, ProjError
from rasterio.errors import RasterioError
from rasterio.windows import Window

from kit.data.collars import in_collar
from kit.data.rasters import find_collar, open_scene, validity
from kit.data.sources.outside import check_inside
from kit.data.sources.remote import is_remote, local_path
from kit.deploy.mapping.resampling import Span, reach, resample
from kit.errors import RasterError

SAME_RESOLUTION = 1.1  # a scene that is finer or coarser than the weights by less than this factor is not resampled
COARSEST = 8.0  # beyond this factor a small house is smaller than a few pixels
MEASURED_PX = 100  # distance over which the size of a pixel is measured
MOST_SKEW = math.sin(math.radians(10))  # cosine of the angle between rows and columns
OPAQUE = 255
DEGREES = "EPSG:4326"


@dataclass(frozen=True)
class Frame:
    """A grid of pixels that covers a scene."""

    width: int  # px
    height: int  # px
    transform: Affine  # from pixels to the CRS; it may rotate or mirror
    crs: str  # as WKT
    x_m: float  # ground distance between neighbouring pixels of a row, in the middle of the scene
    y_m: float  # the same for a column; in a CRS of degrees the two differ

    @property
    def gsd_m(self) -> float:
        """Ground sampling distance, metres per pixel: the geometric mean of both directions."""
        return math.sqrt(self.pixel_m2)

    @property
    def pixel_m2(self) -> float:
        """Ground area of a pixel."""
        return self.x_m * self.y_m

    def scale(self, other: "Frame") -> tuple[float, float]:
        """Returns the size of this frame's pixels in pixels of another frame of the same scene: across, down."""
        return other.width / self.width, other.height / self.height

    def at(self, gsd_m: float) -> "Frame":
        """Returns the frame of the same scene at another resolution, or this one if its resolution is nearly that.

        Raises:
            RasterError: this frame is much coarser.
        """
        x, y = gsd_m / self.x_m, gsd_m / self.y_m
        if all(1 / SAME_RESOLUTION < factor < SAME_RESOLUTION for factor in (x, y)):
            return self
        if max(1 / x, 1 / y) > COARSEST:
            raise RasterError(
                f"the scene has {self.gsd_m:.3g} m per pixel, the weights were trained at {gsd_m:.3g} m",
                "take a finer scene, or set the resolution to predict at: --gsd, in metres per pixel",
            )
        width, height = max(1, round(self.width / x)), max(1, round(self.height / y))
        x, y = self.width / width, self.height / height  # the edges of the scene stay where they are
        return Frame(width, height, self.transform @ Affine.scale(x, y), self.crs, self.x_m * x, self.y_m * y)


def frame_of(source: rasterio.DatasetReader) -> Frame:
    """Returns the frame of a scene's own pixels.

    Raises:
        RasterError: the scene has no place on the earth, or its pixels are skewed.
    """
    crs, lost = source.crs.to_wkt(), f"{source.name} has no place on the earth in {source.crs}"
    x, y = source.width / 2, source.height / 2
    across, down = min(MEASURED_PX, source.width) / 2, min(MEASURED_PX, source.height) / 2
    ends = [source.transform @ at for at in ((x - across, y), (x + across, y), (x, y - down), (x, y + down))]
    try:
        to_degrees = pyproj.Transformer.from_crs(crs, DEGREES, always_xy=True)
        left, right, top, bottom = zip(*to_degrees.transform(*np.transpose(ends)), strict=True)
    except (CRSError, ProjError) as cause:
        raise RasterError(f"{lost}: {cause}", "assign its coordinate system: gdal_edit.py -a_srs EPSG:...") from cause
    if not np.isfinite([left, right, top, bottom]).all():
        raise RasterError(lost, "check its georeference: gdalinfo")
    pairs = ((left, right), (top, bottom), (right, bottom), (left, bottom))
    row_m, column_m, falling_m, rising_m = (pyproj.Geod(ellps="WGS84").inv(*a, *b)[2] for a, b in pairs)
    if not (row_m > 0 and column_m > 0):
        raise RasterError(lost, "check its georeference: gdalinfo")
    cosine = (rising_m**2 - falling_m**2) / (row_m * column_m)  # of the angle between rows and columns
    if abs(cosine) > MOST_SKEW:
        angle = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
        raise RasterError(
            f"{source.name} has skewed pixels: its rows and columns meet at {angle:.0f} degrees, expected 90",
            "warp it to a plain grid: gdalwarp -t_srs EPSG:...",
        )
    return Frame(
        source.width, source.height, source.transform, crs, x_m=row_m / (2 * across), y_m=column_m / (2 * down)
    )


@dataclass(frozen=True)
class SceneWindow:
    """A window of a scene."""

    # input of the network, uint8 (h, w, 4): alpha is 0 or 255, and pixels without imagery are black
    rgba: NDArray[np.uint8]
    valid: NDArray[np.bool_]  # where the scene has imagery, in its own pixels, (H, W) bool
    top: int  # the scene's row at which `valid` begins
    left: int  # its column


def check_source(href: str, allow_outside: bool = False) -> None:
    """Checks, before any work, that a scene is a remote address or a regular file.

    Args:
        href: path or address.
        allow_outside: lets a VRT read files outside its own folder, and addresses.

    Raises:
        RasterError: it is missing, or a folder, a device or a pipe.
        DataError: it names files outside its folder.
    """
    if is_remote(href):
        return
    path = local_path(href)
    if not path.is_file():
        reason = "is not a regular file" if path.exists() else "does not exist"
        raise RasterError(f"the scene {href} {reason}", "expected the path or address of a GeoTIFF")
    if not allow_outside:
        check_inside(href)


class SceneReader:
    """Reads windows of a scene at a chosen resolution; a context manager.

    Args:
        href: path or address.

    Attributes:
        scene: the scene's own frame.
        work: the frame whose windows are read; the scene's own until `set_resolution`.

    Raises:
        RasterError: the scene cannot be read, has no CRS, or is not uint8 RGB or RGBA.
    """

    def __init__(self, href: str) -> None:
        self.href = href
        self.source = open_scene(href)
        try:
            self.scene = self.work = frame_of(self.source)
            collar = find_collar(self.source)
        except RasterError:
            self.source.close()
            raise
        self.near = None if collar is None else collar.near

    def __enter__(self) -> "SceneReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.source.close()

    @property
    def taken(self) -> str:
        """Date of the imagery as the file has it; empty where it does not say."""
        tags = {**self.source.tags(), **self.source.tags(ns="IMAGERY")}
        return str(tags.get("ACQUISITIONDATETIME") or tags.get("TIFFTAG_DATETIME") or "")

    def set_resolution(self, gsd_m: float) -> Frame:
        """Sets the ground resolution to read at, and returns the frame that windows divide; see `Frame.at`."""
        self.work = self.scene.at(gsd_m)
        return self.work

    def read(self, rows: Span, columns: Span) -> SceneWindow:
        """Returns a window of the working frame.

        Raises:
            RasterError: the scene is broken there.
        """
        if self.work == self.scene:
            return SceneWindow(*self._pixels(rows, columns), rows[0], columns[0])
        across, down = self.work.scale(self.scene)
        top, bottom = reach(*rows, down, self.scene.height)
        left, right = reach(*columns, across, self.scene.width)
        rgba, valid = self._pixels((top, bottom), (left, right))
        size = self.scene.height, self.scene.width
        mean = resample(rgba, ((top, bottom), (left, right)), (rows, columns), (down, across), size)
        share = mean[..., 3:] / OPAQUE  # of imagery: black pixels around it do not darken its edge
        scaled = np.minimum(np.rint(mean / np.maximum(share, 1 / OPAQUE)), OPAQUE).astype(np.uint8)
        scaled[share[..., 0] < 0.5] = 0
        scaled[share[..., 0] >= 0.5, 3] = OPAQUE
        return SceneWindow(np.ascontiguousarray(scaled), valid, top, left)

    def _pixels(self, rows: Span, columns: Span) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Returns RGBA, uint8 (h, w, 4), and imagery, (h, w), of a window in the scene's own pixels."""
        window = Window(columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0])
        try:
            rgb = self.source.read((1, 2, 3), window=window)
            valid = validity(self.source, window)
        except RasterioError as cause:
            raise RasterError(
                f"{self.href} is broken at row {rows[0]}, column {columns[0]}: {cause.__cause__ or cause}",
                "fetch the file again and rerun: finished rows of windows are kept",
            ) from cause
        if self.near is not None:
            valid = valid & ~in_collar(rgb, self._near(rows, columns))
        rgba = np.empty((*valid.shape, 4), np.uint8)
        rgba[..., :3] = rgb.transpose(1, 2, 0)
        rgba[..., 3] = OPAQUE
        rgba[~valid] = 0
        return rgba, valid

    def _near(self, rows: Span, columns: Span) -> NDArray[np.uint8]:
        """Returns a window of the collar's map, (h, w)."""
        assert self.near is not None
        height, width = self.near.shape
        down = np.arange(*rows) * height // self.scene.height
        across = np.arange(*columns) * width // self.scene.width
        near: NDArray[np.uint8] = self.near[down[:, None], across]
        return near
