"""Cuts imagery with labels into a data set, and writes its index (`kit prepare`)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd

from kit.console import meter, say
from kit.data.folds.assign import assign_folds
from kit.data.index import add_checksum, read_table, write_table
from kit.data.sources.inputs import Inputs, Scene
from kit.data.sources.remote import is_remote, local_path
from kit.data.sources.source import read_source
from kit.data.tiles.cutting import Failed
from kit.data.tiles.jobs import Part, Scenes
from kit.data.tiles.ledger import Ledger, Record
from kit.data.tiles.options import PrepareOptions, Style
from kit.data.tiles.sheets import Sheet, draw_sheet
from kit.data.tiles.tile import Skipped
from kit.errors import CutError, DataError, FootprintError, KitError
from kit.outputs import check_apart, spreadsheet_safe
from kit.paths import Paths
from kit.system.cpu import cpu_count
from kit.system.files import locked, read_json, replacing, write_bytes

SMALL_BYTES = 1 << 20  # of imagery: less is cut faster than processes start


@dataclass(frozen=True)
class Settings:
    """The content of a data set's `settings.json`."""

    style: Style  # of the tiles
    by: str  # how `kit prepare` assigned the tiles to folds
    k: int  # number of folds


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`."""

    name: str  # of the data set
    index: pd.DataFrame  # one row a tile, with its fold
    scenes: list[Record]  # the record of each scene, by area and scene
    notice: str  # a remark about the folds, or empty
    kept: int  # number of scenes that were cut before and did not change

    @property
    def notices(self) -> list[str]:
        """What the user should know of the labels."""
        bare = [record.name for record in self.scenes if record.counts.get("used") == 0]
        background = f"{len(bare)} of {len(self.scenes)} scenes have no footprints and are kept as background, first "
        labels = list(dict.fromkeys(notice for record in self.scenes for notice in record.notices))
        more = f" (and {len(labels) - 1} more label files)" if len(labels) > 1 else ""
        return [*([background + bare[0]] if bare else []), *(notice + more for notice in labels[:1])]

    @property
    def skipped(self) -> dict[tuple[str, str], int]:
        """Tiles that were not kept, per (area, scene)."""
        return {(record.area, record.scene): len(record.cut.skipped) for record in self.scenes}


def prepare(place: str | Path, paths: Paths, options: PrepareOptions | None = None) -> Prepared:
    """Cuts scenes into `data/NAME`: images, masks, contact sheets, `index.csv` with folds, `skipped.csv`.

    The index is written when everything is cut. A rerun resumes an interrupted call, and does nothing after a finished
    one. A scene is cut again if its image, labels or style changed.

    Args:
        place: what to cut, see `kit.data.sources.source.read_source`.
        paths: of the working root.
        options: see `PrepareOptions`.

    Raises:
        CutError: some scenes or tiles could not be cut; the others are, with an index.
        CatalogError, DataError, KitError: the options are out of range, the data incomplete, or the disk is full.
    """
    options = options or PrepareOptions()
    options.check()
    source = read_source(place, options.pattern, options.tier, options.where, options.allow_outside)
    name = options.name or source.name
    folder = paths.data(name)
    parts = _parts(source)
    check_apart(folder, _inputs(str(place), parts), "--name or --root")
    settings = Settings(options.style, options.by, options.k)
    with locked(folder):
        Ledger(folder).check_owned()
        work = Scenes(folder, parts, options)
        with meter("cut tiles", 0) as progress:
            work.cut_all(progress, options.workers or (1 if _small(parts) else cpu_count()))
        records = work.records()
        tiles = [tile for record in records for tile in record.cut.tiles]
        failed = [failure for record in records for failure in record.cut.failed]
        if not tiles:
            raise _nothing(records, failed)
        _check_buildings(records)
        _draw_sheets(folder, records)
        index, notice = _write_index(folder, records, settings, changed=work.changed)
    prepared = Prepared(name, index, records, notice, work.kept)
    if failed:
        raise _failure(prepared, failed)
    return prepared


def prepare_part(place: str | Path, paths: Paths, options: PrepareOptions, part: tuple[int, int]) -> tuple[Path, int]:
    """Cuts the scenes of one part into `data/NAME`, without an index; returns the folder and their number.

    Parts may run at once, on machines that share the folder. `prepare` afterwards cuts what is missing, and writes the
    index.

    Args:
        place: see `prepare`.
        paths: of the working root.
        options: the same for all parts.
        part: which of how many; the first is 1.

    Raises:
        CutError: some scenes or tiles could not be cut; the others are.
        CatalogError, DataError, KitError: see `prepare`.
    """
    options.check()
    source = read_source(place, options.pattern, options.tier, options.where, options.allow_outside)
    folder, (index, count) = paths.data(options.name or source.name), part
    parts = _parts(source)
    check_apart(folder, _inputs(str(place), parts), "--name or --root")
    with locked(folder / f"part{index}of{count}"):
        Ledger(folder).check_owned()
        work = Scenes(folder, parts, options, part)
        with meter("cut tiles", 0) as progress:
            work.cut_all(progress, options.workers or cpu_count())
    records = [record for record in work.records() if record.name in work.own]
    failed = [failure for record in records for failure in record.cut.failed]
    if failed:
        raise CutError(
            f"{len(failed)} scenes or tiles of part {index}/{count} could not be cut, first {failed[0].tile}: "
            f"{failed[0].reason}",
            f"{failed[0].hint or 'correct it'}; then rerun the part. All others are cut",
        )
    return folder, len(work.own)


def _parts(source: Inputs) -> list[Part]:
    """Returns the scenes, and the pairs of each scene."""
    pairs = groupby(source.pairs, key=lambda pair: (pair.area, pair.scene))
    return [*source.scenes, *(tuple(group) for _, group in pairs)]


def _inputs(place: str, parts: Sequence[Part]) -> Iterator[Path]:
    """Yields the local files and folders that a data set is made of; of a catalogue or table, only the files."""
    source = local_path(place)
    if is_remote(place):
        yield from ()
    elif source.is_dir() and (catalog := source / "catalog.json").is_file():
        yield catalog
    else:
        yield source
    for part in parts:
        if isinstance(part, Scene):
            hrefs = [part.image, *part.labels]
        else:
            hrefs = [href for pair in part for href in (pair.image, pair.mask)]
        yield from (local_path(href) for href in hrefs if not is_remote(href))


def _small(parts: Sequence[Part]) -> bool:
    images = [part.image if isinstance(part, Scene) else part[0].image for part in parts]
    return not any(map(is_remote, images)) and sum(_bytes(image) for image in images) < SMALL_BYTES


def _bytes(href: str) -> int:
    file = local_path(href)
    return file.stat().st_size if file.is_file() else 0


def _draw_sheets(folder: Path, records: Sequence[Record]) -> None:
    """Draws the missing contact sheets."""
    for record in records:
        sheet = Sheet(folder, record.area, record.scene)
        if record.cut.tiles and not sheet.file.exists():
            draw_sheet(sheet, record.cut.tiles)


def _write_index(
    folder: Path, records: Sequence[Record], settings: Settings, changed: bool
) -> tuple[pd.DataFrame, str]:
    """Writes the index and the tables beside it. Folds of `kit folds` are kept if nothing else has changed."""
    file = folder / "index.csv"
    if not changed and file.exists() and _read_settings(folder) == settings:
        try:
            table = read_table(file)
            add_checksum(file)
            return table, ""
        except DataError as damaged:
            old = file.replace(file.with_name("index.old.csv"))
            say(f"{damaged.message}: it is written again, with folds as for kit prepare; {old.name} is the old one")
    index = pd.DataFrame([asdict(tile) for record in records for tile in record.cut.tiles])
    if not index["tile"].is_unique:
        twice = index["tile"][index["tile"].duplicated()].iloc[0]
        raise DataError(f"two tiles are named {twice}", "rename an area or a scene: areas and scenes are joined by _")
    index.insert(4, "fold", 0)
    index["fold"], notice = assign_folds(index, settings.by, settings.k)
    skipped = [asdict(tile) for record in records for tile in record.cut.skipped]
    table = pd.DataFrame(skipped, columns=list(Skipped.__dataclass_fields__))
    _write_table(folder / "skipped.csv", table.map(spreadsheet_safe))
    failed = [asdict(tile) for record in records for tile in record.cut.failed]
    (folder / "failed.csv").unlink(missing_ok=True)
    if failed:
        _write_table(folder / "failed.csv", pd.DataFrame(failed).map(spreadsheet_safe))
    write_bytes(folder / "settings.json", (json.dumps(asdict(settings), indent=2) + "\n").encode())
    write_table(file, index)
    return index, notice


def _read_settings(folder: Path) -> Settings | None:
    """Returns the settings that a data set was prepared with, or None where they are missing or damaged."""
    try:
        return read_json(folder / "settings.json", Settings)
    except KitError:
        return None


def _write_table(file: Path, table: pd.DataFrame) -> None:
    with replacing(file) as temporary:
        table.to_csv(temporary, index=False)


def _nothing(records: Sequence[Record], failed: Sequence[Failed]) -> KitError:
    if failed:
        return CutError(
            f"no scene could be cut, first {failed[0].tile}: {failed[0].reason}",
            failed[0].hint or "correct it, then rerun the same command",
        )
    named = ", ".join(record.name for record in records[:3])
    return DataError(f"no tile of {named} holds imagery", "check the alpha band, or lower --min-valid")


def _check_buildings(records: Sequence[Record]) -> None:
    """Checks that not all scenes are background."""
    if all(record.counts.get("used") == 0 for record in records):
        raise FootprintError(
            f"none of the {len(records)} scenes has a footprint, first {records[0].name}",
            "check the label files, and --where if it was given",
        )


def _failure(prepared: Prepared, failed: Sequence[Failed]) -> CutError:
    scenes = sum("/" in failure.tile for failure in failed)
    tiles = len(failed) - scenes
    parts = [f"{scenes} of {len(prepared.scenes)} scenes"] if scenes else []
    parts += [f"{tiles} of {len(prepared.index) + tiles} tiles"] if tiles else []
    return CutError(
        f"{' and '.join(parts)} could not be cut, first {failed[0].tile}: {failed[0].reason}",
        f"{failed[0].hint or 'correct it'}; then rerun the same command. All others are cut, "
        f"and data/{prepared.name}/failed.csv lists the rest",
        prepared,
    )
