"""Pseudo-labels: a data set whose masks are what trained weights predict for unlabelled chips (`kit pseudo`)."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from kit.console import say
from kit.data.folds.leaks import NO_FOLD
from kit.data.grids import ground_m, on_earth
from kit.data.index import read_table, write_table
from kit.data.rasters import open_picture
from kit.data.sources.chips import Chip, find_chips
from kit.data.tiles.pairs import MULTIPLE_PX, own_grid
from kit.deploy.mosaics.find import known_mosaics
from kit.deploy.mosaics.mosaic import Mosaic, table_of
from kit.deploy.submission.background import BackgroundWriter
from kit.deploy.submission.progress import FINISHED, PROGRESS, RANK_PROGRESS, digest, read_progress, write_progress
from kit.deploy.submission.submit import (
    SubmitOptions,
    own_progress,
    own_share,
    predictions,
    ready_to_predict,
    tune_on,
)
from kit.deploy.weights.card import CLASSES, Card
from kit.deploy.weights.load import load_weights
from kit.errors import DataError, KitError, RasterError, WeightsError
from kit.outputs import check_apart, check_unclaimed
from kit.paths import Paths
from kit.pipeline.pseudo_labels import LEDGER_COLUMNS, LabelledChip, Labeller, PseudoOptions
from kit.system.files import (
    check_writable,
    locked,
    read_json,
    read_limited,
    remove_leftovers,
    replacing,
    sha256_of,
    write_bytes,
    write_json,
)
from kit.system.ranks import agreed, rank, wait_for_all

INDEX, LEDGER, CARD = "index.csv", "pseudo.csv", "weights.json"
ALONE = "alone"  # scene of the chips without a neighbour: one group, or each would be drawn as often as a whole mosaic
LOOKED_AT = 5  # chips whose resolution is compared with that of the weights
MOST_APART = 1.5  # largest ratio to the training resolution, or its inverse


@dataclass(frozen=True)
class PseudoLabels:
    """The result of `label_chips`."""

    folder: Path  # of the data set
    chips: int  # how many there are
    kept: int  # how many stand in the index
    left_out: Mapping[str, int]  # how many do not, by reason
    building_fraction: float  # share of building among the labelled pixels of the index, 0..1
    ignored_fraction: float  # share of uncertain pixels in the imagery of the kept chips, 0..1

    def lines(self) -> list[str]:
        """Returns the result as text."""
        reasons = "".join(f", {count} left out ({reason})" for reason, count in sorted(self.left_out.items()))
        return [
            f"{self.kept} of {self.chips} chips kept{reasons}",
            f"{self.building_fraction:.1%} of the labelled pixels are building; {self.ignored_fraction:.1%} of all are "
            "uncertain and ignored",
        ]


@dataclass(frozen=True)
class FinishedLabels:
    """The record of a finished call: the same call again returns its result, without weights and images.

    Args:
        request: the weights, the options and the machine.
        chips: digest of the chips' ids and the versions of their images.
        files: digest of the names and versions of the data set's files.
        labels: the result.
    """

    request: str
    chips: str
    files: str
    labels: PseudoLabels


def label_chips(
    test: Path, weights_path: Path, paths: Paths, name: str, options: PseudoOptions | None = None
) -> PseudoLabels:
    """Predicts unlabelled chips, and writes the data set `data/NAME` with their labels and the ledger `pseudo.csv`.

    A second call predicts only the chips that are missing, whose image changed, or whose files were made in another
    way; the files are byte for byte those of a single call. A finished call is recognised without loading the weights.
    Other values of `min_confidence`, `drop_empty` and `round`
    predict nothing again. Ranks share the folder; each predicts its part of the chips.

    Args:
        test: a STAC catalogue or a folder of chips.
        weights_path: as `kit export` wrote it.
        paths: of the working root.
        name: of the data set.
        options: see `PseudoOptions`.

    Raises:
        CatalogError: there are no chips.
        DataError: an option is out of range, the chips' resolution is far from that of the weights, the folder holds
            labels of another test set, or no chip is kept.
        RasterError: a chip cannot be read; the chips before it are kept.
        WeightsError: the weights are missing, not kit's, or of other classes.
        OutputError: the folder cannot be written, or was not written by kit pseudo.
        KitError: another process writes the folder.
    """
    options = options or PseudoOptions()
    options.check()
    folder = paths.data(name)
    chips = find_chips(test)
    check_apart(folder, [test, *(chip.path for chip in chips)], "--name or --root")
    if rank() == 0:
        _check_folder(folder)
    versions = _versions(chips)  # before the first is read: one that is written later will be labelled again
    if finished := agreed(_finished(folder, versions, weights_path, options) if rank() == 0 else None):
        return finished
    shipped = load_weights(weights_path, options.prediction.engine.device)
    _check_classes(shipped.card, weights_path)
    _check_resolution(chips, shipped.card, options.prediction)
    with locked(folder) if rank() == 0 else nullcontext():
        weights = tune_on(chips, shipped, options.prediction)
        if rank() == 0:
            _check_same_chips(folder, chips)
            remove_leftovers(folder)
        mosaics = agreed(known_mosaics(chips, table_of(test, paths)) if rank() == 0 else [])
        if rank() == 0 and not (folder / PROGRESS).is_file():
            write_progress(folder, kind=LabelledChip)  # marks the folder as kit's
        weights, reader = ready_to_predict(weights, chips, mosaics, options.prediction, folder)
        labeller = Labeller(weights, reader, options, folder, _side_px(mosaics))
        todo = set(agreed(_begin(labeller, chips) if rank() == 0 else []))
        _predict(labeller, own_share(reader.in_order([chip for chip in chips if chip.id in todo])))
        wait_for_all()
        return agreed(  # type: ignore[return-value]
            _finish(labeller, chips, mosaics, name, versions) if rank() == 0 else None
        )


def _versions(chips: Sequence[Chip]) -> str:
    try:
        return digest({chip.id: chip.path for chip in chips})
    except KitError as cause:
        raise RasterError(cause.message, "are the chips complete?") from cause


def _request(options: PseudoOptions, weights_sha256: str) -> str:
    """Returns a text that is equal for calls that make equal files."""
    return json.dumps(asdict(options) | {"prediction": options.prediction.request(weights_sha256)})


def _files(folder: Path) -> str:
    """Returns a digest of a data set's files."""
    tiles = (file for part in ("images", "masks", "soft") for file in (folder / part).glob("[!.]*.tif"))
    names = (INDEX, LEDGER, CARD)
    return digest({str(file.relative_to(folder)): file for file in (*tiles, *(folder / name for name in names))})


