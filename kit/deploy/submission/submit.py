"""Predicts a test set and packs the submission (`kit submit`). Finished chips are kept after an interruption."""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, astuple, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from kit import __version__
from kit.console import meter, say
from kit.data.rasters import read_image
from kit.data.sources.chips import Chip, find_chips
from kit.deploy.adaptive.calibrate import end_early
from kit.deploy.engine.backends import EngineOptions
from kit.deploy.engine.predict import has_ground, predict_image
from kit.deploy.engine.tuning import TILES, set_up
from kit.deploy.mosaics.find import known_mosaics
from kit.deploy.mosaics.mosaic import RESOLUTIONS, Mosaic
from kit.deploy.mosaics.resolution import find_resolutions
from kit.deploy.mosaics.wide import MARGIN_PX, WideChip, WideReader
from kit.deploy.submission.archive import write_tgz
from kit.deploy.submission.background import BackgroundWriter, read_ahead
from kit.deploy.submission.checks import Summary, check_submission
from kit.deploy.submission.mask_tiff import decode_mask, encode_mask
from kit.deploy.submission.progress import (
    FINISHED,
    PROGRESS,
    RANK_PROGRESS,
    TABLE,
    Done,
    Finished,
    archive_of,
    digest,
    file_versions,
    read_finished,
    read_progress,
    write_progress,
    write_table,
)  # fmt: skip
from kit.deploy.submission.rle import TABLE as RLE
from kit.deploy.submission.rle import write_rle
from kit.deploy.weights.cleaning import AS_SHIPPED, Cleaning, clean_image
from kit.deploy.weights.load import Weights, load_weights
from kit.errors import KitError, OutputError, RasterError, SubmissionError
from kit.outputs import check_apart, check_unclaimed
from kit.system.devices import processor_name
from kit.system.files import check_writable, locked, remove_leftovers, replacing, sha256_of
from kit.system.ranks import agreed, rank, ranks, wait_for_all

MOST_ENLARGED = 4.0  # times: memory grows with its square
TRIED = 30  # chips that are read in search of imagery to tune on
LOOKS = (8, 24)  # smallest and largest number of chips to calibrate an adaptive vote on: 16 MB each


@dataclass(frozen=True)
class SubmitOptions:
    """How a test set is predicted."""

    engine: EngineOptions = field(default_factory=EngineOptions)  # how the weights are run
    rle: bool = False  # also write `rle.csv`, see `kit.deploy.submission.rle`
    cleaning: Cleaning = AS_SHIPPED  # threshold, smallest object and smallest hole of the masks
    mosaic: bool = False  # find which chips lie side by side, and predict each with a margin of its neighbours
    scale: bool = False  # predict each mosaic at the resolution of training; its own is estimated
    # predict at the resolution of training; this is the chips' own, metres per pixel. Excludes `scale`
    gsd_m: float | None = None
    mosaics: Path | None = None  # table of `kit mosaic` that is read if it belongs to the chips, see `known_mosaics`

    def __post_init__(self) -> None:
        if self.scale and self.gsd_m is not None:
            raise KitError("--scale estimates the resolution that --gsd gives", "leave one of them out")

    @property
    def needs_mosaics(self) -> bool:
        """Whether it matters which chips lie side by side."""
        return self.mosaic or self.scale

    def tables(self) -> list[str]:
        """Returns the names of the tables that the submission has."""
        return [TABLE, *([RLE] if self.rle else []), *([RESOLUTIONS] if self.scale else [])]

    def request(self, weights_sha256: str) -> str:
        """Returns a text that is equal for calls with equal masks."""
        options = {name: value for name, value in asdict(self).items() if name not in ("rle", "mosaics")}
        if self.needs_mosaics and self.mosaics and self.mosaics.is_file():
            options["mosaics_sha256"] = sha256_of(self.mosaics)
        machine = ""
        if self.engine.tuning:  # as measured there
            processor = processor_name(torch.device(self.engine.device))
            machine = f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        return json.dumps({"kit": __version__, "weights": weights_sha256, "machine": machine, **options})


