"""`kit audit`: compares the labels of a data set with what trained weights predict, and writes `data/NAME/audit/`."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
import shapely
from numpy.typing import NDArray

from kit.audit.audit_tables import Counted, SceneRecord, in_other_crs, worst_first, write_tables
from kit.audit.calibration import RightTiles, calibrate, spread_rows
from kit.audit.predicted import key_of_raster, predict_raster
from kit.audit.scene_audit import AuditSource, SceneFindings, audit_scene
from kit.audit.tile_scores import Agreement, agree, agree_repaired, image_of, probability_on
from kit.audit.votes import Votes
from kit.audit.worst import MOST, draw_worst
from kit.console import Meter, meter
from kit.data.audits import SETTINGS, VERSION, AuditSettings, data_checksum, moved_outlines, write_buildings
from kit.data.index import read_index
from kit.data.rasters import gdal_options
from kit.data.sources.remote import fingerprint, is_remote
from kit.data.tiles.ledger import Ledger, Record, key_of
from kit.deploy.engine.backends import EngineOptions
from kit.deploy.engine.tuning import TILES as TUNED_ON
from kit.deploy.engine.tuning import set_up
from kit.deploy.mapping.map import CACHE_BYTES, MapOptions, windows_of
from kit.deploy.mapping.map_files import PredictionKey
from kit.deploy.mapping.scene import SceneReader, check_source
from kit.deploy.weights.card import CLASSES, Card
from kit.deploy.weights.load import Weights, load_weights
from kit.errors import DataError, KitError, WeightsError
from kit.outputs import check_unclaimed
from kit.paths import Paths
from kit.system.cpu import cpu_count
from kit.system.files import locked, read_json, write_json
from kit.system.workers import spread

__all__ = ["AuditOptions", "AuditSummary", "audit"]

MOST_RATIO = 4.0  # between the resolution of the tiles and that of the weights
BLOCK_M = (20.0, 1000.0)
SCENES = "scenes"  # folder of rasters, records and buildings


@dataclass(frozen=True)
class AuditOptions:
    """Options of an audit."""

    block_m: float = 100.0  # side of the blocks that labels are shifted by
    calibrate_on: str = ""  # data set whose labels are right; empty: the validation tiles of the weights
    workers: int = 0  # processes that compare; 0: one per core
    allow_outside: bool = False  # lets scenes that are VRTs read files outside their folder, and addresses
    engine: EngineOptions = field(default_factory=EngineOptions)

    def check(self) -> None:
        """Checks the values before anything is read.

        Raises:
            KitError: blocks are too small or too large.
        """
        if not BLOCK_M[0] <= self.block_m <= BLOCK_M[1]:
            raise KitError(f"blocks of {self.block_m:g} m", f"expected {BLOCK_M[0]:g} to {BLOCK_M[1]:g} m: --block-m")


@dataclass(frozen=True)
class AuditSummary:
    """A finished audit."""

    folder: Path
    counted: Counted
    notices: list[str]
    sheets: int  # contact sheets in `worst/`

    def rows(self) -> list[tuple[str, str, int]]:
        """Returns table rows: of blocks, buildings or tiles, how many got which verdict."""
        kinds = {"blocks": self.counted.blocks, "buildings": self.counted.buildings, "tiles": self.counted.tiles}
        return [(kind, verdict, number) for kind, counts in kinds.items() for verdict, number in counts.most_common()]


def audit(name: str, weights_path: Path, paths: Paths, options: AuditOptions = AuditOptions()) -> AuditSummary:
    """Compares the labels of a data set with what weights predict; see `kit.data.audits` for the files that it writes.

    A rerun resumes; a finished audit of the same labels, weights and options is not computed again. Nothing else of
    the data set is changed.

    Args:
        name: of the data set; empty for the only one.
        weights_path: a file that `kit export` wrote.
        paths: of the working root.
        options: see `AuditOptions`.

    Raises:
        DataError: the data set is missing, does not say where its labels lie, or has another resolution than the
            weights.
        WeightsError: the weights are missing, not kit's, or know other classes.
        KitError: an option is impossible, or the disk or the device's memory is full.
    """
    options.check()
    name, index = read_index(paths, name)
    weights = load_weights(weights_path, options.engine.device)
    check_fit(weights.card, weights_path, name, index)
    folder = paths.data(name) / "audit"
    with locked(folder):
        if not (folder / SCENES).is_dir():
            check_unclaimed(folder, "kit audit", "data set, or move it away")
        sources = Ledger(paths.data(name))
        weights = set_up(weights, lambda: [image_of(row) for row in spread_rows(index, TUNED_ON)], options.engine)
        work = _Audit(folder, weights, sources, index, options)
        calibration = calibrate(weights, work.vote, work.threshold, paths, options.calibrate_on, name)
        work.compare_all()
        counted, tiles = write_tables(folder, work.finished(), calibration.jaccards)
        chosen = list(worst_first(tiles, MOST))
        rows = {row.tile: row for row in index.itertuples()}
        sheets = draw_worst(
            folder / "worst", [(tile, rows[tile.tile]) for tile in chosen], work.probability, work.threshold
        )
        settings = AuditSettings(
            name, data_checksum(paths.data(name) / "index.csv"), weights_path.stem, weights.sha256,
            weights.card.gsd_m, options.block_m, calibration.name,
        )  # fmt: skip
        write_json(folder / SETTINGS, asdict(settings))
    return AuditSummary(folder, counted, work.notices(calibration), len(sheets))


def check_fit(card: Card, weights_path: Path, name: str, index: pd.DataFrame) -> None:
    """Checks that weights can judge the labels of a data set.

    Raises:
        WeightsError: they know other classes.
        DataError: their resolution is another one.
    """
    if tuple(card.classes) != CLASSES:
        raise WeightsError(
            f"{weights_path} knows the classes {', '.join(card.classes)}, expected {' and '.join(CLASSES)}",
            "take weights that were trained on buildings",
        )
    known = index["gsd_m"][index["gsd_m"] > 0]
    gsd_m = float(known.median()) if len(known) else card.gsd_m
    ratio = max(gsd_m / card.gsd_m, card.gsd_m / gsd_m)
    if ratio > MOST_RATIO:
        raise DataError(
            f"the tiles of {name} have {gsd_m:.3g} m per pixel, the weights were trained at {card.gsd_m:.3g} m: "
            f"{ratio:.1f} times as much or as little, at most {MOST_RATIO:g} times is expected",
            "take weights of a similar resolution, or prepare the data set at another one: --grid",
        )


class _Audit:
    """The scenes of a data set, compared one after the other; each is recorded when it is done."""

    def __init__(
        self, folder: Path, weights: Weights, sources: Ledger, index: pd.DataFrame, options: AuditOptions
    ) -> None:
        self.folder, self.weights, self.options = folder, weights, options
        self.vote = Votes(weights)
        self.threshold = weights.card.postprocess.threshold if weights.card.postprocess else 0.5
        self.index = {f"{area}/{scene}": rows for (area, scene), rows in index.groupby(["area", "scene"], sort=True)}
        self.records = {name: sources.read(*name.split("/", 1)) for name in self.index}
        lost = [name for name, record in self.records.items() if record and not record.image and record.counts]
        if lost:
            raise DataError(
                f"the data set does not say where the labels of {lost[0]} lie: an older kit prepared it",
                "give the same kit prepare again: it records them, and cuts nothing twice",
            )

    def compare_all(self) -> None:
        """Predicts and compares the scenes that are not done; while one is compared, the next is predicted."""
        (self.folder / SETTINGS).unlink(missing_ok=True)  # written again when all is done
        for stray in sorted((self.folder / SCENES).glob("*/*.*")):
            if f"{stray.parent.name}/{stray.stem.removeprefix('.')}" not in self.index and stray.is_file():
                stray.unlink()
        scenes = [name for name, record in self.records.items() if record and record.image]
        for name in (name for name in self.index if name not in scenes):
            self._compare_masks(name)
        processes = min(self.options.workers or cpu_count(), max(1, len(scenes)))
        with meter("compare scenes", len(scenes)) as running:
            for _ in spread(compare_scene, self._jobs(scenes, running), processes, "comparing labels"):
                pass

    def finished(self) -> list[Path]:
        """Returns the records of all scenes, in order."""
        return [self._file(name, ".json") for name in self.index]

    def notices(self, calibration: RightTiles) -> list[str]:
        """Returns what the user should know."""
        masks = [name for name, record in self.records.items() if not record or not record.image]
        bare = [
            f"{len(masks)} of {len(self.index)} scenes are ready-made masks without footprints: judged by tile alone, "
            "without blocks, buildings and GeoJSON"
        ] * bool(masks)
        return [*bare, calibration.notice] if calibration.notice else bare

    def probability(self, row: Any) -> NDArray[np.float32]:
        """Returns the probability on a tile, from its scene's raster or, of ready-made masks, predicted."""
        raster = self._file(f"{row.area}/{row.scene}", ".tif")
        if raster.is_file():
            with rasterio.open(raster) as source:
                return probability_on(source, row)
        return self.vote(image_of(row))[0]

    def _file(self, name: str, suffix: str) -> Path:
        area, scene = name.split("/", 1)
        return self.folder / SCENES / area / f"{scene}{suffix}"

    def _done(self, name: str, key: str) -> bool:
        try:
            return read_json(self._file(name, ".json"), SceneRecord).key == key
        except KitError:
            return False

    def _key(self, name: str, *parts: object) -> str:
        rows = self.index[name].drop(columns="fold").to_csv(index=False)
        return key_of(VERSION, self.weights.sha256, self.threshold, rows, *parts)

    def _compare_masks(self, name: str) -> None:
        """Compares ready-made masks tile by tile."""
        masks = [fingerprint(mask) for mask in self.index[name]["mask"]]
        key = self._key(name, masks)
        if self._done(name, key):
            return
        tiles = []
        with meter(f"predict {name}", len(self.index[name])) as running:
            for row in self.index[name].itertuples():
                tiles.append(agree(row, self.vote(image_of(row))[0], self.threshold))
                running.advance()
        write_json(self._file(name, ".json"), asdict(SceneRecord(key, tiles)))

    def _jobs(self, scenes: list[str], running: Meter) -> Iterator["SceneJob"]:
        """Yields the scenes that are not done, when they are predicted, and counts them in the meter."""
        for name in scenes:
            record = self.records[name]
            assert record is not None
            check_source(record.image, self.options.allow_outside)
            version = fingerprint(record.image)
            labels = [fingerprint(file) for file in record.labels]
            key = self._key(name, version, self.weights.plan, labels, record.where, self.options.block_m)
            if self._done(name, key):
                running.skip(1)
                continue
            raster = self._file(name, ".tif")
            self._predict(record, version, raster)
            source = AuditSource(
                record.area, record.scene, tuple(record.labels), record.where, raster, self.threshold,
                self.options.block_m,
            )  # fmt: skip
            running.advance()  # its comparison runs while the next scene is predicted
            yield SceneJob(source, key, self.index[name], self._file(name, ".json"))

    def _predict(self, record: Record, version: str, raster: Path) -> None:
        options = gdal_options(CACHE_BYTES, is_remote(record.image))
        with rasterio.Env(**options), SceneReader(record.image) as reader:
            if reader.scene.gsd_m > MOST_RATIO * self.weights.card.gsd_m:
                raise DataError(
                    f"{record.image} has {reader.scene.gsd_m:.3g} m per pixel, the weights were trained at "
                    f"{self.weights.card.gsd_m:.3g} m: at most {MOST_RATIO:g} times as much is expected",
                    "take weights of a similar resolution",
                )
            reader.set_resolution(self.weights.card.gsd_m)
            windows = windows_of(reader.work, MapOptions(), self.weights.card.pad_multiple)
            size = reader.work.width, reader.work.height
            key = PredictionKey(record.image, version, self.weights.sha256, self.weights.plan, windows, size)
            if key_of_raster(raster) != key_of(asdict(key)):
                predict_raster(reader, self.vote, key, raster)


