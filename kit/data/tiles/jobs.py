"""Plans the jobs that cut a data set, runs them in processes, and records their results in the ledger."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import rasterio

from kit.console import Meter
from kit.data.footprints import read_footprints
from kit.data.grids import grid_of, ground_m, on_earth, world_width
from kit.data.rasters import find_collar, gdal_options, off_earth, open_scene, outline
from kit.data.sources.inputs import Pair, Scene
from kit.data.sources.remote import fingerprint, is_remote, local_path
from kit.data.tiles.cutting import BLOCK, CACHE_BYTES, Block, Cut, Failed, cut_block, margin_of
from kit.data.tiles.ledger import Ledger, Record, key_of
from kit.data.tiles.options import PrepareOptions, Style
from kit.data.tiles.pairs import BATCH, Batch, side_of, take_over
from kit.data.tiles.ready_masks import Meaning, find_meaning
from kit.data.tiles.tile import SCENE
from kit.errors import DataError, FootprintError, KitError, RasterError, nearest
from kit.system.workers import spread

VERSION = 2  # of the tiles; increased when all must be cut again
MOST_TILES = 1_000_000  # of a scene; 100,000 x 100,000 px in tiles of 1024 px are 10,000

Job = Block | Batch
Part = Scene | tuple[Pair, ...]  # of a data set: a scene, or all pairs of one


def _names(part: Part) -> tuple[str, str]:
    """Returns area and scene."""
    first = part if isinstance(part, Scene) else part[0]
    return first.area, first.scene


def _with_sources(record: Record, part: Part) -> Record:
    """Returns a scene's record that says where its image and labels lie."""
    if not isinstance(part, Scene):
        return record
    image, *labels = (
        href if is_remote(href) else str(local_path(href).absolute()) for href in (part.image, *part.labels)
    )
    return replace(record, image=image, labels=labels, where=part.where)