@dataclass(frozen=True)
class Job:
    """How the masks of a submission are computed, and where they are written."""

    weights: Weights  # set up to predict
    cleaning: Cleaning  # of the masks
    folder: Path  # of the submission
    reader: WideReader  # of the chips

    @property
    def identity(self) -> str:
        """A text that is equal for masks computed in the same way: weights, settings, cleaning."""
        cleaning = () if self.cleaning == AS_SHIPPED else ("cut", *astuple(self.cleaning))
        return " ".join(map(str, (self.weights.sha256, self.weights.plan, *cleaning)))


def submit(test: Path, weights_path: Path, out_dir: Path, options: SubmitOptions | None = None) -> Summary:
    """Predicts every chip and writes `<id>.tif`, `submission.csv` and, beside the folder, `NAME.tgz`.

    A second call predicts only the chips that are missing, whose image changed, or whose mask was made in another way;
    the files are byte for byte those of a single call. Ranks share the folder; each predicts its part of the chips.

    Args:
        test: a STAC catalogue or a folder of chips.
        weights_path: as `kit export` wrote it.
        out_dir: the submission's folder; the archive takes its name.
        options: see `SubmitOptions`.

    Raises:
        CatalogError: the test set is missing or empty.
        RasterError: a chip cannot be read; the chips before it are kept.
        WeightsError: the weights are missing or not kit's.
        OutputError: the folder cannot be written, or was not written by kit submit.
        SubmissionError: the folder holds masks of another test set, or the written files do not pass their check.
        KitError: another process writes the folder.
    """
    options = options or SubmitOptions()
    chips = find_chips(test)
    check_apart(out_dir, [test, *(chip.path for chip in chips)], "--name or --root")
    versions = _versions(chips)  # before the first is read: one that is written later will be predicted again
    if summary := agreed(_finished(chips, versions, weights_path, out_dir, options) if rank() == 0 else None):
        return summary
    if rank() == 0:
        _check_folder(out_dir, chips)
    shipped = load_weights(weights_path, options.engine.device)
    with locked(out_dir) if rank() == 0 else nullcontext():
        job = _prepare(chips, shipped, out_dir, options)
        todo = set(agreed(_begin(job, chips) if rank() == 0 else []))
        share = own_share(job.reader.in_order([chip for chip in chips if chip.id in todo]))
        _predict(job, share, own_progress(out_dir))
        wait_for_all()
        return agreed(_finish(job, chips, versions, options) if rank() == 0 else None)  # type: ignore[return-value]


def submit_part(test: Path, weights_path: Path, out_dir: Path, options: SubmitOptions, part: tuple[int, int]) -> int:
    """Predicts the chips of one part into a submission's folder, and returns their number; see `merge_parts`.

    Parts may run at once, on machines that share the folder. They compute as the weights were exported, so that all
    machines compute alike.

    Args:
        test: see `submit`.
        weights_path: likewise.
        out_dir: likewise.
        options: the same for all parts, without tuning.
        part: which of how many; the first is 1.

    Raises:
        KitError: see `submit`.
    """
    chips, (index, count) = find_chips(test), part
    check_apart(out_dir, [test, *(chip.path for chip in chips)], "--name or --root")
    _check_folder(out_dir, chips)
    own = chips[index - 1 :: count]
    with locked(out_dir.with_name(f"{out_dir.name}.part{index}of{count}")):
        out_dir.mkdir(parents=True, exist_ok=True)
        job = _job(chips, load_weights(weights_path, options.engine.device), out_dir, options)
        done = _done(job, own)
        name = f".progress.{index}of{count}.csv"
        if not (out_dir / name).is_file():
            write_progress(out_dir, name=name)
        (out_dir / FINISHED).unlink(missing_ok=True)
        todo = [chip for chip in job.reader.in_order(own) if chip.id not in done]
        _predict(job, todo, out_dir / name)
    return len(own)


