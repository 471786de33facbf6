"""A test set to masks, a table and an archive; finished chips are kept whatever happens, and all is checked."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import numpy as np

from kit.console import track
from kit.deploy.archive import write_tgz
from kit.deploy.chips import Chip, find_chips
from kit.deploy.cleaning import AS_SHIPPED, Cleaning, clean_image
from kit.deploy.doctor import Summary, check_submission
from kit.deploy.engines import Engine, Setting, check_engine
from kit.deploy.predict import predict_image
from kit.deploy.rasters import decode_mask, encode_mask, read_image
from kit.deploy.rle import TABLE as RLE
from kit.deploy.rle import write_rle
from kit.deploy.tuning import TILES, tune, tuned
from kit.deploy.weights import Weights, load_weights
from kit.errors import RasterError, SubmissionError
from kit.paths import replacing

__all__ = ["Chip", "Summary", "check_submission", "find_chips", "submit"]

PROGRESS = ".progress.csv"
TABLE = "submission.csv"


@dataclass(frozen=True)
class Done:
    """One finished chip, a row of the progress file.

    Args:
        chip: its id.
        weights: sha256 of the weights that predicted it, and how, see `_identity`; the views are part of the file.
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


def submit(
    test: Path,
    weights_path: Path,
    out_dir: Path,
    device: str = "cpu",
    tuning: bool = True,
    engine: str = "torch",
    rle: bool = False,
    cleaning: Cleaning = AS_SHIPPED,
) -> Summary:
    """Predicts every chip and writes `<id>.tif`, `submission.csv` and, beside the folder, `NAME.tgz`.

    A second call predicts only what is missing or was made with other weights or another image; the files come out
    byte for byte as from one call.

    Args:
        test: a STAC catalogue or a folder of .tif chips.
        weights_path: as `kit export` wrote it.
        out_dir: the submission's folder; its name is the archive's.
        device: as torch names it.
        tuning: measures, with the first call, how this machine predicts fastest (`kit.deploy.tuning`); without it the
            file computes as it was shipped.
        engine: `torch` or `openvino`.
        rle: writes `rle.csv` into the folder, too, see `kit.deploy.rle`.
        cleaning: of the masks; by default they are those of the weights' own `mask`.

    Raises:
        CatalogError: the test set is missing or empty.
        RasterError: a chip cannot be read; the chips before it are kept.
        WeightsError: the weights are missing or not kit's.
        SubmissionError: the folder holds masks of another test set, or what was written does not pass the check.
    """
    chips = find_chips(test)
    weights = _set_up(load_weights(weights_path, device), chips, tuning, check_engine(engine))
    _check_folder(out_dir, chips)
    done = _read_progress(out_dir, _identity(weights, cleaning))
    todo = [chip for chip in chips if not _is_done(chip, done, out_dir)]
    if todo:
        (out_dir / RLE).unlink(missing_ok=True)  # of other masks
        with (out_dir / PROGRESS).open("a", newline="") as file:
            progress = csv.writer(file, lineterminator="\n")
            for chip in track(todo, "predict chips"):
                done[chip.id], mask = _predict_chip(weights, chip, cleaning)
                with replacing(mask_path := out_dir / f"{chip.id}.tif") as temporary:
                    temporary.write_bytes(mask)
                    mask_path.unlink(missing_ok=True)  # what stood there is another's: a mask that stands has its row
                    progress.writerow(asdict(done[chip.id]).values())
                    file.flush()
    _write_table([done[chip.id] for chip in chips], out_dir / TABLE)
    archive = out_dir.with_name(f"{out_dir.name}.tgz")
    write_tgz([out_dir / f"{chip.id}.tif" for chip in chips], archive)
    if rle:
        masks = ((chip.id, decode_mask((out_dir / f"{chip.id}.tif").read_bytes(), chip.id)) for chip in chips)
        write_rle(masks, out_dir / RLE)
        check_submission(out_dir / RLE, chips)
    return check_submission(archive, chips)


def _set_up(weights: Weights, chips: Sequence[Chip], tuning: bool, engine: Engine) -> Weights:
    """Returns the weights as they will predict: tuned on chips from the whole test set, or as they are."""
    if tuning:
        some = chips[:: max(1, len(chips) // TILES)][:TILES]
        return tune(weights, [read_image(chip.path) for chip in some], engine)
    if engine == "torch":
        return weights
    return tuned(weights, [Setting()] * len(weights.card.members), engine)


def _predict_chip(weights: Weights, chip: Chip, cleaning: Cleaning) -> tuple[Done, bytes]:
    """Returns one chip's row and its mask as a file."""
    version, made_by = _image_version(chip), _identity(weights, cleaning)
    probability = predict_image(weights, image := read_image(chip.path))
    mask = clean_image(probability, image, cleaning, weights.card.gsd_m)
    confidence = float(np.maximum(probability, 1 - probability).mean(dtype=np.float64))
    return Done(chip.id, made_by, version, mask.size, int(mask.sum()), confidence), encode_mask(mask)


def _identity(weights: Weights, cleaning: Cleaning) -> str:
    """Returns what two chips of one submission have in common: the file, how its cores compute, how masks are cut."""
    cut = () if cleaning == AS_SHIPPED else ("cut", *astuple(cleaning))
    return " ".join(map(str, (weights.sha256, weights.plan, *cut)))


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


def _read_progress(out_dir: Path, identity: str) -> dict[str, Done]:
    """Returns the rows of one `_identity`, by chip; rewrites the file without others or a half-written row."""
    path = out_dir / PROGRESS
    names = [field.name for field in fields(Done)]
    lines = path.read_text().splitlines(keepends=True)[1:] if path.is_file() else []
    done: dict[str, Done] = {}
    for chip, made_by, image, pixels, building_px, confidence in csv.reader(
        line for line in lines if line.endswith("\n") and line.count(",") == len(names) - 1
    ):
        if made_by == identity:
            done[chip] = Done(chip, made_by, image, int(pixels), int(building_px), float(confidence))
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([names, *(asdict(row).values() for row in done.values())])
    return done


def _write_table(rows: Sequence[Done], path: Path) -> None:
    """Writes submission.csv."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["chip", "building_px", "building_fraction", "mean_confidence"])
        for row in rows:
            fraction = f"{row.building_px / row.pixels:.6f}"
            table.writerow([row.chip, row.building_px, fraction, f"{row.mean_confidence:.6f}"])
