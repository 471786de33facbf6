"""Pseudo-labels: a data set whose masks are what trained weights predict for unlabelled chips (`kit pseudo`)."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kit.data.folds.leaks import NO_FOLD
from kit.data.grids import Grid, ground_m, on_earth
from kit.data.index import read_table
from kit.data.masks import BUILDING, IGNORE
from kit.data.rasters import open_picture
from kit.data.sources.chips import Chip, find_chips
from kit.data.tiles.pairs import MULTIPLE_PX, filled, own_grid
from kit.data.tiles.tile import IMAGE_FORMATS, Spot, Tile, encode_image, encode_mask
from kit.deploy.engine.predict import has_ground
from kit.deploy.mosaics.find import find_mosaics
from kit.deploy.mosaics.mosaic import Mosaic
from kit.deploy.mosaics.wide import WideChip, WideReader
from kit.deploy.submission.background import BackgroundWriter
from kit.deploy.submission.progress import PROGRESS, RANK_PROGRESS, ProgressRow, read_progress, write_progress
from kit.deploy.submission.submit import (
    SubmitOptions,
    own_progress,
    own_share,
    predictions,
    ready_to_predict,
    tune_on,
)
from kit.deploy.weights.card import CLASSES, Card
from kit.deploy.weights.load import Weights, load_weights
from kit.errors import DataError, WeightsError, nearest
from kit.outputs import check_apart, check_unclaimed, spreadsheet_safe
from kit.paths import Paths
from kit.system.files import check_writable, locked, remove_leftovers, replacing, write_bytes
from kit.system.ranks import agreed, rank, wait_for_all

INDEX, LEDGER = "index.csv", "pseudo.csv"
LEDGER_COLUMNS = (
    "chip", "round", "weights_sha256", "confidence", "building_fraction", "ignored_fraction", "kept", "reason"
)  # fmt: skip
TIER = 3  # of the index: 1 careful, 2 rough, 3 predicted
ALONE = "alone"  # scene of the chips without a neighbour: one group, or each would be drawn as often as a whole mosaic
SOFT_STEPS = 254  # soft labels are probability x 254; 255 is ignored
LOOKED_AT = 5  # chips whose georeference is compared with the weights' resolution
MOST_APART = 1.5  # times the resolution of training, or its part: farther chips are predicted badly


@dataclass(frozen=True)
class PseudoOptions:
    """How pseudo-labels are made.

    Args:
        prediction: how chips are predicted; its cleaning and `rle` do not count.
        ignore: probabilities in this range, ends included, are uncertain: 255 in masks. None keeps every pixel, and
            building is what is above 0.5.
        soft: also write the probabilities, see docs/pseudo.md.
        min_confidence: chips with a lower mean confidence are left out, 0..1.
        drop_empty: leaves chips without building out.
        images: how tiles are stored, a key of `IMAGE_FORMATS`.
        round: number of the round, for the ledger.
    """

    prediction: SubmitOptions = field(default_factory=SubmitOptions)
    ignore: tuple[float, float] | None = (0.35, 0.65)
    soft: bool = False
    min_confidence: float = 0.0
    drop_empty: bool = False
    images: str = "lossless"
    round: int = 1

    def check(self) -> None:
        """Checks the options before anything is read.

        Raises:
            DataError: a number is out of range, or the image format is unknown.
        """
        if self.ignore is not None and not 0 <= self.ignore[0] < self.ignore[1] <= 1:
            low, high = self.ignore
            raise DataError(f"--ignore {low:g},{high:g} is no range of probabilities", EXPECTED_RANGE)
        if not 0 <= self.min_confidence <= 1:
            raise DataError(f"--min-confidence {self.min_confidence:g} is out of range", "expected 0 to 1, such as 0.9")
        if self.round < 1:
            raise DataError(f"--round {self.round} is out of range", "rounds are counted from 1")
        if self.images not in IMAGE_FORMATS:
            raise DataError(f"image format {self.images!r} is unknown", nearest(self.images, IMAGE_FORMATS))


EXPECTED_RANGE = "expected two probabilities, the lower one first, such as 0.35,0.65; or none"


def parse_ignore(text: str) -> tuple[float, float] | None:
    """Returns the range in a text such as `0.35,0.65`; None for `none`.

    Raises:
        DataError: it is neither.
    """
    if text == "none":
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError as cause:
        raise DataError(f"--ignore {text!r} is no range of probabilities", EXPECTED_RANGE) from cause
    return low, high


@dataclass(frozen=True)
class LabelledChip(ProgressRow):
    """A labelled chip: one row of the progress file.

    Args:
        chip: its id.
        made_by: the weights, how their networks compute, and the options that change files.
        image: version of the chip's image and of the images around it.
        imagery_px: pixels that show something.
        labelled_px: pixels of the mask that are not 255.
        building_px: pixels of the mask that are 1.
        confidence: mean of max(p, 1 - p) over the imagery, 0.5..1; 0 where there is none.
        gsd_m: metres on the ground per pixel.
        crs: of the chip; empty where it has no georeference.
        left: of the tile, in units of the CRS; likewise the others.
        bottom: see `left`.
        right: see `left`.
        top: see `left`.
    """

    image: str
    imagery_px: int
    labelled_px: int
    building_px: int
    confidence: float
    gsd_m: float
    crs: str
    left: float
    bottom: float
    right: float
    top: float

    def left_out(self, options: PseudoOptions) -> str:
        """Returns why the chip is left out of the index; nothing for one that is kept."""
        if not self.imagery_px:
            return "no imagery"
        if self.confidence < options.min_confidence:
            return f"confidence below {options.min_confidence:g}"
        if not self.labelled_px:
            return "no certain pixel"
        return "no building" if options.drop_empty and not self.building_px else ""

    def ledger_cells(self, options: PseudoOptions, weights_sha256: str) -> list[object]:
        """Returns a row of the ledger, see LEDGER_COLUMNS; unknown values are empty."""
        shares: list[object] = ["", "", ""]
        if self.imagery_px:
            built = self.building_px / max(self.labelled_px, 1)
            ignored = 1 - self.labelled_px / self.imagery_px
            shares = [f"{self.confidence:.6f}", f"{built:.6f}", f"{ignored:.6f}"]
        reason = self.left_out(options)
        return [
            spreadsheet_safe(self.chip),
            options.round,
            weights_sha256,
            *shares,
            "false" if reason else "true",
            reason,
        ]


@dataclass(frozen=True)
class PseudoLabels:
    """The result of `label_chips`.

    Args:
        folder: of the data set.
        chips: how many there are.
        kept: how many stand in the index.
        left_out: how many do not, by reason.
        building_fraction: share of building among the labelled pixels of the index, 0..1.
        ignored_fraction: share of uncertain pixels in the imagery of the kept chips, 0..1.
    """

    folder: Path
    chips: int
    kept: int
    left_out: Mapping[str, int]
    building_fraction: float
    ignored_fraction: float

    def lines(self) -> list[str]:
        """Returns the result in words."""
        reasons = "".join(f", {count} left out ({reason})" for reason, count in sorted(self.left_out.items()))
        return [
            f"{self.kept} of {self.chips} chips kept{reasons}",
            f"{self.building_fraction:.1%} of the labelled pixels are building; {self.ignored_fraction:.1%} of all are "
            "uncertain and ignored",
        ]


@dataclass(frozen=True)
class Labeller:
    """How chips become labelled tiles of a data set.

    Args:
        weights: set up to predict.
        reader: of the chips.
        options: see `PseudoOptions`.
        folder: of the data set.
        side_px: of the tiles: smaller chips are filled up with no data on the right and below.
    """

    weights: Weights
    reader: WideReader
    options: PseudoOptions
    folder: Path
    side_px: int

    @property
    def identity(self) -> str:
        """A text that is equal for files made in the same way."""
        options = self.options
        way = {"ignore": options.ignore, "soft": options.soft, "images": options.images, "side_px": self.side_px}
        return f"{self.weights.sha256} {self.weights.plan} {json.dumps(way)}"

    def files(self, chip: str) -> dict[str, str]:
        """Returns a chip's files, relative to the data set: `image`, `mask`, `soft`."""
        folders = {"image": "images", "mask": "masks", **({"soft": "soft"} if self.options.soft else {})}
        return {kind: f"{folder}/{chip}.tif" for kind, folder in folders.items()}

    def is_done(self, chip: Chip, row: LabelledChip | None) -> bool:
        """Returns whether a chip's row is of its image as it is now, and its files stand."""
        if row is None or row.image != self.reader.version(chip):
            return False
        return not row.imagery_px or all((self.folder / file).is_file() for file in self.files(chip.id).values())

    def write(self, chip: Chip, seen: WideChip, probability: NDArray[np.float32], progress: TextIO) -> None:
        """Writes a chip's files and its row. A mask that stands has its row, wherever the process is killed."""
        shown = imagery(seen.image)
        labels = hard_labels(probability, shown, self.options.ignore)
        grid = self._grid(chip)
        row = self._row(chip, seen, probability[shown], labels, grid)
        files = {kind: self.folder / file for kind, file in self.files(chip.id).items()}
        if not row.imagery_px:
            for file in files.values():  # of an image that the chip had before
                file.unlink(missing_ok=True)
            _append(row, progress)
            return
        spot = Spot("", "", TIER, chip.id, grid, 0, 0)
        rgb = np.where(shown, seen.image[..., :3].transpose(2, 0, 1), np.uint8(0))
        write_bytes(files["image"], encode_image(filled(rgb, self.side_px, 0), spot, self.options.images))
        if self.options.soft:
            soft = soft_labels(probability, labels)
            write_bytes(files["soft"], encode_mask(filled(soft[None], self.side_px, IGNORE), spot))
        with replacing(files["mask"]) as temporary:
            temporary.write_bytes(encode_mask(filled(labels[None], self.side_px, IGNORE), spot))
            files["mask"].unlink(missing_ok=True)  # of other weights, or of another image
            _append(row, progress)

    def _grid(self, chip: Chip) -> Grid:
        with open_picture(str(chip.path)) as source:
            grid = own_grid(source, self.side_px)
            return grid if grid.crs and on_earth(source.crs) else Grid("", 1.0, 1.0, 0.0, 0.0, self.side_px)

    def _row(
        self, chip: Chip, seen: WideChip, shown: NDArray[np.float32], labels: NDArray[np.uint8], grid: Grid
    ) -> LabelledChip:
        confidence = float(np.maximum(shown, 1 - shown).mean(dtype=np.float64)) if shown.size else 0.0
        gsd_m = ground_m(grid, 0, 0) if grid.crs else self.weights.card.gsd_m * seen.factor
        return LabelledChip(
            chip.id, self.identity, seen.version, shown.size, int((labels != IGNORE).sum()),
            int((labels == BUILDING).sum()), confidence, round(gsd_m, 6), grid.crs, *grid.bounds(0, 0),
        )  # fmt: skip

    def tile(self, row: LabelledChip, area: str, scene: str) -> dict[str, object]:
        """Returns a chip's row of the index."""
        files, whole = self.files(row.chip), self.side_px**2
        bounds = (row.left, row.bottom, row.right, row.top) if row.crs else (None,) * 4
        tile = Tile(
            f"{area}_{row.chip}", area, scene, TIER, files["image"], files["mask"], self.side_px, self.side_px,
            row.gsd_m, round(row.labelled_px / whole, 6), round(row.building_px / max(row.labelled_px, 1), 6), 0,
            row.crs, *bounds,
        )  # fmt: skip
        return asdict(tile) | {"soft": files.get("soft", "")}