def merge_parts(test: Path, weights_path: Path, out_dir: Path, options: SubmitOptions) -> Summary:
    """Packs the submission that parts have predicted; the files are those of `submit` without tuning.

    Raises:
        SubmissionError: chips are missing; it says of which parts.
        KitError: see `submit`.
    """
    chips = find_chips(test)
    versions = _versions(chips)
    _check_folder(out_dir, chips)
    with locked(out_dir):
        job = _job(chips, load_weights(weights_path, options.engine.device), out_dir, options)
        done = _done(job, chips)
        missing = [place for place, chip in enumerate(chips) if chip.id not in done]
        if missing:
            named, hint = f"first {chips[missing[0]].id}", "rerun its part: kit submit ... --part I/N"
            if begun := sorted(out_dir.glob(".progress.*of*.csv"), key=lambda path: path.stat().st_mtime_ns):
                count = int(begun[-1].name.split(".")[2].partition("of")[2])
                lacking = sorted({place % count + 1 for place in missing})
                named = f"of {'parts' if len(lacking) > 1 else 'part'} " + ", ".join(f"{i}/{count}" for i in lacking)
                hint = f"run what is missing: kit submit ... --part {lacking[0]}/{count}"
            raise SubmissionError(f"{len(missing)} of {len(chips)} chips are not predicted yet, {named}", hint)
        _begin(job, chips)
        return _finish(job, chips, versions, options)


def _job(chips: Sequence[Chip], shipped: Weights, folder: Path, options: SubmitOptions) -> Job:
    """Returns the job of a part: as `_prepare`, without touching what other parts write."""
    weights = tune_on(chips, shipped, options)
    mosaics = known_mosaics(chips, options.mosaics) if options.needs_mosaics else []
    weights, reader = ready_to_predict(weights, chips, mosaics, options, folder)
    return Job(weights, options.cleaning, folder, reader)


def _versions(chips: Sequence[Chip]) -> str:
    """Returns a digest of the chips' images."""
    try:
        return digest({chip.id: chip.path for chip in chips})
    except KitError as cause:
        raise RasterError(cause.message, "is the test set complete?") from cause


def _masks(chips: Sequence[Chip], folder: Path) -> dict[str, Path]:
    """Returns where the masks of chips are written, by id."""
    return {chip.id: folder / f"{chip.id}.tif" for chip in chips}


def _finished(
    chips: Sequence[Chip], versions: str, weights_path: Path, folder: Path, options: SubmitOptions
) -> Summary | None:
    """Returns the summary of a submission that the same call finished before, if its files stand; reads no image."""
    record = read_finished(folder)
    if record is None or not weights_path.is_file() or record.request != options.request(sha256_of(weights_path)):
        return None
    if not record.holds(versions, _masks(chips, folder), folder, options.tables()):
        return None
    say("nothing to predict: this submission is finished")
    return Summary(archive_of(folder), len(chips), record.building_fraction, record.empty)


def _check_folder(folder: Path, chips: Sequence[Chip]) -> None:
    """Checks that a submission's folder and its archive can be written, and are kit's to write."""
    archive = archive_of(folder)
    check_writable(folder)
    if not any(folder.glob(".progress*.csv")):
        check_unclaimed(folder, "kit submit", "--name")
        if archive.exists():
            raise OutputError(
                f"{archive} exists, and no folder {folder.name} of kit submit beside it",
                "choose another --name, or move that archive away",
            )
    ids = {chip.id for chip in chips}
    others = {path.stem for path in folder.glob("*.tif") if not path.name.startswith(".")} - ids
    if others:
        raise SubmissionError(
            f"{folder} holds {len(others)} masks of another test set, first {min(others)}.tif",
            "choose another --name, or remove that folder",
        )


def _prepare(chips: Sequence[Chip], shipped: Weights, folder: Path, options: SubmitOptions) -> Job:
    """Returns the job of a submission: weights set up, mosaics and resolutions known. All ranks must call it."""
    weights = tune_on(chips, shipped, options)
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        if not (folder / PROGRESS).is_file():
            write_progress(folder)  # marks the folder as kit's
    mosaics = agreed(known_mosaics(chips, options.mosaics) if options.needs_mosaics and rank() == 0 else [])
    weights, reader = ready_to_predict(weights, chips, mosaics, options, folder)
    return Job(weights, options.cleaning, folder, reader)


def tune_on(chips: Sequence[Chip], shipped: Weights, options: SubmitOptions) -> Weights:
    """Returns weights set up to predict chips on this machine. All ranks must call it."""
    return set_up(shipped, partial(_with_ground, chips), options.engine)


