"""The orientation that cameras note in a picture (EXIF tag 274): how its stored pixels are turned upright."""

import struct
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import rasterio
from numpy.typing import NDArray
from PIL import PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from rasterio.io import DatasetReader

TAG = 274
UPRIGHT = 1
TURNED = (5, 6, 7, 8)  # those that swap width and height


def orientation_of(source: DatasetReader, content: bytes | None = None) -> int:
    """Returns an open picture's orientation, 1 to 8; 1 (upright) where none is noted.

    A georeference belongs to the pixels as they are stored: with one, the orientation does not count.

    Args:
        source: the open file.
        content: its bytes, where it lies in memory.
    """
    if source.crs is not None or source.transform != rasterio.Affine.identity():
        return UPRIGHT
    noted = source.tags().get("EXIF_Orientation") or _noted(source, content)
    return int(noted) if str(noted) in "2345678" else UPRIGHT


def upright(bands: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Returns bands (..., H, W) turned and mirrored as an orientation says; (..., W, H) for 5 to 8."""
    if orientation in TURNED:
        bands = bands.swapaxes(-1, -2)
    across, down = {2: (1, 0), 3: (1, 1), 4: (0, 1), 6: (1, 0), 7: (1, 1), 8: (0, 1)}.get(orientation, (0, 0))
    return bands[..., :: -1 if down else 1, :: -1 if across else 1]


def _noted(source: DatasetReader, content: bytes | None) -> Any:
    """Returns the orientation of a file of a kind whose EXIF tags GDAL does not show, or 0."""
    try:
        with Path(source.name).open("rb") if content is None else BytesIO(content) as file:
            if source.driver == "GTiff":
                return _tiff_tags(file).get(TAG, 0)
            if source.driver == "PNG":  # getexif() would decode the pixels to look behind them
                picture = PngImagePlugin.PngImageFile(file)
                return picture.getexif().get(TAG, 0) if "exif" in picture.info else 0
            return WebPImagePlugin.WebPImageFile(file).getexif().get(TAG, 0) if source.driver == "WEBP" else 0
    except (OSError, SyntaxError, ValueError, KeyError, struct.error):  # no such file (on a server), or no tags
        return 0


def _tiff_tags(file: BinaryIO) -> TiffImagePlugin.ImageFileDirectory_v2:
    header = file.read(8)
    if header[2:4] in (b"\x2b\0", b"\0\x2b"):  # BigTIFF
        header += file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(header)
    file.seek(tags.next)
    tags.load(file)
    return tags