def _finished(folder: Path, chips: str, weights_path: Path, options: PseudoOptions) -> PseudoLabels | None:
    """Returns the result of an equal call that finished before, if its files stand; reads no image."""
    try:
        record = read_json(folder / FINISHED, FinishedLabels)
        made_of = (_request(options, sha256_of(weights_path)), chips, _files(folder))
    except (KitError, OSError):  # there is no record, or no such file
        return None
    if (record.request, record.chips, record.files) != made_of:
        return None
    say("nothing to label: this data set is finished")
    return replace(record.labels, folder=folder)  # the root may have moved


def _check_folder(folder: Path) -> None:
    """Checks that a data set's folder can be written, and is missing, empty or made by kit pseudo."""
    check_writable(folder)
    if not any(folder.glob(".progress*.csv")):
        check_unclaimed(folder, "kit pseudo", "--name")


def _check_same_chips(folder: Path, chips: Sequence[Chip]) -> None:
    """Checks that a data set's folder holds labels of no other chips."""
    others = {path.stem for path in folder.glob("masks/[!.]*.tif")} - {chip.id for chip in chips}
    if others:
        raise DataError(
            f"{folder} holds {len(others)} labels of another test set, first {min(others)}.tif",
            "choose another --name, or remove that folder",
        )


def _check_classes(card: Card, path: Path) -> None:
    if tuple(card.classes) != CLASSES:
        raise WeightsError(
            f"{path} was trained on the classes {', '.join(card.classes)}, expected {', '.join(CLASSES)}",
            "choose other weights: kit weights lists what is here",
        )


