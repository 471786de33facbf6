"""A test set to masks, a table and an archive; finished chips are kept whatever happens, and all is checked."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from kit.console import meter
from kit.data.rasters import read_image
from kit.data.sources.chips import Chip, find_chips
from kit.deploy.adaptive.calibrate import end_early, learnt_bounds
from kit.deploy.engine.backends import EngineOptions, check_engine
from kit.deploy.engine.predict import has_ground, predict_image
from kit.deploy.engine.tuning import TILES, set_up
from kit.deploy.mosaics.find import find_mosaics
from kit.deploy.mosaics.mosaic import RESOLUTIONS, Mosaic
from kit.deploy.mosaics.resolution import find_resolutions
from kit.deploy.mosaics.wide import MARGIN_PX, WideChip, WideReader
from kit.deploy.submission.archive import write_tgz
from kit.deploy.submission.checks import Summary, check_submission
from kit.deploy.submission.flow import WriteBehind, read_ahead
from kit.deploy.submission.mask_tiff import decode_mask, encode_mask
from kit.deploy.submission.rle import TABLE as RLE
from kit.deploy.submission.rle import write_rle
from kit.deploy.weights.cleaning import AS_SHIPPED, Cleaning, clean_image
from kit.deploy.weights.load import Weights, load_weights
from kit.errors import KitError, OutputError, SubmissionError
from kit.outputs import check_apart, check_unclaimed
from kit.system.files import replacing
from kit.system.ranks import agreed, rank, ranks, wait_for_all

__all__ = ["Chip", "Summary", "check_submission", "find_chips", "submit"]

PROGRESS = ".progress.csv"
SHARES = ".progress.*.csv"  # of ranks beside the first
TABLE = "submission.csv"
MOST_ENLARGED = 4.0  # times: memory grows with its square
TRIED = 30  # chips that are looked at for ground to be tuned on
LOOKS = (8, 24)  # chips, fewest and most, that are looked at in full to fit an adaptive vote: 16 MB each


@dataclass(frozen=True)
class Done:
    """One finished chip, a row of the progress file.

    Args:
        chip: its id.
        weights: sha256 of the weights that predicted it, and how their cores computed; the views are part of the file.
        image: size in bytes and time of the chip's image, and of those around it: others are predicted again.
        pixels: of the chip.
        building_px: of the mask.
        mean_confidence: mean of max(p, 1 - p), 0.5..1.
    """

    chip: str
    weights: str
    image: str
    pixels: int
    building_px: int
    mean_confidence: float


COLUMNS = tuple(field.name for field in fields(Done))


@dataclass(frozen=True)
class Job:
    """What makes the masks of a submission, and where they go.

    Args:
        weights: set up to predict.
        cleaning: how masks are cut.
        folder: of the submission.
        surroundings: what of a chip's is read.
    """

    weights: Weights
    cleaning: Cleaning
    folder: Path
    surroundings: WideReader

    @property
    def identity(self) -> str:
        """What two masks have in common: the file, how its cores compute, how masks are cut."""
        cut = () if self.cleaning == AS_SHIPPED else ("cut", *astuple(self.cleaning))
        return " ".join(map(str, (self.weights.sha256, self.weights.plan, *cut)))

    def mask_path(self, chip: Chip) -> Path:
        """Where a chip's mask is written."""
        return self.folder / f"{chip.id}.tif"


