"""Pseudo-labels of chips: options, labels, files, progress (`kit pseudo`)."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from kit.data.grids import Grid, ground_m, on_earth
from kit.data.masks import BUILDING, IGNORE, SOFT_STEPS
from kit.data.rasters import open_picture
from kit.data.sources.chips import Chip
from kit.data.tiles.pairs import filled, own_grid
from kit.data.tiles.tile import IMAGE_FORMATS, Spot, Tile, encode_image, encode_mask
from kit.deploy.engine.predict import has_ground
from kit.deploy.mosaics.wide import WideChip, WideReader
from kit.deploy.submission.progress import ProgressRow
from kit.deploy.submission.submit import SubmitOptions
from kit.deploy.weights.load import Weights
from kit.errors import DataError, nearest
from kit.outputs import spreadsheet_safe
from kit.system.files import replacing, write_bytes

LEDGER_COLUMNS = (
    "chip", "round", "weights_sha256", "confidence", "building_fraction", "ignored_fraction", "kept", "reason"
)  # fmt: skip
TIER = 3  # of the index: 1 careful, 2 rough, 3 predicted


@dataclass(frozen=True)
class PseudoOptions:
    """The options of `kit pseudo`."""

    # how chips are predicted; `cleaning` and `rle` are ignored
    prediction: SubmitOptions = field(default_factory=SubmitOptions)
    # probabilities in this range, ends included, are uncertain: 255 in masks. None keeps every pixel, and building is
    # what is above 0.5
    ignore: tuple[float, float] | None = (0.35, 0.65)
    soft: bool = False  # also write the probabilities, see docs/pseudo.md
    min_confidence: float = 0.0  # chips with a lower mean confidence are left out, 0..1
    drop_empty: bool = False  # leaves chips without building out
    images: str = "lossless"  # how tiles are stored, a key of `IMAGE_FORMATS`
    round: int = 1  # number of the round, for the ledger

    def check(self) -> None:
        """Checks the options before anything is read.

        Raises:
            DataError: a number is out of range, or the image format is unknown.
        """
        if self.ignore is not None and not 0 <= self.ignore[0] < self.ignore[1] <= 1:
            low, high = self.ignore
            raise DataError(f"--ignore {low:g},{high:g} is not a range of probabilities", EXPECTED_RANGE)
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
        raise DataError(f"--ignore {text!r} is not a range of probabilities", EXPECTED_RANGE) from cause
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
        """Returns why the chip is left out of the index; empty if it is kept."""
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
class Labeller:
    """Writes chips as labelled tiles of a data set."""

    weights: Weights  # set up to predict
    reader: WideReader  # of the chips
    options: PseudoOptions  # see `PseudoOptions`
    folder: Path  # of the data set
    side_px: int  # of the tiles: smaller chips are filled up with no data on the right and below

    @property
    def identity(self) -> str:
        """A text that is equal if files are written in the same way."""
        options = self.options
        way = {"ignore": options.ignore, "soft": options.soft, "images": options.images, "side_px": self.side_px}
        return f"{self.weights.sha256} {self.weights.plan} {json.dumps(way)}"

    def files(self, chip: str) -> dict[str, str]:
        """Returns a chip's files, relative to the data set: `image`, `mask`, `soft`."""
        folders = {"image": "images", "mask": "masks", **({"soft": "soft"} if self.options.soft else {})}
        return {kind: f"{folder}/{chip}.tif" for kind, folder in folders.items()}

    def is_done(self, chip: Chip, row: LabelledChip | None) -> bool:
        """Returns whether a chip's row belongs to its current image, and its files exist."""
        if row is None or row.image != self.reader.version(chip):
            return False
        return not row.imagery_px or all((self.folder / file).is_file() for file in self.files(chip.id).values())

    def write(self, chip: Chip, wide_chip: WideChip, probability: NDArray[np.float32], progress: TextIO) -> None:
        """Writes a chip's files and its row. If its mask exists, so does its row, even if the process is killed."""
        shown = imagery(wide_chip.image)
        labels = hard_labels(probability, shown, self.options.ignore)
        grid = self._grid(chip)
        row = self._row(chip, wide_chip, probability[shown], labels, grid)
        files = {kind: self.folder / file for kind, file in self.files(chip.id).items()}
        if not row.imagery_px:
            for file in files.values():  # of an earlier image
                file.unlink(missing_ok=True)
            _append(row, progress)
            return
        spot = Spot("", "", TIER, chip.id, grid, 0, 0)
        rgb = np.where(shown, wide_chip.image[..., :3].transpose(2, 0, 1), np.uint8(0))
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
        self, chip: Chip, wide_chip: WideChip, shown: NDArray[np.float32], labels: NDArray[np.uint8], grid: Grid
    ) -> LabelledChip:
        confidence = float(np.maximum(shown, 1 - shown).mean(dtype=np.float64)) if shown.size else 0.0
        gsd_m = ground_m(grid, 0, 0) if grid.crs else self.weights.card.gsd_m * wide_chip.factor
        return LabelledChip(
            chip.id, self.identity, wide_chip.version, shown.size, int((labels != IGNORE).sum()),
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
    """Returns where an image, uint8 (H, W, 3 or 4), has imagery, bool (H, W); nowhere if it has a single colour."""
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
