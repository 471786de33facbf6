"""The index of a data set: one row per tile, see docs/data.md."""

import csv
import hashlib
import io
import re
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from kit.data.folds.assign import assign_folds
from kit.errors import DataError, nearest
from kit.paths import Paths
from kit.system.files import read_limited, replacing, write_bytes

CHECKSUM = ".sha256"  # suffix of the file beside an index
LIMIT_BYTES = 1 << 30  # of an index: some five million tiles
REMEDY = "restore the file, or rerun the same kit prepare: it writes the index again, without cutting tiles again"


def _whole(text: object) -> object:
    if isinstance(text, str) and not re.fullmatch(r"-?\d{1,15}", text):
        raise ValueError("expected a whole number")
    return text


def _inside(text: str) -> str:
    if text.startswith("/") or ".." in text.split("/"):
        raise ValueError("expected a path inside the data set")
    return text


Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
Whole = Annotated[int, BeforeValidator(_whole)]
Inside = Annotated[Text, AfterValidator(_inside)]
Share = Annotated[float, Field(ge=0, le=1)]
Bound = Annotated[FiniteFloat | None, BeforeValidator(lambda text: text or None)]


class TileRow(BaseModel):
    """One row of the index, as `kit.data.tiles.tile.Tile` with its fold; other columns are left alone."""

    tile: Text
    area: Text
    scene: Text
    tier: Annotated[Whole, Field(ge=1, le=9)]
    fold: Annotated[Whole, Field(ge=-1)]
    image: Inside
    mask: Inside
    width_px: Annotated[Whole, Field(ge=1)]
    height_px: Annotated[Whole, Field(ge=1)]
    gsd_m: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    valid_fraction: Share
    building_fraction: Share
    n_footprints: Annotated[Whole, Field(ge=0)]
    crs: str = ""  # data sets of older versions lack this and the bounds
    left: Bound = None
    bottom: Bound = None
    right: Bound = None
    top: Bound = None
    soft: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$"), AfterValidator(_inside)] = ""  # labels of `kit pseudo`

    @model_validator(mode="after")
    def _bounds_enclose_ground(self) -> "TileRow":
        left, bottom, right, top = self.left, self.bottom, self.right, self.top
        if left is None or bottom is None or right is None or top is None:
            if (left, bottom, right, top) != (None,) * 4:
                raise ValueError("expected all of left, bottom, right and top, or none")
        elif left >= right or bottom >= top:
            raise ValueError("expected left < right and bottom < top")
        return self


REQUIRED = [name for name, field in TileRow.model_fields.items() if field.is_required()]
_rows = TypeAdapter(list[TileRow])


def read_table(file: Path) -> pd.DataFrame:
    """Returns an index as it stands in its file, checked row by row; bounds are NaN where they are empty.

    Raises:
        DataError: a column is missing, a value is impossible, a path leaves the data set, a tile appears twice, or the
            file is not the one that `write_table` wrote.
    """
    content = read_limited(file, LIMIT_BYTES, DataError, REMEDY)
    try:
        text = content.decode()
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = list(reader.fieldnames or ())
        raw = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as cause:
        raise DataError(f"{file} is not a CSV: {cause}", REMEDY) from cause
    if lost := [name for name in REQUIRED if name not in columns]:
        raise DataError(f"{file} lacks the columns {', '.join(lost)}", REMEDY)
    if len(set(columns)) < len(columns) or not raw:
        raise DataError(f"{file} has {'two columns of one name' if raw else 'no rows'}", REMEDY)
    if long := [line for line, row in raw if None in row]:
        raise DataError(f"{file} line {long[0]} has more values than the {len(columns)} columns", REMEDY)
    try:
        rows = _rows.validate_python([row for _, row in raw])
    except ValidationError as cause:
        error = cause.errors(include_url=False)[0]
        number, *field = error["loc"]
        value = f", not {error['input']!r:.60}" if field else ""
        message = error["msg"].removeprefix("Value error, ")
        place = f"{file} line {raw[int(number)][0]}{''.join(f', column {name}' for name in field)}"
        raise DataError(f"{place}: {message}{value}", REMEDY) from cause
    index = pd.DataFrame([row for _, row in raw], columns=columns, dtype=str)
    for name in TileRow.model_fields:
        if name in columns:
            kind = str(TileRow.model_fields[name].annotation)
            dtype = int if "int" in kind else float if "float" in kind else str
            values = [getattr(row, name) for row in rows]
            index[name] = np.array(values, float) if dtype is float else pd.Series(values, dtype=dtype)
    for name in ("tile", "image"):
        if (twice := index[name].duplicated()).any():
            raise DataError(f"{file}: two rows have the {name} {index[name][twice].iloc[0]}", REMEDY)
    checksum = file.with_suffix(CHECKSUM)
    if checksum.exists() and read_limited(checksum, LIMIT_BYTES, DataError, REMEDY) != _checksum_line(file, content):
        raise DataError(
            f"{file} was changed since kit wrote it: it does not have the checksum in {checksum.name}",
            f"{REMEDY}; to use it as it is, remove {checksum}",
        )
    return index


def write_table(file: Path, index: pd.DataFrame) -> None:
    """Writes an index and, beside it, its SHA-256 in the format of sha256sum.

    A process that is killed in between leaves an index without a checksum, which is read as it is; see `add_checksum`.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    content = index.to_csv(index=False).encode()
    with replacing(file) as temporary:
        temporary.write_bytes(content)
        file.with_suffix(CHECKSUM).unlink(missing_ok=True)
    write_bytes(file.with_suffix(CHECKSUM), _checksum_line(file, content))


def add_checksum(file: Path) -> None:
    """Writes the checksum of an index that has none: the process that wrote it was killed.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    if not file.with_suffix(CHECKSUM).exists():
        write_bytes(
            file.with_suffix(CHECKSUM), _checksum_line(file, read_limited(file, LIMIT_BYTES, DataError, REMEDY))
        )


def _checksum_line(file: Path, content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  {file.name}\n".encode()


def read_index(paths: Paths, name: str = "") -> tuple[str, pd.DataFrame]:
    """Returns a data set's name and index; without a name, the only one there is. Paths in it become absolute.

    The index gains the columns that a training on several data sets needs (`kit.data.joined_sets`): `data`, the name,
    and `weight`, 1. `soft`, the file of a tile's soft labels, is empty where there is none.

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
    soft = index["soft"] if "soft" in index else [""] * len(index)
    index["soft"] = [str(folder / file) if file else "" for file in soft]
    return name, index.assign(data=name, weight=1.0)


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
    write_table(file, written)
    return index, notice
