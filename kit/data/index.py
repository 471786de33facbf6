"""The index of a data set: one row a tile, see docs/data.md."""

from pathlib import Path

import pandas as pd

from kit.data.folds.assign import assign_folds
from kit.errors import DataError, nearest
from kit.paths import Paths
from kit.system.files import replacing


def read_table(file: Path) -> pd.DataFrame:
    """Returns an index as it stands in its file: an area may be called NA, and only bounds may be missing."""
    missing = {bound: [""] for bound in ("left", "bottom", "right", "top")}
    texts = dict.fromkeys(("tile", "area", "scene", "crs"), str)
    return pd.read_csv(file, dtype=texts, keep_default_na=False, na_values=missing)


def read_index(paths: Paths, name: str = "") -> tuple[str, pd.DataFrame]:
    """Returns a data set's name and index; without a name, the only one there is. Paths in it become absolute.

    Raises:
        DataError: there is none of that name, none at all, or several to choose from.
    """
    known = paths.data_names()
    if name and name not in known:
        raise DataError(f"no data set {name!r} below {paths.data_folder}", f"{nearest(name, known)}; or kit prepare")
    if not name and len(known) != 1:
        if not known:
            raise DataError("no data set is prepared here", "kit prepare CATALOG; or kit run quickstart for the sample")
        raise DataError(f"several data sets are prepared: {', '.join(known)}", "choose one with --data NAME")
    name = name or known[0]
    folder = paths.data(name)
    index = read_table(folder / "index.csv")
    for column in ("image", "mask"):
        index[column] = [str(folder / file) for file in index[column]]
    return name, index


def building_share(paths: Paths, name: str = "") -> tuple[float, str] | None:
    """Returns the share of building among the pixels with imagery, 0..1, and the data sets it was counted in.

    Args:
        paths: of the working root.
        name: of a data set; all there are together by default.

    Returns:
        None where no data set is prepared.

    Raises:
        DataError: there is none of that name.
    """
    names = [name] if name else paths.data_names()
    known = built = 0.0
    for each in names:
        index = read_index(paths, each)[1]
        px = index["valid_fraction"] * index["width_px"] * index["height_px"]
        known, built = known + float(px.sum()), built + float((px * index["building_fraction"]).sum())
    return (built / known, ", ".join(names)) if known else None


def refold(
    paths: Paths, name: str, by: str, k: int, block_m: float | None = None, gap_m: float | None = None
) -> tuple[pd.DataFrame, str]:
    """Rewrites the fold column of a data set without cutting again; returns the index and a notice."""
    name, _ = read_index(paths, name)
    file = paths.data(name) / "index.csv"
    index = read_table(file)
    index["fold"], notice = assign_folds(index, by, k, block_m, gap_m)
    written = pd.read_csv(file, dtype=str, keep_default_na=False)  # the other columns keep their bytes
    written["fold"] = index["fold"].astype(str)
    with replacing(file) as temporary:
        written.to_csv(temporary, index=False)
    return index, notice