def ready_to_predict(
    weights: Weights, chips: Sequence[Chip], mosaics: Sequence[Mosaic], options: SubmitOptions, folder: Path
) -> tuple[Weights, WideReader]:
    """Returns weights that end votes early where that is an option, and the reader of chips. All ranks must call it.

    Args:
        weights: set up.
        chips: all of them.
        mosaics: of the chips, where a margin of neighbours or an estimated resolution is an option.
        options: `mosaic`, `scale`, `gsd_m` and `engine.adaptive` count.
        folder: keeps the table of estimated resolutions.

    Raises:
        KitError: the given resolution is too far from that of training.
    """
    factors = agreed(_factors(weights, chips, mosaics, options, folder / RESOLUTIONS) if rank() == 0 else {})
    reader = WideReader(mosaics, MARGIN_PX if options.mosaic else 0, factors)
    if options.engine.adaptive:
        sample = _sample(chips)
        identity = " ".join(f"{chip.id} {reader.version(chip)}" for chip in sample)
        weights = end_early(weights, partial(_wide_images, sample, reader), identity, len(sample) / len(chips))
    return weights, reader


def _with_ground(chips: Sequence[Chip]) -> list[NDArray[np.uint8]]:
    """Returns a few images with imagery, spread over the test set."""
    images = (read_image(chip.path) for chip in chips[:: max(1, len(chips) // TRIED)])
    return list(islice((image for image in images if has_ground(image)), TILES))


def _sample(chips: Sequence[Chip]) -> list[Chip]:
    """Returns evenly spread chips to calibrate an adaptive vote on: as many as the square root of their number."""
    count = min(len(chips), int(np.clip(round(len(chips) ** 0.5), *LOOKS)))
    return [chips[place] for place in np.linspace(0, len(chips) - 1, count).round().astype(int).tolist()]


def _wide_images(chips: Sequence[Chip], reader: WideReader) -> Iterator[NDArray[np.uint8]]:
    """Yields chips with imagery, as networks see them."""
    return filter(has_ground, (reader.read(chip).wide for chip in chips))


def _factors(
    weights: Weights, chips: Sequence[Chip], mosaics: Sequence[Mosaic], options: SubmitOptions, table: Path
) -> dict[str, float]:
    """Returns the factors by which chips are enlarged to the resolution of training, by id."""
    if options.gsd_m is None and not options.scale:
        return {}
    trained_m = weights.card.resolution_m("--scale" if options.scale else "--gsd")
    if options.gsd_m is not None:
        factor = options.gsd_m / trained_m
        if not 1 / MOST_ENLARGED <= factor <= MOST_ENLARGED:
            raise KitError(
                f"--gsd {options.gsd_m:g}: {weights.path.name} was trained at {trained_m:.3g} m per pixel; chips would "
                f"be predicted at {factor:.3g} times their size",
                f"give metres per pixel from {trained_m / MOST_ENLARGED:.3g} to {trained_m * MOST_ENLARGED:.3g}",
            )
        return dict.fromkeys((chip.id for chip in chips), factor)
    by_mosaic = {row.mosaic: row.factor(trained_m) for row in find_resolutions(weights, mosaics, table)}
    return {p.chip.id: by_mosaic[mosaic.name] for mosaic in mosaics if mosaic.name in by_mosaic for p in mosaic.placed}


def _begin(job: Job, chips: Sequence[Chip]) -> list[str]:
    """Returns the ids of the chips to predict; rewrites the progress file with the rows of the others."""
    rows = read_progress(job.folder, job.identity, Done)
    write_progress(job.folder, rows.values())
    for path in job.folder.glob(RANK_PROGRESS):
        path.unlink()
    done = _done(job, chips)
    todo = [chip.id for chip in chips if chip.id not in done]
    if todo:
        for name in (FINISHED, RLE):  # of other masks
            (job.folder / name).unlink(missing_ok=True)
    return todo


def _done(job: Job, chips: Sequence[Chip]) -> set[str]:
    """Returns the ids of the chips whose masks stand."""
    rows, masks = read_progress(job.folder, job.identity, Done), _masks(chips, job.folder)

    def is_done(chip: Chip) -> bool:
        row = rows.get(chip.id)
        return row is not None and row.image == job.reader.version(chip) and masks[chip.id].is_file()

    return {chip.id for chip in chips if is_done(chip)}


def own_share(todo: Sequence[Chip]) -> Sequence[Chip]:
    """Returns the chips that this rank predicts."""
    return todo[len(todo) * rank() // ranks() : len(todo) * (rank() + 1) // ranks()]


def own_progress(folder: Path) -> Path:
    """Returns the progress file that this rank appends to."""
    return folder / (PROGRESS if rank() == 0 else f".progress.{rank()}.csv")


def predictions(
    weights: Weights, reader: WideReader, todo: Sequence[Chip]
) -> Iterator[tuple[Chip, WideChip, NDArray[np.float32]]]:
    """Yields chips with their probability of building, float32 (H, W), 0..1; images are read ahead.

    The probability is 0 where alpha is 0, and everywhere in a chip without imagery.

    Raises:
        RasterError: a chip cannot be read.
    """
    with meter("predict chips", len(todo)) as shown:
        for chip, wide_chip in read_ahead(reader.read, todo):
            probability = np.zeros(wide_chip.image.shape[:2], np.float32)
            if has_ground(wide_chip.image):
                probability = wide_chip.middle(predict_image(weights, wide_chip.wide))
            yield chip, wide_chip, probability
            shown.advance()


def _predict(job: Job, todo: Sequence[Chip], file: Path) -> None:
    """Predicts chips, and appends their rows to a progress file; masks are written in the background."""
    with (
        file.open("a", newline="", encoding="utf-8") as progress,
        BackgroundWriter() as write,
    ):
        for chip, wide_chip, probability in predictions(job.weights, job.reader, todo):
            write(partial(_write, job, chip, wide_chip, probability, progress))


def _write(job: Job, chip: Chip, wide_chip: WideChip, probability: NDArray[np.float32], progress: TextIO) -> None:
    """Writes a chip's mask and its row. If the mask exists, so does its row, even if the process is killed."""
    mask = clean_image(probability, wide_chip.image, job.cleaning, job.weights.card.gsd_m * wide_chip.factor)
    confidence = float(np.maximum(probability, 1 - probability).mean(dtype=np.float64))
    height, width = mask.shape
    row = Done(chip.id, job.identity, wide_chip.version, height, width, int(mask.sum()), confidence)
    with replacing(path := job.folder / f"{chip.id}.tif") as temporary:
        temporary.write_bytes(encode_mask(mask))
        path.unlink(missing_ok=True)  # of other weights, or of another image
        progress.write(row.to_line())
        progress.flush()


def _finish(job: Job, chips: Sequence[Chip], versions: str, options: SubmitOptions) -> Summary:
    """Writes the tables and the archive, and checks them. If no mask changed, the archive is not written again.

    Args:
        job: of the submission.
        chips: the test set.
        versions: digest of the chips' images before the first was read.
        options: what to write.
    """
    folder, archive = job.folder, archive_of(job.folder)
    masks = _masks(chips, folder)
    rows = read_progress(folder, job.identity, Done)
    if lost := sorted(masks.keys() - rows.keys()):
        raise SubmissionError(
            f"{len(lost)} chips have no row in {folder / PROGRESS}, first {lost[0]}: something else wrote that folder",
            "rerun the same command",
        )
    write_table([rows[chip.id] for chip in chips], folder / TABLE)
    sizes = {name: (row.height_px, row.width_px) for name, row in rows.items()}
    record = read_finished(folder)
    if record is not None and record.holds(versions, masks, folder):
        summary = Summary(archive, len(chips), record.building_fraction, record.empty)
    else:
        (folder / FINISHED).unlink(missing_ok=True)
        write_tgz(masks.values(), archive)
        try:
            summary = check_submission(archive, chips, sizes)
        except SubmissionError as cause:  # masks were damaged since they were written
            hint = f"remove these masks from {folder}, and run kit submit again"
            raise SubmissionError(cause.message, hint) from cause
    if options.rle:
        write_rle(((name, decode_mask(path.read_bytes(), path.name)) for name, path in masks.items()), folder / RLE)
        check_submission(folder / RLE, chips, sizes)
    Finished(
        options.request(job.weights.sha256), versions, digest(masks),
        file_versions(folder, options.tables()), summary.building_fraction, summary.empty,
    ).write(folder)  # fmt: skip
    return summary
