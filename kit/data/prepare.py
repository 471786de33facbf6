"""A catalogue to a data set on disk, and a data set to its index."""

from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from kit.console import meter
from kit.data.catalog import read_scenes
from kit.data.folds import assign_folds
from kit.data.tiles import Tile, cut_scene
from kit.errors import DataError, RasterError, nearest
from kit.paths import Paths, replacing


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made.

    Args:
        name: of the data set.
        index: one row a tile, with its fold.
        skipped: tiles without imagery, per (area, scene).
        notice: something to tell about the folds, or nothing.
    """

    name: str
    index: pd.DataFrame
    skipped: dict[tuple[str, str], int]
    notice: str


def prepare(
    catalog: Path,
    paths: Paths,
    name: str = "",
    grid: str = "z19",
    side_px: int = 1024,
    by: str = "auto",
    k: int = 5,
    layers: bool = False,
) -> Prepared:
    """Cuts a catalogue's scenes into `data/NAME`: images, masks, `index.csv` with folds.

    The folder appears under its name when it is complete, and not before.

    Args:
        catalog: a STAC catalogue, or the folder that holds it.
        paths: of the working root.
        name: of the data set; the catalogue's id by default.
        grid: see `grid_of`.
        side_px: side of a tile.
        by: how tiles are put into folds, see `kit.data.folds`.
        k: number of folds.
        layers: masks get the bands footprint, boundary and contact, see `draw_layers`.

    Raises:
        CatalogError, RasterError, FootprintError, DataError: see the functions above.
    """
    identity, scenes = read_scenes(catalog)
    tiles: list[Tile] = []
    skipped: dict[tuple[str, str], int] = {}
    with replacing(paths.data(name or identity)) as folder, meter("cut tiles", 0) as progress:
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        for scene in scenes:
            found, skipped[scene.area, scene.scene] = cut_scene(scene, grid, side_px, folder, progress, layers)
            if not found:
                raise RasterError(f"{scene.image} holds no imagery: every tile is empty", "check its alpha band")
            tiles.extend(found)
        index = pd.DataFrame([asdict(tile) for tile in tiles])
        index.insert(4, "fold", 0)
        index["fold"], notice = assign_folds(index, by, k)
        index.to_csv(folder / "index.csv", index=False)
    return Prepared(name or identity, index, skipped, notice)


def read_index(paths: Paths, name: str = "") -> tuple[str, pd.DataFrame]:
    """Returns a data set's name and index; without a name, the only one there is. Paths in it become absolute.

    Raises:
        DataError: there is none of that name, none at all, or several to choose from.
    """
    known = paths.data_names()
    if name and name not in known:
        raise DataError(
            f"no data set {name!r} below {paths.data('').parent}", f"{nearest(name, known)}; or kit prepare"
        )
    if not name and len(known) != 1:
        if not known:
            raise DataError("no data set is prepared here", "kit prepare CATALOG; or kit run quickstart for the sample")
        raise DataError(f"several data sets are prepared: {', '.join(known)}", "choose one with --data NAME")
    name = name or known[0]
    folder = paths.data(name)
    index = pd.read_csv(folder / "index.csv", dtype={"tile": str, "area": str, "scene": str})
    for column in ("image", "mask"):
        index[column] = [str(folder / file) for file in index[column]]
    return name, index


def refold(
    paths: Paths, name: str, by: str, k: int, block_m: float | None = None, gap_m: float | None = None
) -> tuple[pd.DataFrame, str]:
    """Rewrites the fold column of a data set without cutting again; returns the index and a notice."""
    name, _ = read_index(paths, name)
    file = paths.data(name) / "index.csv"
    index = pd.read_csv(file, dtype={"tile": str, "area": str, "scene": str})
    index["fold"], notice = assign_folds(index, by, k, block_m, gap_m)
    written = pd.read_csv(file, dtype=str, keep_default_na=False)  # the other columns keep their bytes
    written["fold"] = index["fold"].astype(str)
    with replacing(file) as temporary:
        written.to_csv(temporary, index=False)
    return index, notice