def submit(
    test: Path,
    weights_path: Path,
    out_dir: Path,
    device: str = "cpu",
    tuning: bool = True,
    engine: str = "torch",
    rle: bool = False,
    cleaning: Cleaning = AS_SHIPPED,
    adaptive: bool = False,
    mosaic: bool = False,
    scale: bool | float = False,
) -> Summary:
    """Predicts every chip and writes `<id>.tif`, `submission.csv` and, beside the folder, `NAME.tgz`.

    A second call predicts only what is missing or was made with other weights or another image; the files come out
    byte for byte as from one call. Of several ranks, which see one folder, each predicts its share.

    Args:
        test: a STAC catalogue or a folder of .tif chips.
        weights_path: as `kit export` wrote it.
        out_dir: the submission's folder; its name is the archive's.
        device: as torch names it.
        tuning: measures, with the first call, how this machine predicts fastest (`kit.deploy.engine.tuning`); without
            it the file computes as it was shipped.
        engine: `torch`, `openvino` or `openvino-int8`, see `kit.deploy.engine.backends`.
        rle: writes `rle.csv` into the folder, too, see `kit.deploy.submission.rle`.
        cleaning: of the masks; by default they are those of the weights' own `mask`.
        adaptive: ends the vote where it is clear, as far as a few of the chips bear it, see `kit.deploy.adaptive`.
        mosaic: finds which chips lie side by side, and predicts each with a margin of what is around it.
        scale: predicts chips at the resolution of training: estimates each mosaic's, or takes these metres per pixel
            for all chips.

    Raises:
        CatalogError: the test set is missing or empty.
        RasterError: a chip cannot be read; the chips before it are kept.
        WeightsError: the weights are missing or not kit's.
        SubmissionError: the folder holds masks of another test set, or what was written does not pass the check.
    """
    chips = find_chips(test)
    check_apart(out_dir, [test, *(chip.path for chip in chips)], "--name or --root")
    if rank() == 0:
        _check_folder(out_dir, chips)
    options = EngineOptions(device, check_engine(engine), tuning, adaptive)
    shipped = load_weights(weights_path, device)
    if adaptive:
        learnt_bounds(shipped)  # before anything is measured or written
    weights = set_up(shipped, partial(_with_ground, chips), options)
    if rank() == 0:
        _make_folder(out_dir)
    mosaics = agreed(find_mosaics(chips) if (mosaic or scale is True) and rank() == 0 else [])
    factors = agreed(_factors(weights, chips, mosaics, scale, out_dir / RESOLUTIONS) if rank() == 0 else {})
    surroundings = WideReader(mosaics, MARGIN_PX if mosaic else 0, factors)
    if adaptive:
        some = _some(chips)
        identity = " ".join(f"{chip.id} {surroundings.version(chip)}" for chip in some)
        weights = end_early(weights, partial(_as_seen, some, surroundings), identity, len(some) / len(chips))
    job = Job(weights, cleaning, out_dir, surroundings)
    todo = set(agreed(_begin(job, chips) if rank() == 0 else []))
    share = len(todo) * rank() // ranks(), len(todo) * (rank() + 1) // ranks()
    _predict(job, job.surroundings.in_order([chip for chip in chips if chip.id in todo])[slice(*share)])
    wait_for_all()
    return agreed(_finish(job, chips, rle) if rank() == 0 else None)  # type: ignore[return-value]


