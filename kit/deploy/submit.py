"""A test set to masks, a table and an archive; finished chips are kept whatever happens, and all is checked."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from kit.console import meter
from kit.deploy.archive import entries, write_tgz
from kit.deploy.chips import Chip, find_chips
from kit.deploy.engines import Engine, Setting, check_engine
from kit.deploy.flow import WriteBehind, read_ahead
from kit.deploy.predict import has_ground, predict_image
from kit.deploy.rasters import decode_mask, encode_mask, image_size, read_image
from kit.deploy.tuning import TILES, tune, tuned
from kit.deploy.weights import Weights, load_weights
from kit.errors import KitError, RasterError, SubmissionError
from kit.models.ranks import agreed, rank, ranks, wait_for_all
from kit.paths import replacing

__all__ = ["Chip", "Summary", "check_submission", "find_chips", "submit"]

PROGRESS = ".progress.csv"
SHARES = ".progress.*.csv"  # of ranks beside the first
TABLE = "submission.csv"
TRIED = 30  # chips that are looked at for ground to be tuned on
LISTED = 10  # faults shown in one error


@dataclass(frozen=True)
class Done:
    """One finished chip, a row of the progress file.

    Args:
        chip: its id.
        weights: sha256 of the weights that predicted it, and how their cores computed; the views are part of the file.
        image: size in bytes and time of the chip's image: another image is predicted again.
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
class Summary:
    """A submission that was checked.

    Args:
        path: the archive or folder.
        chips: how many.
        building_fraction: of all pixels, 0..1.
        empty: chips without a building pixel.
    """

    path: Path
    chips: int
    building_fraction: float
    empty: int


def submit(
    test: Path, weights_path: Path, out_dir: Path, device: str = "cpu", tuning: bool = True, engine: str = "torch"
) -> Summary:
    """Predicts every chip and writes `<id>.tif`, `submission.csv` and, beside the folder, `NAME.tgz`.

    A second call predicts only what is missing or was made with other weights or another image; the files come out
    byte for byte as from one call. Of several ranks, which see one folder, each predicts its share.

    Args:
        test: a STAC catalogue or a folder of .tif chips.
        weights_path: as `kit export` wrote it.
        out_dir: the submission's folder; its name is the archive's.
        device: as torch names it.
        tuning: measures, with the first call, how this machine predicts fastest (`kit.deploy.tuning`); without it the
            file computes as it was shipped.
        engine: `torch`, `openvino` or `openvino-int8`, see `kit.deploy.engines`.

    Raises:
        CatalogError: the test set is missing or empty.
        RasterError: a chip cannot be read; the chips before it are kept.
        WeightsError: the weights are missing or not kit's.
        SubmissionError: the folder holds masks of another test set, or what was written does not pass the check.
    """
    chips = find_chips(test)
    weights = _set_up(load_weights(weights_path, device), chips, tuning, check_engine(engine))
    todo = agreed(_begin(chips, weights, out_dir) if rank() == 0 else [])
    _predict([chip for chip in chips if chip.id in set(todo)][rank() :: ranks()], weights, out_dir)
    wait_for_all()
    return agreed(_finish(chips, weights, out_dir) if rank() == 0 else None)  # type: ignore[return-value]