@dataclass(frozen=True)
class SceneJob:
    """A predicted scene that is to be compared with its labels."""

    source: AuditSource
    key: str
    rows: pd.DataFrame  # its tiles
    file: Path  # of its record


def compare_scene(job: SceneJob) -> None:
    """Compares a scene with its labels, and records the result.

    Raises:
        FootprintError: the labels cannot be read.
        RasterError: a tile cannot be read.
        OutputError: the disk is full.
    """
    findings = audit_scene(job.source)
    tiles = list(_agreements(job, findings))
    write_buildings(job.file.with_suffix(".gpkg"), findings.buildings, findings.outlines, findings.crs)
    write_json(job.file, asdict(SceneRecord(job.key, tiles, findings.blocks)))


def _agreements(job: SceneJob, findings: SceneFindings) -> Iterator[Agreement]:
    verdicts = np.array([row.verdict for row in findings.buildings], object)
    moved = moved_outlines(findings.buildings, findings.outlines, findings.crs)
    crs = ""
    with rasterio.open(job.source.raster) as raster:
        for row in job.rows.itertuples():
            probability = probability_on(raster, row)
            known = agree(row, probability, job.source.threshold)
            if row.crs != crs:
                crs, placed = row.crs, in_other_crs(moved, findings.crs, row.crs)
                tree = shapely.STRtree(placed)
            here = tree.query(shapely.box(row.left, row.bottom, row.right, row.top))
            built = here[np.isin(verdicts[here], ("keep", "shift", "reshape", "add"))]
            ignored = here[verdicts[here] == "ignore"]
            yield agree_repaired(row, known, probability, job.source.threshold, placed[built], placed[ignored])
