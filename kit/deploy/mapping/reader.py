"""Scenes read in windows, at the resolution that the weights know, with where there is imagery."""

from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from kit.data.collars import in_collar
from kit.data.rasters import find_collar, open_scene, validity
from kit.deploy.mapping.resampling import Span, reach, resample
from kit.deploy.mapping.scene import Frame, frame_of
from kit.errors import RasterError

OPAQUE = 255


@dataclass(frozen=True)
class Seen:
    """A window of a scene.

    Args:
        rgba: as the weights take it, uint8 (h, w, 4); black where there is no imagery, alpha 0 or 255.
        valid: where the scene has imagery, in its own pixels, (H, W) bool.
        top: the scene's row that `valid` begins with.
        left: its column.
    """

    rgba: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    top: int
    left: int


class Reader:
    """A scene that is read at some resolution; to be used as a context.

    Args:
        href: path or address.

    Raises:
        RasterError: it cannot be read, has no CRS, or is not uint8 RGB or RGBA.
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

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.source.close()

    def look_at(self, gsd_m: float) -> Frame:
        """Returns the frame that is read from now on: the scene at a ground resolution; see `Frame.at`."""
        self.work = self.scene.at(gsd_m)
        return self.work

    def read(self, rows: Span, columns: Span) -> Seen:
        """Returns a window of the working frame.

        Raises:
            RasterError: the scene is broken there.
        """
        across, down = self.work.scale(self.scene)
        if self.work == self.scene:
            return self._seen(*self._pixels(rows, columns), rows[0], columns[0])
        top, bottom = reach(*rows, down, self.scene.height)
        left, right = reach(*columns, across, self.scene.width)
        rgba, valid = self._pixels((top, bottom), (left, right))
        size = self.scene.height, self.scene.width
        mean = resample(rgba, ((top, bottom), (left, right)), (rows, columns), (down, across), size)
        share = mean[..., 3:] / OPAQUE  # of imagery: what is black around it does not darken its edge
        made = np.minimum(np.rint(mean / np.maximum(share, 1 / OPAQUE)), OPAQUE).astype(np.uint8)
        made[share[..., 0] < 0.5] = 0
        made[share[..., 0] >= 0.5, 3] = OPAQUE
        return self._seen(made, valid, top, left)

    def _seen(self, rgba: NDArray[np.uint8], valid: NDArray[np.bool_], top: int, left: int) -> Seen:
        return Seen(np.ascontiguousarray(rgba), valid, top, left)

    def _pixels(self, rows: Span, columns: Span) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Returns RGBA, (h, w, 4) uint8, and imagery, (h, w), of a window in the scene's own pixels."""
        window = Window(columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0])
        try:
            rgb = self.source.read((1, 2, 3), window=window)
            valid = validity(self.source, window)
        except RasterioError as cause:
            raise RasterError(
                f"{self.href} is broken at row {rows[0]}, column {columns[0]}: {cause.__cause__ or cause}",
                "fetch the file again; the same command goes on",
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
