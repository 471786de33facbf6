"""The prediction of a scene as a raster with the bands probability, spread and imagery, made window by window."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from kit.console import meter
from kit.data.tiles.ledger import key_of
from kit.deploy.mapping.cogs import TILED, bands
from kit.deploy.mapping.map_files import PredictionKey
from kit.deploy.mapping.scene import SceneReader
from kit.deploy.mapping.strips import Strips
from kit.deploy.mapping.windows import Band
from kit.errors import KitError
from kit.system.files import replacing

__all__ = ["IMAGERY", "PROBABILITY", "SPREAD", "SPREAD_MOST", "Voter", "key_of_raster", "predict_raster"]

PROBABILITY, SPREAD, IMAGERY = 1, 2, 3  # bands: 0..255 for 0..1; 0..255 for 0..SPREAD_MOST; 0 or 255
SPREAD_MOST = 0.5  # the largest standard deviation of values from 0 to 1

KEY_TAG = "KIT_PREDICTION"  # of the file: what it was predicted from
Voter = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]  # see `kit.audit.votes.Votes`


def predict_raster(reader: SceneReader, vote: Voter, key: PredictionKey, file: Path) -> None:
    """Writes the prediction of a scene on the frame that the reader works on.

    Finished rows of windows are kept beside the file, so that a rerun resumes. One row of windows is in memory at a
    time.

    Args:
        reader: of the scene, set to the resolution of the weights.
        vote: returns the probability and the spread of a window.
        key: scene, weights and windows.
        file: a GeoTIFF of three bands, see the constants of this module.

    Raises:
        RasterError: the scene is broken; finished rows are kept.
        KitError: the disk is full.
    """
    rows, columns = key.windows
    strips = Strips(file.with_name(f".{file.stem}.strips"), asdict(key), rows.edges, rows.edges)
    with meter(f"predict {file.stem}", len(rows) * len(columns)) as running:
        running.skip(strips.done * len(columns))
        while (index := strips.done) < len(rows):
            carried = strips.carried()  # probability and spread side by side, (overlap, 2 W)
            halves = np.hsplit(carried, 2) if carried is not None else (None, None)
            both = [Band(rows, columns, index, half) for half in halves]
            top, bottom = rows.edges[index : index + 2]
            valid = np.zeros((bottom - top, columns.size_px), bool)
            for column in range(len(columns)):
                rgba = reader.read(rows.span(index), columns.span(column)).rgba
                imagery = rgba[..., 3] > 0
                if imagery.any():
                    mean, deviation = vote(rgba)
                    both[0].add(column, mean)
                    both[1].add(column, np.minimum(deviation / SPREAD_MOST, 1))
                    first, last = columns.span(column)
                    valid[:, first:last] |= imagery[: bottom - top]
                running.advance()
            (level, carry), (spread, spread_carry) = (band.finished() for band in both)
            strips.put(np.hstack([level, spread]), valid, np.hstack([carry, spread_carry]))
    _write(file, reader, strips, key)
    shutil.rmtree(strips.folder)


def key_of_raster(file: Path) -> str:
    """Returns what a raster was predicted from; empty where there is none, or it is damaged."""
    try:
        with rasterio.open(file) as source:
            return str(source.tags().get(KEY_TAG, ""))
    except RasterioError:
        return ""


def _write(file: Path, reader: SceneReader, strips: Strips, key: PredictionKey) -> None:
    frame = reader.work
    shape = {"count": 3, "dtype": "uint8", "width": frame.width, "height": frame.height}
    place = {"crs": rasterio.crs.CRS.from_wkt(frame.crs), "transform": frame.transform}
    try:
        with (
            replacing(file) as temporary,
            rasterio.open(temporary, "w", **TILED, **shape, **place, compress="deflate", zlevel=1) as target,
        ):
            target.update_tags(**{KEY_TAG: key_of(asdict(key))})
            target.descriptions = ("probability", "spread", "imagery")
            for top, bottom in bands(frame.height):
                valid = strips.valid(top, bottom)
                planes = np.stack([*np.hsplit(strips.level(top, bottom), 2), valid * np.uint8(255)])
                target.write(planes * valid, window=((top, bottom), (0, frame.width)))
    except RasterioError as cause:
        raise KitError(
            f"cannot write {file}: {cause.__cause__ or cause}", "free some space and rerun to resume"
        ) from cause