class Scenes:
    """All scenes of a data set. Each is recorded in the ledger when it is done.

    Args:
        folder: of the data set.
        parts: scenes, or pairs of one scene.
        options: of `kit prepare`.
        share: cut only the scenes of one part: which of how many, the first is 1; other processes may cut the others.
    """

    def __init__(
        self, folder: Path, parts: list[Part], options: PrepareOptions, share: tuple[int, int] = (1, 1)
    ) -> None:
        self.folder, self.options, self.style = folder, options, options.style
        only = set(options.only)
        self.ledger = Ledger(folder)
        self.parts = {"/".join(_names(part)): part for part in parts}
        self.own, self.whole = list(self.parts)[share[0] - 1 :: share[1]], share[1] == 1
        for unknown in sorted(only - set(self.parts)):
            raise DataError(f"no scene {unknown!r} to cut again", nearest(unknown, self.parts))
        self._check_names()
        self._check_pairs()
        self.only = only
        self.changed, self.kept = False, 0
        self.open: dict[str, Record] = {}
        self.left: dict[str, int] = {}

    def _check_names(self) -> None:
        """Checks that no two scenes give their tiles the same ids."""
        first: dict[str, str] = {}
        for name in self.parts:
            other = first.setdefault(name.replace("/", "_"), name)
            if other != name:
                raise DataError(f"the tiles of {other} and {name} would have the same names", "rename an area or scene")

    def _check_pairs(self) -> None:
        """Checks that the options suit ready-made masks, where there are any."""
        if not self._pairs:
            return
        if self.style.images == SCENE:
            raise DataError("ready-made images have no scene to read windows from", "use --images lossless or jpeg")
        if self.style.layers:
            raise DataError("ready-made masks have no footprints to draw layers of", "leave --layers out")

    def cut_all(self, progress: Meter, workers: int) -> None:
        """Cuts the scenes that are not done yet, and removes those that the source no longer has."""
        if not self.ledger.known():
            self._change()
        for area, scene in self.ledger.known() if self.whole else ():
            if f"{area}/{scene}" not in self.parts:
                self._change()
                self.ledger.remove(area, scene)
        for (name, job), cut in spread(_perform, self._jobs(progress), workers, "cutting tiles", lost=_lost):
            self.open[name].cut.add(cut)
            progress.advance(len(job.pairs) if isinstance(job, Batch) else len(cut))
            self.left[name] -= 1
            if not self.left[name]:
                self._end(self.open.pop(name))

    def records(self) -> list[Record]:
        """Returns the records of all scenes that are done, in order."""
        records = (self.ledger.read(*names) for names in self.ledger.known())
        return [record for record in records if record is not None and record.done]

    def _change(self) -> None:
        """Removes the index as long as it does not match the tiles."""
        self.changed = True
        (self.folder / "index.csv").unlink(missing_ok=True)

    def _end(self, record: Record) -> None:
        record.cut.tiles.sort(key=lambda tile: natural(tile.tile))
        record.cut.skipped.sort(key=lambda tile: natural(tile.tile))
        record.cut.failed.sort(key=lambda tile: natural(tile.tile))
        record.done = True
        self.ledger.write(record)

    def _fail(self, record: Record, error: KitError) -> None:
        """Records that a scene cannot be cut."""
        self._change()
        record.cut.failed = [Failed(record.name, error.message, error.hint)]
        self._end(record)

    def _jobs(self, progress: Meter) -> Iterator[tuple[str, Job]]:
        """Yields the jobs of all scenes that are not done, scene by scene."""
        for name in self.own:
            if self.only and name not in self.only:
                continue
            part = self.parts[name]
            area, scene = _names(part)
            try:
                key = self._key(part)
            except KitError as error:  # out of reach, perhaps only now: its tiles stay
                self._fail(self.ledger.read(area, scene) or Record(area, scene, ""), error)
                continue
            if name not in self.only and self.ledger.done(area, scene, key):
                self.kept += 1
                known = self.ledger.read(area, scene)
                if known and known != (placed := _with_sources(known, part)):  # of an older kit, or the files moved
                    self.ledger.write(placed)
                continue
            self._change()
            if name in self.only:
                self.ledger.remove(area, scene)
            self.ledger.begin(area, scene, key)
            record = _with_sources(Record(area, scene, key), part)
            if not isinstance(part, Scene):
                _ = self._of_all_pairs  # masks that contradict each other are no fault of one scene
            try:
                planned = self._plan(part)
            except KitError as error:
                self._fail(record, error)
                continue
            record.counts, record.notices = planned.counts, planned.notices
            progress.total += planned.tiles
            self.open[name], self.left[name] = record, len(planned.jobs)
            for job in planned.jobs:
                yield name, job

    def _plan(self, part: Part) -> "Planned":
        if isinstance(part, Scene):
            return plan(part, self.style, self.folder)
        return Planned(self._batches(part), len(part))

    def _key(self, part: Part) -> str:
        style = asdict(self.style)
        if isinstance(part, Scene):
            read_from = [part.image] if self.style.images == SCENE else []
            files = [fingerprint(href) for href in (part.image, *part.labels)]
            return key_of(VERSION, style, part.tier, part.where, read_from, files)
        options = self.options
        return key_of(VERSION, style, options.gsd_m or 0.0, options.building_values, part[0].tier, self._files_of_pairs)

    @cached_property
    def _pairs(self) -> list[Pair]:
        return [pair for part in self.parts.values() if not isinstance(part, Scene) for pair in part]

    @cached_property
    def _files_of_pairs(self) -> str:
        """A checksum over all pairs: the largest image and the masks' values affect every tile."""
        return key_of(
            [
                (pair.area, pair.scene, pair.name, fingerprint(pair.image), fingerprint(pair.mask))
                + ((pair.drawing,) if pair.drawing else ())
                for pair in self._pairs
            ]
        )

    @cached_property
    def _of_all_pairs(self) -> tuple[int, Meaning]:
        """The side of the tiles, px, and what the values of the masks mean."""
        masks = [pair.mask for pair in self._pairs if pair.drawing is None]
        return side_of(self._pairs, self.style.side_px), find_meaning(masks, self.options.building_values)

    def _batches(self, pairs: tuple[Pair, ...]) -> list[Job]:
        side_px, meaning = self._of_all_pairs
        return [
            Batch(pairs[start : start + BATCH], side_px, meaning, self.options.gsd_m or 0.0, self.style, self.folder)
            for start in range(0, len(pairs), BATCH)
        ]