def _with_ground(chips: Sequence[Chip]) -> list[NDArray[np.uint8]]:
    """Returns a few images that show something, from the whole test set."""
    images = (read_image(chip.path) for chip in chips[:: max(1, len(chips) // TRIED)])
    return list(islice((image for image in images if has_ground(image)), TILES))


def _some(chips: Sequence[Chip]) -> list[Chip]:
    """Returns chips to be looked at in full, evenly spread: as many as the root of their number."""
    count = min(len(chips), int(np.clip(round(len(chips) ** 0.5), *LOOKS)))
    return [chips[place] for place in np.linspace(0, len(chips) - 1, count).round().astype(int).tolist()]


def _as_seen(chips: Sequence[Chip], surroundings: WideReader) -> Iterator[NDArray[np.uint8]]:
    """Returns what is seen of chips that show something, one after the other."""
    return filter(has_ground, (surroundings.read(chip).wide for chip in chips))


def _factors(
    weights: Weights, chips: Sequence[Chip], mosaics: Sequence[Mosaic], scale: bool | float, table: Path
) -> dict[str, float]:
    """Returns by how much chips are enlarged to be seen at the resolution of training, by id."""
    if scale is False:
        return {}
    if scale is not True:
        factor, trained_m = scale / weights.card.gsd_m, weights.card.gsd_m
        if not 1 / MOST_ENLARGED <= factor <= MOST_ENLARGED:
            raise KitError(
                f"--gsd {scale:g}: {weights.path.name} knows {trained_m:.3g} m per pixel, chips were to be seen at "
                f"{factor:.3g} times their size",
                f"give metres per pixel from {trained_m / MOST_ENLARGED:.3g} to {trained_m * MOST_ENLARGED:.3g}",
            )
        return dict.fromkeys((chip.id for chip in chips), factor)
    found = {row.mosaic: row.factor(weights.card.gsd_m) for row in find_resolutions(weights, mosaics, table)}
    return {p.chip.id: found[mosaic.name] for mosaic in mosaics if mosaic.name in found for p in mosaic.placed}


def _begin(job: Job, chips: Sequence[Chip]) -> list[str]:
    """Writes the rows that hold, and returns the ids of the chips that are to be predicted."""
    done = _read_progress(job)
    with replacing(job.folder / PROGRESS) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *(asdict(row).values() for row in done.values())])
    for share in job.folder.glob(SHARES):
        share.unlink()
    todo = [chip.id for chip in chips if not _is_done(job, chip, done)]
    if todo:
        (job.folder / RLE).unlink(missing_ok=True)  # of other masks
    return todo


def _predict(job: Job, todo: Sequence[Chip]) -> None:
    """Predicts this rank's share; images are read ahead, masks are written behind."""
    share = job.folder / (PROGRESS if rank() == 0 else f".progress.{rank()}.csv")
    with share.open("a", newline="") as file, WriteBehind() as behind, meter("predict chips", len(todo)) as progress:
        for chip, seen in read_ahead(job.surroundings.read, todo):
            probability = np.zeros(seen.image.shape[:2], np.float32)
            if has_ground(seen.image):
                probability = seen.middle(predict_image(job.weights, seen.wide))
            behind(partial(_write, job, chip, seen, probability, file))
            progress.advance()


def _write(job: Job, chip: Chip, seen: WideChip, probability: NDArray[np.float32], progress: TextIO) -> None:
    """Writes a chip's mask and its row; a mask that stands has its row, wherever this is cut."""
    mask = clean_image(probability, seen.image, job.cleaning, job.weights.card.gsd_m * seen.factor)
    confidence = float(np.maximum(probability, 1 - probability).mean(dtype=np.float64))
    row = Done(chip.id, job.identity, seen.version, mask.size, int(mask.sum()), confidence)
    with replacing(path := job.mask_path(chip)) as temporary:
        temporary.write_bytes(encode_mask(mask))
        path.unlink(missing_ok=True)  # of other weights, or of another image
        csv.writer(progress, lineterminator="\n").writerow(asdict(row).values())
        progress.flush()


def _finish(job: Job, chips: Sequence[Chip], rle: bool) -> Summary:
    """Writes the tables and the archive of what all ranks made, and checks them."""
    done = _read_progress(job)
    _write_table([done[chip.id] for chip in chips], job.folder / TABLE)
    archive = archive_of(job.folder)
    write_tgz([job.mask_path(chip) for chip in chips], archive)
    if rle:
        masks = ((chip.id, decode_mask(job.mask_path(chip).read_bytes(), chip.id)) for chip in chips)
        write_rle(masks, job.folder / RLE)
        check_submission(job.folder / RLE, chips)
    return check_submission(archive, chips)


def archive_of(folder: Path) -> Path:
    """Returns the archive of a submission's folder."""
    return folder.with_name(f"{folder.name}.tgz")


def _is_done(job: Job, chip: Chip, done: dict[str, Done]) -> bool:
    known = done.get(chip.id)
    return known is not None and known.image == job.surroundings.version(chip) and job.mask_path(chip).is_file()


def _check_folder(out_dir: Path, chips: Sequence[Chip]) -> None:
    """Checks that the folder and its archive are kit's to write.

    Raises:
        OutputError: the folder or the archive beside it was not written by kit submit.
        SubmissionError: the folder holds another test set's masks.
    """
    archive = archive_of(out_dir)
    if not any(out_dir.glob(".progress*.csv")):
        check_unclaimed(out_dir, "kit submit", "--name")
        if archive.exists():
            raise OutputError(
                f"{archive} exists, and no folder {out_dir.name} of kit submit beside it",
                "choose another --name, or move that archive away",
            )
    strangers = {path.stem for path in out_dir.glob("*.tif") if not path.name.startswith(".")} - {
        chip.id for chip in chips
    }
    if strangers:
        raise SubmissionError(
            f"{out_dir} holds {len(strangers)} masks of another test set, first {min(strangers)}.tif",
            "choose another --name, or remove that folder",
        )


def _make_folder(out_dir: Path) -> None:
    """Makes the folder, marks it as kit's with an empty progress file, and clears what a killed run left."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for leftover in out_dir.glob(".*.part.*"):
        leftover.unlink()
    if not (progress := out_dir / PROGRESS).is_file():
        with replacing(progress) as temporary:
            temporary.write_text(",".join(COLUMNS) + "\n")


def _read_progress(job: Job) -> dict[str, Done]:
    """Returns the rows that this job finished, by chip, of all ranks; a row that is half written is none."""
    done: dict[str, Done] = {}
    for path in (job.folder / PROGRESS, *job.folder.glob(SHARES)):
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        whole = (line for line in lines if line.endswith("\n") and line.count(",") == len(COLUMNS) - 1)
        for chip, made_by, image, pixels, building_px, confidence in csv.reader(whole):
            if made_by == job.identity:
                done[chip] = Done(chip, made_by, image, int(pixels), int(building_px), float(confidence))
    return done


def _write_table(rows: Sequence[Done], path: Path) -> None:
    """Writes submission.csv."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["chip", "building_px", "building_fraction", "mean_confidence"])
        for row in rows:
            fraction = f"{row.building_px / row.pixels:.6f}"
            table.writerow([row.chip, row.building_px, fraction, f"{row.mean_confidence:.6f}"])