def _set_up(weights: Weights, chips: Sequence[Chip], tuning: bool, engine: Engine) -> Weights:
    """Returns the weights as they will predict: tuned on chips from the whole test set, or as they are."""
    if tuning:
        images = (read_image(chip.path) for chip in chips[:: max(1, len(chips) // TRIED)])
        return tune(weights, list(islice((image for image in images if has_ground(image)), TILES)), engine)
    if engine == "torch":
        return weights
    if engine == "openvino-int8":
        raise KitError(f"--engine {engine} measures whether int8 keeps the masks", "leave --no-tune out")
    return tuned(weights, [Setting()] * len(weights.card.members), engine)


def check_submission(path: Path, chips: Sequence[Chip]) -> Summary:
    """Returns a summary of a submission in which nothing is wrong.

    Args:
        path: a folder or an archive.
        chips: the test set.

    Raises:
        SubmissionError: lists what is wrong: chips missing, doubled or unknown, folders inside, more than one band,
            not uint8, values other than 0 and 1, another size than the chip's.
    """
    images = {f"{chip.id}.tif": chip.path for chip in chips}
    found = [(name, read) for name, read in entries(path) if not (path.is_dir() and not name.endswith(".tif"))]
    counts = Counter(name for name, _ in found)
    faults = [f"{name} is missing" for name in images if name not in counts]
    faults += [f"{name} stands there {count} times" for name, count in counts.items() if count > 1]
    faults += [f"{name} is not <chip>.tif of the test set" for name in counts if name not in images]
    building = pixels = empty = 0
    for name, read in found:
        if name not in images:
            continue
        try:
            building_px, mask_px = _check_mask(read(), name, image_size(images[name]))
        except RasterError as cause:
            faults.append(cause.message)
            continue
        building, pixels, empty = building + building_px, pixels + mask_px, empty + (building_px == 0)
    if faults:
        more = [f"and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
        raise SubmissionError(
            f"{path} has {len(faults)} faults:\n  " + "\n  ".join(faults[:LISTED] + more), "write it again: kit submit"
        )
    return Summary(path, len(chips), building / pixels, empty)


def _check_mask(data: bytes, name: str, size: tuple[int, int]) -> tuple[int, int]:
    """Returns building pixels and all pixels of a mask file; RasterError when it is not as it should be."""
    mask = decode_mask(data, name)
    if mask.dtype != np.uint8:
        raise RasterError(f"{name} is {mask.dtype}, expected uint8")
    if mask.shape != size:
        raise RasterError(f"{name} is {mask.shape[1]} x {mask.shape[0]} px, its chip {size[1]} x {size[0]}")
    if mask.max() > 1:
        raise RasterError(f"{name} holds the value {mask.max()}, expected 0 and 1")
    return int(mask.sum()), mask.size


def _begin(chips: Sequence[Chip], weights: Weights, out_dir: Path) -> list[str]:
    """Makes the folder ready, and returns the ids of the chips that are to be predicted."""
    _check_folder(out_dir, chips)
    done = _read_progress(out_dir, weights)
    with replacing(out_dir / PROGRESS) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *(asdict(row).values() for row in done.values())])
    for share in out_dir.glob(SHARES):
        share.unlink()
    return [chip.id for chip in chips if not _is_done(chip, done, out_dir)]


def _predict(todo: Sequence[Chip], weights: Weights, out_dir: Path) -> None:
    """Predicts this rank's share; images are read ahead, masks are written behind."""
    share = out_dir / (PROGRESS if rank() == 0 else f".progress.{rank()}.csv")
    with share.open("a", newline="") as file, WriteBehind() as behind, meter("predict chips", len(todo)) as progress:
        for chip, (version, image) in read_ahead(_read, todo):
            probability = predict_image(weights, image)
            behind(partial(_write, out_dir, chip, _identity(weights), version, probability, file))
            progress.advance()


def _read(chip: Chip) -> tuple[str, NDArray[np.uint8]]:
    """Returns a chip's image, and what tells it from another one of that name."""
    return _image_version(chip), read_image(chip.path)


def _write(
    out_dir: Path, chip: Chip, made_by: str, version: str, probability: NDArray[np.float32], progress: TextIO
) -> None:
    """Writes a chip's mask and its row; a mask that stands has its row, wherever this is cut."""
    mask = (probability > 0.5).astype(np.uint8)
    confidence = float(np.maximum(probability, 1 - probability).mean(dtype=np.float64))
    row = Done(chip.id, made_by, version, mask.size, int(mask.sum()), confidence)
    with replacing(path := out_dir / f"{chip.id}.tif") as temporary:
        temporary.write_bytes(encode_mask(mask))
        path.unlink(missing_ok=True)  # of other weights, or of another image
        csv.writer(progress, lineterminator="\n").writerow(asdict(row).values())
        progress.flush()


def _finish(chips: Sequence[Chip], weights: Weights, out_dir: Path) -> Summary:
    """Writes the table and the archive of what all ranks made, and checks it."""
    done = _read_progress(out_dir, weights)
    _write_table([done[chip.id] for chip in chips], out_dir / TABLE)
    archive = out_dir.with_name(f"{out_dir.name}.tgz")
    write_tgz([out_dir / f"{chip.id}.tif" for chip in chips], archive)
    return check_submission(archive, chips)


def _identity(weights: Weights) -> str:
    """Returns what two chips of one submission have in common: the file, and how its cores compute."""
    return f"{weights.sha256} {weights.plan}"


def _image_version(chip: Chip) -> str:
    """Returns what changes when a chip's image is written again."""
    if not chip.path.is_file():
        raise RasterError(f"no image {chip.path} of chip {chip.id}")
    status = chip.path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def _is_done(chip: Chip, done: dict[str, Done], out_dir: Path) -> bool:
    return chip.id in done and done[chip.id].image == _image_version(chip) and (out_dir / f"{chip.id}.tif").is_file()


def _check_folder(out_dir: Path, chips: Sequence[Chip]) -> None:
    """Makes the folder, and clears what a killed run left; refuses a folder with another test set's masks."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for leftover in out_dir.glob(".*.part.*"):
        leftover.unlink()
    strangers = {path.stem for path in out_dir.glob("*.tif")} - {chip.id for chip in chips}
    if strangers:
        raise SubmissionError(
            f"{out_dir} holds {len(strangers)} masks of another test set, first {min(strangers)}.tif",
            "choose another --name, or remove that folder",
        )


def _read_progress(out_dir: Path, weights: Weights) -> dict[str, Done]:
    """Returns the rows that these weights finished, by chip, of all ranks; a row that is half written is none."""
    done: dict[str, Done] = {}
    for path in (out_dir / PROGRESS, *out_dir.glob(SHARES)):
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        whole = (line for line in lines if line.endswith("\n") and line.count(",") == len(COLUMNS) - 1)
        for chip, made_by, image, pixels, building_px, confidence in csv.reader(whole):
            if made_by == _identity(weights):
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
