"""What networks learned from, for the card: the ground of their tiles, their encoders, the options of their runs."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from kit.console import say
from kit.data.grids import on_earth
from kit.data.index import read_index
from kit.deploy.weights.card import Provenance, TrainedArea, TrainedEncoder
from kit.errors import DataError
from kit.models.pretrained import timm
from kit.paths import Paths
from kit.system.files import sha256_of
from kit.training.run_files import RunSettings

__all__ = ["provenance_of", "trained_areas"]

SIDES = ["left", "bottom", "right", "top"]  # of a tile, in the index
OPTIONS = ("epochs", "steps_per_epoch", "minutes", "batch_size", "precision", "ranks", "device")  # of settings.json


def provenance_of(runs: Sequence[RunSettings], paths: Paths) -> Provenance:
    """Returns what runs learned from; without areas, and with a notice, where a data set is gone or has changed.

    Args:
        runs: their settings.
        paths: of the working root, with the data sets.
    """
    encoders = tuple(dict.fromkeys(_encoder(run) for run in runs if run.encoder))
    shared = {name: value for name in OPTIONS if (value := getattr(runs[0], name))}
    options = {name: value for name, value in shared.items() if all(getattr(run, name) == value for run in runs)}
    try:
        areas = trained_areas(pd.concat([part for run in runs for part in _tiles(run, paths)]))
    except DataError as cause:
        say(f"the card gets no areas of training: {cause.message}")
        areas = ()
    return Provenance(areas, encoders, options)


def trained_areas(index: pd.DataFrame) -> tuple[TrainedArea, ...]:
    """Returns the areas of tiles, by name; tiles without a place on the ground are left out.

    Args:
        index: of a data set; a tile may occur several times.
    """
    if "left" not in index:
        return ()
    placed = index[index["left"].notna() & (index["crs"] != "")].drop_duplicates("image")
    areas = []
    for name, tiles in placed.groupby("area"):
        boxes = [box for crs, part in tiles.groupby("crs") if (box := _degrees(str(crs), part))]
        if boxes:
            west, south, east, north = zip(*boxes, strict=True)
            bbox = min(west), min(south), max(east), max(north)
            scenes = len(tiles[["data", "scene"]].drop_duplicates()) if "data" in tiles else tiles["scene"].nunique()
            areas.append(TrainedArea(str(name), scenes, len(tiles), bbox))
    return tuple(areas)


def _degrees(crs: str, tiles: pd.DataFrame) -> tuple[float, float, float, float] | None:
    """Returns west, south, east and north of tiles; None where their CRS is not of the earth."""
    if not on_earth(CRS.from_string(crs)):
        return None
    low, high = tiles[SIDES].min(), tiles[SIDES].max()
    box = transform_bounds(crs, "EPSG:4326", low["left"], low["bottom"], high["right"], high["top"])
    west, south, east, north = (round(float(value), 6) for value in box)
    inside = -180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90  # false for NaN
    return (west, south, east, north) if inside else None


def _tiles(run: RunSettings, paths: Paths) -> list[pd.DataFrame]:
    """Returns the tiles that a run was trained on, one table a data set.

    Raises:
        DataError: a data set is gone, or its index has changed since.
    """
    sets = [(run.data or "", run.data_sha256), *((each.name, each.index_sha256) for each in run.added)]
    tables = []
    for name, sha256 in sets:
        _, index = read_index(paths, name)
        if sha256 and sha256_of(paths.data(name) / "index.csv") != sha256:
            raise DataError(f"the index of {name} has changed since the training", "restore the index")
        tables.append(index)
    tables[0] = tables[0][tables[0]["fold"].astype(str) != str(run.fold)]
    return tables


def _encoder(run: RunSettings) -> TrainedEncoder:
    """Returns a run's encoder. The weights in a package are timm's, under timm's licence."""
    name, weights = str(run.encoder), run.encoder_weights or ""
    config = timm.get_pretrained_cfg(name) if weights.startswith(("timm ", "package ")) else None
    started = Path(weights).name if run.start_from else weights
    return TrainedEncoder(name, started, str(config.license or "") if config else "")