def _append(row: LabelledChip, progress: TextIO) -> None:
    progress.write(row.to_line())
    progress.flush()


def imagery(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Returns where an image, uint8 (H, W, 3 or 4), shows something, (H, W); nowhere if it has a single colour."""
    if not has_ground(image):
        return np.zeros(image.shape[:2], bool)
    return image[..., 3] > 0 if image.shape[2] == 4 else np.ones(image.shape[:2], bool)


def hard_labels(
    probability: NDArray[np.floating], shown: NDArray[np.bool_], ignore: tuple[float, float] | None
) -> NDArray[np.uint8]:
    """Returns labels, uint8 (H, W): 0 background, 1 building, 255 uncertain or no data.

    Args:
        probability: (H, W), 0..1.
        shown: (H, W), where there is imagery.
        ignore: see `PseudoOptions`.
    """
    low, high = ignore or (0.5, 0.5)
    labels: NDArray[np.uint8] = (probability > high).astype(np.uint8)
    if ignore is not None:
        labels[(probability >= low) & (probability <= high)] = IGNORE
    labels[~shown] = IGNORE
    return labels


def soft_labels(probability: NDArray[np.floating], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns probability x 254, uint8 (H, W); 255 where the labels are."""
    return np.where(labels == IGNORE, IGNORE, np.rint(probability * SOFT_STEPS)).astype(np.uint8)


def label_chips(
    test: Path, weights_path: Path, paths: Paths, name: str, options: PseudoOptions | None = None
) -> PseudoLabels:
    """Predicts unlabelled chips, and writes the data set `data/NAME` with their labels and the ledger `pseudo.csv`.

    A second call predicts only the chips that are missing, whose image changed, or whose files were made in another
    way; the files are byte for byte those of a single call. Other values of `min_confidence`, `drop_empty` and `round`
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
    shipped = load_weights(weights_path, options.prediction.engine.device)
    _check_classes(shipped.card, weights_path)
    _check_resolution(chips, shipped.card, options.prediction)
    with locked(folder) if rank() == 0 else nullcontext():
        weights = tune_on(chips, shipped, options.prediction)
        if rank() == 0:
            _check_same_chips(folder, chips)
            remove_leftovers(folder)
        mosaics = agreed(find_mosaics(chips) if rank() == 0 else [])
        if rank() == 0 and not (folder / PROGRESS).is_file():
            write_progress(folder, kind=LabelledChip)  # marks the folder as kit's
        weights, reader = ready_to_predict(weights, chips, mosaics, options.prediction, folder)
        labeller = Labeller(weights, reader, options, folder, _side_px(mosaics))
        todo = set(agreed(_begin(labeller, chips) if rank() == 0 else []))
        _predict(labeller, own_share(reader.in_order([chip for chip in chips if chip.id in todo])))
        wait_for_all()
        return agreed(_finish(labeller, chips, mosaics, name) if rank() == 0 else None)  # type: ignore[return-value]


def _check_folder(folder: Path) -> None:
    """Checks that a data set's folder can be written, and is missing, empty or made by kit pseudo.

    Raises:
        OutputError: it is not.
    """
    check_writable(folder)
    if not any(folder.glob(".progress*.csv")):
        check_unclaimed(folder, "kit pseudo", "--name")


def _check_same_chips(folder: Path, chips: Sequence[Chip]) -> None:
    """Checks that a data set's folder holds labels of no other chips.

    Raises:
        DataError: it does.
    """
    strangers = {path.stem for path in folder.glob("masks/[!.]*.tif")} - {chip.id for chip in chips}
    if strangers:
        raise DataError(
            f"{folder} holds {len(strangers)} labels of another test set, first {min(strangers)}.tif",
            "choose another --name, or remove that folder",
        )


def _check_classes(card: Card, path: Path) -> None:
    if tuple(card.classes) != CLASSES:
        raise WeightsError(
            f"{path} was trained on the classes {', '.join(card.classes)}, expected {', '.join(CLASSES)}",
            "choose other weights: kit weights lists what is here",
        )


def _check_resolution(chips: Sequence[Chip], card: Card, prediction: SubmitOptions) -> None:
    """Checks the resolution of a few chips with a georeference; that of others is not known.

    Raises:
        DataError: it is far from that of training, and no option asks for chips to be resized.
    """
    if prediction.scale or prediction.gsd_m is not None:
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
    """Returns the ids of the chips that are left to predict; the rows of the others are written anew."""
    folder = labeller.folder
    rows = read_progress(folder, labeller.identity, LabelledChip)
    todo = [chip.id for chip in chips if not labeller.is_done(chip, rows.get(chip.id))]
    if todo:
        for name in (INDEX, LEDGER):  # of other labels
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


def _finish(labeller: Labeller, chips: Sequence[Chip], mosaics: Sequence[Mosaic], name: str) -> PseudoLabels:
    """Writes the ledger and the index.

    Raises:
        DataError: rows are missing, or no chip is kept.
    """
    folder, options = labeller.folder, labeller.options
    rows = read_progress(folder, labeller.identity, LabelledChip)
    if lost := sorted({chip.id for chip in chips} - rows.keys()):
        raise DataError(
            f"{len(lost)} chips have no row in {folder / PROGRESS}, first {lost[0]}: something else wrote that folder",
            "run the same command again",
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
    with replacing(folder / INDEX) as temporary:
        index.to_csv(temporary, index=False)
    imagery_px, labelled_px = sum(row.imagery_px for row in kept), sum(row.labelled_px for row in kept)
    built = sum(row.building_px for row in kept) / labelled_px
    return PseudoLabels(folder, len(chips), len(kept), reasons, built, 1 - labelled_px / imagery_px)


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