@dataclass(frozen=True)
class Planned:
    """How a part of a data set is to be cut."""

    jobs: list[Job]  # what processes do, each a few tiles
    tiles: int  # how many tiles they make
    counts: dict[str, int] = field(default_factory=dict)  # of the footprints, see `Record`
    notices: list[str] = field(default_factory=list)  # what the user should know of the labels


def plan(scene: Scene, style: Style, folder: Path) -> Planned:
    """Returns the blocks of tiles that cover a scene. One without footprints is background.

    Raises:
        RasterError: the scene cannot be opened, has no place on earth, its grid ends at 180 degrees within it, or it
            would be cut into more than `MOST_TILES`.
        FootprintError: the labels cannot be read, or lie elsewhere.
    """
    options = gdal_options(CACHE_BYTES, is_remote(scene.image))
    with rasterio.Env(**options), open_scene(scene.image) as source:
        if not on_earth(source.crs):
            raise off_earth(scene.image, source.crs)
        grid = grid_of(style.grid, style.side_px, source, style.overlap_px)
        frame = outline(source, grid.crs)
        collar = find_collar(source)
    left, _, right, _ = frame.bounds
    if 0 < world_width(grid.crs) / 2 < right - left:
        raise RasterError(
            f"{scene.image} lies across 180 degrees, where the tiles of --grid {style.grid} end",
            "use --grid 0.1m, or another resolution",
        )
    rows, columns = grid.span(frame.bounds)
    if (tiles := len(rows) * len(columns)) > MOST_TILES:
        raise RasterError(
            f"{scene.image} covers {tiles:,} tiles of --grid {style.grid}, expected at most {MOST_TILES:,}",
            "is its georeference right? A coarse scene needs a coarse grid: --grid native, or a smaller zoom",
        )
    footprints = read_footprints(scene.labels, grid.crs, scene.where, frame)
    here, crossing = footprints.on(frame)
    count = len(footprints.polygons) + footprints.far
    if not len(here.polygons) and not footprints.surround:
        raise FootprintError(
            f"none of the {count} footprints of {scene.area}/{scene.scene} lies on the scene",
            f"check the coordinates in {scene.labels[0]}: GeoJSON is longitude, latitude",
        )
    margin = margin_of(style, ground_m(grid, rows[len(rows) // 2], columns[len(columns) // 2])) + 1
    blocks: list[Job] = []
    for top in range(0, len(rows), BLOCK):
        for left in range(0, len(columns), BLOCK):
            down, across = rows[top : top + BLOCK], columns[left : left + BLOCK]
            first, last = grid.bounds(down[0], across[0], margin), grid.bounds(down[-1], across[-1], margin)
            near = here.touching((first[0], last[1], last[2], first[3]))
            blocks.append(Block(scene, grid, down, across, near, collar, style, folder))
    counts = {
        "used": len(here.polygons), "repaired": footprints.repaired, "dropped": footprints.dropped,
        "beyond": count - len(here.polygons), "crossing": crossing,
    }  # fmt: skip
    return Planned(blocks, tiles, counts, list(footprints.notices))


def _perform(task: tuple[str, Job]) -> Cut:
    _, job = task
    return cut_block(job) if isinstance(job, Block) else take_over(job)


def _lost(task: tuple[str, Job]) -> Cut:
    """Returns what came of a job whose process was killed twice."""
    reason = "the process that cut it was killed twice, perhaps because memory ran out"
    return Cut(failed=[Failed(task[0], reason, "rerun with fewer --workers")])


def natural(text: str) -> list[tuple[str, int]]:
    """Returns a key that sorts `r9` before `r10`."""
    return [(word, int(number or -1)) for word, number in re.findall(r"(\D*)(\d*)", text)]