def _check_resolution(chips: Sequence[Chip], card: Card, prediction: SubmitOptions) -> None:
    """Checks the resolution of a few chips with a georeference; that of others is not known."""
    if prediction.scale or prediction.gsd_m is not None or not card.gsd_m:
        return
    for chip in chips[:: -(-len(chips) // LOOKED_AT)]:
        with open_picture(str(chip.path)) as source:
            grid = own_grid(source, max(source.width, source.height))
            if not grid.crs or not on_earth(source.crs):
                continue
        gsd_m = ground_m(grid, 0, 0)
        if not 1 / MOST_APART <= gsd_m / card.gsd_m <= MOST_APART:
            raise DataError(
                f"chip {chip.id} has {gsd_m:.3g} m per pixel, and the weights were trained at {card.gsd_m:.3g}",
                f"resize chips for the networks: --gsd {gsd_m:.3g}",
            )


def _side_px(mosaics: Sequence[Mosaic]) -> int:
    """Returns the side of the tiles: that of the largest chip, filled up to a multiple of 32 px."""
    longest = max(max(placed.height_px, placed.width_px) for mosaic in mosaics for placed in mosaic.placed)
    return -(-longest // MULTIPLE_PX) * MULTIPLE_PX


def _begin(labeller: Labeller, chips: Sequence[Chip]) -> list[str]:
    """Returns the ids of the chips to predict; rewrites the progress file with the rows of the others."""
    folder = labeller.folder
    rows = read_progress(folder, labeller.identity, LabelledChip)
    todo = [chip.id for chip in chips if not labeller.is_done(chip, rows.get(chip.id))]
    if todo:
        for name in (INDEX, LEDGER, CARD, FINISHED):  # of other labels
            (folder / name).unlink(missing_ok=True)
    write_progress(folder, rows.values(), LabelledChip)
    for path in folder.glob(RANK_PROGRESS):
        path.unlink()
    for part in ("images", "masks", "soft"):
        remove_leftovers(folder / part)
    return todo


def _predict(labeller: Labeller, todo: Sequence[Chip]) -> None:
    """Predicts this rank's share; files are written behind."""
    with (
        own_progress(labeller.folder).open("a", newline="", encoding="utf-8") as progress,
        BackgroundWriter() as write,
    ):
        for chip, seen, probability in predictions(labeller.weights, labeller.reader, todo):
            write(partial(labeller.write, chip, seen, probability, progress))


def _finish(
    labeller: Labeller, chips: Sequence[Chip], mosaics: Sequence[Mosaic], name: str, versions: str
) -> PseudoLabels:
    """Writes the ledger, the index, the card of the weights and the record."""
    folder, options = labeller.folder, labeller.options
    rows = read_progress(folder, labeller.identity, LabelledChip)
    if lost := sorted({chip.id for chip in chips} - rows.keys()):
        raise DataError(
            f"{len(lost)} chips have no row in {folder / PROGRESS}, first {lost[0]}: something else wrote that folder",
            "rerun the same command",
        )
    ordered = [rows[chip.id] for chip in chips]
    reasons = Counter(reason for row in ordered if (reason := row.left_out(options)))
    kept = [row for row in ordered if not row.left_out(options)]
    if not kept:
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        highest = max(row.confidence for row in ordered)
        raise DataError(
            f"none of {len(chips)} chips is kept: {listed}; the highest confidence is {highest:.3f}",
            "lower --min-confidence, narrow --ignore, or leave --drop-empty out",
        )
    _write_ledger(folder / LEDGER, ordered, options, labeller.weights.sha256)
    scenes = dict(_scenes(mosaics))
    index = pd.DataFrame([labeller.tile(row, name, scenes[row.chip]) for row in kept])
    index.insert(4, "fold", _folds(folder / INDEX, index["tile"]))
    write_table(folder / INDEX, index)
    imagery_px, labelled_px = sum(row.imagery_px for row in kept), sum(row.labelled_px for row in kept)
    built = sum(row.building_px for row in kept) / labelled_px
    weights = labeller.weights
    write_bytes(folder / CARD, weights.card.to_json(file_sha256=weights.sha256).encode())
    labels = PseudoLabels(folder, len(chips), len(kept), dict(reasons), built, 1 - labelled_px / imagery_px)
    record = FinishedLabels(_request(options, weights.sha256), versions, _files(folder), labels)
    write_json(folder / FINISHED, asdict(record) | {"labels": asdict(labels) | {"folder": str(folder)}})
    return labels


def labelled_by(folder: Path) -> Card | None:
    """Returns the card of the weights that labelled a data set; None where it has true labels.

    Raises:
        WeightsError: the card is damaged.
    """
    file = folder / CARD
    return Card.from_json(read_limited(file, error=WeightsError), str(file)) if file.is_file() else None


def _write_ledger(file: Path, rows: Sequence[LabelledChip], options: PseudoOptions, weights_sha256: str) -> None:
    with replacing(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as text:
        table = csv.writer(text, lineterminator="\n")
        table.writerow(LEDGER_COLUMNS)
        table.writerows(row.ledger_cells(options, weights_sha256) for row in rows)


def _scenes(mosaics: Sequence[Mosaic]) -> Iterator[tuple[str, str]]:
    """Yields each chip's id and the scene of its tile: its mosaic, or ALONE."""
    for mosaic in mosaics:
        for placed in mosaic.placed:
            yield placed.chip.id, mosaic.name if len(mosaic.placed) > 1 else ALONE


def _folds(file: Path, tiles: "pd.Series[str]") -> "pd.Series[int]":
    """Returns the fold of each tile: none, but where `kit folds` gave it one before."""
    try:
        before = read_table(file).set_index("tile")["fold"] if file.is_file() else pd.Series(dtype=int)
    except DataError:  # damaged: it is written again
        before = pd.Series(dtype=int)
    return tiles.map(before).fillna(NO_FOLD).astype(int)
