"""Audits one scene: its labels against the raster of its prediction, block by block."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.windows import Window

from kit.audit.buildings import NEAR_M, OTHER, Outlines, Support, judge_label, judge_prediction, match
from kit.audit.predicted import IMAGERY, PROBABILITY, SPREAD, SPREAD_MOST
from kit.audit.shifts import REACH_M, RING_M, STEP_M, Shift, Surface, contrast_at, find_shift, surface
from kit.data.audits import BlockShift, BuildingFinding, Verdict
from kit.data.footprints import read_footprints
from kit.data.rasters import outline
from kit.deploy.mapping.polygons import outlined
from kit.deploy.mapping.scene import Frame, frame_of
from kit.deploy.mapping.tracing import Tracer
from kit.deploy.mapping.windows import LEVELS

__all__ = ["AuditSource", "SceneFindings", "audit_scene", "edges"]

AROUND_M = 30.0  # read around a block: displacements, and buildings whose centre lies in it
LARGEST_M = 60.0  # side of a building that shifts are measured on
SMALLEST_M2 = 8.0  # of such a building, and of predicted ones
MOVED_M = 0.25  # a shift below this leaves labels where they are
BORDER_M = 4.0  # a label this near to the edge of its block may have been moved with the neighbouring one
CLEARLY = 0.1  # contrast by which the neighbour's shift must fit better
ROWS_PX = 512  # read at a time


@dataclass(frozen=True)
class AuditBlock:
    """A square of a scene's frame, in its pixels."""

    row: int
    column: int
    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class AuditSource:
    """What is compared: a scene's labels and the raster of its prediction."""

    area: str  # of the scene
    scene: str  # its id
    labels: tuple[str, ...]  # footprint files
    where: str  # SQL condition that chooses features
    raster: Path  # see `kit.audit.predicted`
    threshold: float  # building is where the probability is above it
    block_m: float  # side of a block

    @property
    def name(self) -> str:
        """Area and scene, as in the ids of tiles."""
        return f"{self.area}_{self.scene}"


@dataclass(frozen=True)
class SceneFindings:
    """What an audit says of a scene."""

    blocks: list[BlockShift]  # one row each
    buildings: list[BuildingFinding]  # one row each, labels first
    outlines: Outlines  # of the buildings, in `crs`; labels where their source has them
    crs: str  # of the scene, as text


class MetricFrame:
    """The frame of a raster in metres: x along its rows, y up its columns, from its upper left corner.

    Args:
        frame: of the raster.
    """

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.of_crs = Affine.scale(frame.x_m, -frame.y_m) @ ~frame.transform
        a, b, _, d, e, _ = frame.transform[:6]
        right, up = (a / math.hypot(a, d), d / math.hypot(a, d)), (-b / math.hypot(b, e), -e / math.hypot(b, e))
        self.axes = np.array([right, up])  # as (east, north)

    def place(self, outlines: Outlines) -> Outlines:
        """Returns outlines in the scene's CRS in metres of the frame."""
        return _affine(outlines, self.of_crs)

    def to_crs(self, outlines: Outlines) -> Outlines:
        """Returns outlines in metres of the frame in the scene's CRS."""
        return _affine(outlines, ~self.of_crs)

    def east_north(self, x_m: float, y_m: float) -> tuple[float, float]:
        """Returns a displacement in metres of the frame as metres east and north."""
        east, north = np.array([x_m, y_m]) @ self.axes
        return float(east), float(north)

    def pixels(self, outlines: Outlines) -> NDArray[np.float64]:
        """Returns column and row of the outlines' centres, (n, 2)."""
        centres = shapely.get_coordinates(shapely.centroid(outlines)).reshape(-1, 2)
        scaled: NDArray[np.float64] = centres / (self.frame.x_m, -self.frame.y_m)
        return scaled


def _affine(outlines: Outlines, by: Affine) -> Outlines:
    a, b, c, d, e, f = by[:6]
    moved: Outlines = shapely.transform(
        outlines, lambda x, y: (a * x + b * y + c, d * x + e * y + f), interleaved=False
    )
    return moved


def moved_by(outlines: Outlines, shifts: NDArray[np.float64]) -> Outlines:
    """Returns outlines, each moved by its own (x, y), (n, 2)."""
    coordinates, owners = shapely.get_coordinates(outlines, return_index=True)
    moved: Outlines = shapely.set_coordinates(outlines.copy(), coordinates + shifts[owners])
    return moved


def edges(size_px: int, side_px: float) -> list[int]:
    """Returns where blocks along an axis begin and the last one ends; less than half a block joins the one before."""
    count = max(1, round(size_px / side_px))
    return [round(i * side_px) for i in range(count)] + [size_px]


def blocks_of(frame: Frame, block_m: float) -> list[AuditBlock]:
    """Returns the blocks of a frame, row by row."""
    tops, lefts = edges(frame.height, block_m / frame.y_m), edges(frame.width, block_m / frame.x_m)
    return [
        AuditBlock(row, column, tops[row], tops[row + 1], lefts[column], lefts[column + 1])
        for row in range(len(tops) - 1)
        for column in range(len(lefts) - 1)
    ]


class BlockView:
    """The prediction in a block and around it, on square pixels of `step_m`.

    Args:
        source: the open raster.
        frame: of the raster.
        block: of the frame.
    """

    def __init__(self, source: rasterio.DatasetReader, frame: Frame, block: AuditBlock) -> None:
        across, down = math.ceil(AROUND_M / frame.x_m), math.ceil(AROUND_M / frame.y_m)
        left, top = block.left - across, block.top - down
        width, height = block.right - block.left + 2 * across, block.bottom - block.top + 2 * down
        inside = (
            slice(max(0, -top), min(height, frame.height - top)), slice(max(0, -left), min(width, frame.width - left)),
        )  # fmt: skip
        bands = np.zeros((3, height, width), np.uint8)
        window = Window(
            left + inside[1].start, top + inside[0].start,
            inside[1].stop - inside[1].start, inside[0].stop - inside[0].start,
        )  # fmt: skip
        bands[:, *inside] = source.read((PROBABILITY, SPREAD, IMAGERY), window=window)
        self.step_m = STEP_M
        size = round(width * frame.x_m / self.step_m), round(height * frame.y_m / self.step_m)
        way = cv2.INTER_AREA if size[0] < width else cv2.INTER_LINEAR
        planes = [cv2.resize(band.astype(np.float32), size, interpolation=way) for band in bands]
        self.probability, self.spread, self.imagery = (
            plane * scale for plane, scale in zip(planes, (1 / LEVELS, SPREAD_MOST / 255, 1 / 255), strict=True)
        )
        x_step, y_step = width * frame.x_m / size[0], height * frame.y_m / size[1]
        self.transform = Affine(x_step, 0, left * frame.x_m, 0, -y_step, -top * frame.y_m)

    def numbered(self, outlines: Outlines) -> NDArray[np.int32]:
        """Returns the number of the outline over each pixel, from 1; 0 where there is none."""
        if not len(outlines):
            return np.zeros(self.probability.shape, np.int32)
        drawn: NDArray[np.int32] = rasterize(
            zip(outlines, range(1, len(outlines) + 1), strict=True), self.probability.shape,
            transform=self.transform, dtype=np.int32,
        )  # fmt: skip
        return drawn

    def support(self, outlines: Outlines) -> Support:
        """Returns what is predicted within outlines, in metres of the frame; zeros of those that cover no pixel."""
        numbers = self.numbered(outlines).ravel()
        size = len(outlines) + 1
        count = np.maximum(1, np.bincount(numbers, minlength=size))
        sums = (
            np.bincount(numbers, plane.ravel(), size) / count for plane in (self.probability, self.spread, self.imagery)
        )
        confidence, spread, imagery = (values[1:] for values in sums)
        return Support(confidence, spread, imagery)

    def surfaces(self, outlines: Outlines, own: NDArray[np.bool_]) -> Iterator[tuple[int, Surface]]:
        """Yields the place of each outline that a shift can be measured on, and its surface.

        Args:
            outlines: all labels that touch the view, in metres of the frame.
            own: which of them belong to the block, (n,).
        """
        numbers, reach = self.numbered(outlines), math.ceil(REACH_M / self.step_m)
        ring = math.ceil(RING_M / self.step_m) + 1
        padded = np.pad(self.probability, reach)
        bounds = shapely.bounds(outlines)
        to_pixel = ~self.transform
        for place in np.flatnonzero(own):
            left, bottom, right, top = bounds[place]
            if max(right - left, top - bottom) > LARGEST_M or outlines[place].area < SMALLEST_M2:
                continue
            (x0, y0), (x1, y1) = to_pixel @ (left, top), to_pixel @ (right, bottom)
            rows = slice(max(0, int(y0) - ring), min(len(numbers), math.ceil(y1) + ring))
            columns = slice(max(0, int(x0) - ring), min(numbers.shape[1], math.ceil(x1) + ring))
            here = numbers[rows, columns]
            inside = here == place + 1
            if not inside.any() or self.imagery[rows, columns][inside].mean() < 0.95:
                continue
            around = padded[rows.start : rows.stop + 2 * reach, columns.start : columns.stop + 2 * reach]
            yield int(place), surface(inside, (here > 0) & ~inside, around, self.step_m)


def audit_scene(source: AuditSource) -> SceneFindings:
    """Returns what the prediction says of a scene's labels.

    Raises:
        FootprintError: the labels cannot be read.
    """
    with rasterio.open(source.raster) as raster:
        frame, crs = frame_of(raster), raster.crs.to_string()
        ground = MetricFrame(frame)
        here, _ = read_footprints(source.labels, crs, source.where, outline(raster, crs)).on(outline(raster, crs))
        labels = ground.place(here.polygons)
        blocks = blocks_of(frame, source.block_m)
        places = _places(ground.pixels(labels), blocks)
        shifts, of_labels = _shifts(raster, ground, blocks, labels, places)
        moved = moved_by(labels, of_labels)
        predicted = _predicted(raster, frame, source.threshold)
        compared = match(moved, predicted)
        unlabelled = compared.unlabelled
        unlabelled_places = _places(ground.pixels(unlabelled), blocks)
        of_label = _support_of(raster, frame, blocks, moved, places)
        of_unlabelled = _support_of(raster, frame, blocks, unlabelled, unlabelled_places)
    trusted = np.array([shifts[place].trusted for place in places], bool)
    names = [f"{source.name}_b{block.row}_{block.column}" for block in blocks]
    findings = []
    for number, place in enumerate(places):
        x_m, y_m = of_labels[number]
        verdict = judge_label(
            float(compared.jaccard[number]), int(compared.objects[number]), of_label.of(number),
            math.hypot(x_m, y_m) >= MOVED_M, bool(trusted[number]),
        )  # fmt: skip
        where = BuildingFinding(f"{source.name}_l{number}", source.area, source.scene, names[place], "label")
        jaccard, shift = round(float(compared.jaccard[number]), 4), ground.east_north(x_m, y_m)
        findings.append(_finding(where, labels[number], of_label.of(number), verdict, jaccard, shift))
    unknown = labels[~trusted & (compared.jaccard < OTHER)]
    near = np.zeros(len(unlabelled), bool)
    near[shapely.STRtree(unlabelled).query(unknown, predicate="dwithin", distance=NEAR_M)[1]] = True
    for number, place in enumerate(unlabelled_places):
        verdict = judge_prediction(of_unlabelled.of(number), bool(near[number]))
        where = BuildingFinding(f"{source.name}_p{number}", source.area, source.scene, names[place], "prediction")
        findings.append(_finding(where, unlabelled[number], of_unlabelled.of(number), verdict))
    rows = [
        _block_row(source, ground, block, shift, int((places == number).sum()), crs)
        for number, (block, shift) in enumerate(zip(blocks, shifts, strict=True))
    ]
    return SceneFindings(rows, findings, np.concatenate([here.polygons, ground.to_crs(unlabelled)]), crs)


def _finding(
    where: BuildingFinding, outline_m: shapely.Polygon, support: tuple[float, float, float],
    verdict: tuple[Verdict, str], jaccard: float = 0.0, shift: tuple[float, float] = (0.0, 0.0),
) -> BuildingFinding:  # fmt: skip
    """Returns a finding with its numbers; `support` as of `Support.of`, the shift in metres east and north."""
    return replace(
        where, area_m2=round(outline_m.area, 2), jaccard=jaccard, confidence=round(support[0], 4),
        spread=round(support[1], 4), dx_m=round(shift[0], 3), dy_m=round(shift[1], 3),
        verdict=verdict[0], reason=verdict[1],
    )  # fmt: skip


def _places(pixels: NDArray[np.float64], blocks: list[AuditBlock]) -> NDArray[np.int64]:
    """Returns the block that each point, (n, 2) column and row, lies in, or is nearest to, (n,)."""
    lefts = sorted({block.left for block in blocks})
    tops = sorted({block.top for block in blocks})
    columns = np.clip(np.searchsorted(lefts, pixels[:, 0], side="right") - 1, 0, len(lefts) - 1)
    rows = np.clip(np.searchsorted(tops, pixels[:, 1], side="right") - 1, 0, len(tops) - 1)
    return np.asarray(rows * len(lefts) + columns, np.int64)


def _shifts(
    raster: rasterio.DatasetReader,
    ground: MetricFrame,
    blocks: list[AuditBlock],
    labels: Outlines,
    places: NDArray[np.int64],
) -> tuple[list[Shift], NDArray[np.float64]]:
    """Returns the shift of each block, and that of each label, (labels, 2) metres of the frame, 0 where not known.

    A label at the edge of its block moves with the neighbouring block where that fits it clearly better.
    """
    shifts: list[Shift] = []
    tree = shapely.STRtree(labels)
    at_edge: dict[int, tuple[Surface, float]] = {}
    for number, block in enumerate(blocks):
        if not (places == number).any():
            shifts.append(Shift(reason="no building"))
            continue
        view = BlockView(raster, ground.frame, block)
        near = np.sort(tree.query(_box(ground.frame, block, AROUND_M)))
        surfaces = [(near[place], each) for place, each in view.surfaces(labels[near], places[near] == number)]
        weights = np.sqrt(shapely.area(labels[[place for place, _ in surfaces]]))
        stack = np.stack([each for _, each in surfaces]) if surfaces else np.zeros((0, 1, 1), np.float32)
        shift = find_shift(stack, weights, view.step_m)
        shifts.append(shift)
        inner = _box(ground.frame, block, -BORDER_M)
        at_edge |= {
            int(place): (each, view.step_m) for place, each in surfaces if not inner.contains(labels[place].centroid)
        }
    known = [(shifts[place].x_m, shifts[place].y_m) if shifts[place].trusted else (0.0, 0.0) for place in places]
    of_labels = np.array(known, float).reshape(-1, 2)
    boxes = [_box(ground.frame, block, BORDER_M) for block in blocks]
    neighbours = shapely.STRtree(boxes)
    for place, (each, step_m) in at_edge.items():
        own = contrast_at(each, float(of_labels[place, 0]), float(of_labels[place, 1]), step_m)
        for other in neighbours.query(labels[place].centroid, predicate="intersects"):
            shift = shifts[other]
            if shift.trusted and contrast_at(each, shift.x_m, shift.y_m, step_m) > own + CLEARLY:
                own = contrast_at(each, shift.x_m, shift.y_m, step_m)
                of_labels[place] = shift.x_m, shift.y_m
    return shifts, of_labels


def _box(frame: Frame, block: AuditBlock, around_m: float) -> shapely.Polygon:
    """Returns a block and some metres around it, in metres of the frame."""
    return shapely.box(
        block.left * frame.x_m - around_m, -block.bottom * frame.y_m - around_m,
        block.right * frame.x_m + around_m, -block.top * frame.y_m + around_m,
    )  # fmt: skip


def _predicted(raster: rasterio.DatasetReader, frame: Frame, threshold: float) -> Outlines:
    """Returns the outlines of predicted objects, metres of the frame."""
    tracer, parts = Tracer(), [np.array([], dtype=object)]
    for top in range(0, frame.height, ROWS_PX):
        rows = min(ROWS_PX, frame.height - top)
        level = raster.read(PROBABILITY, window=Window(0, top, frame.width, rows))
        pieces = tracer.add(level, level > threshold * LEVELS, top)
        if top + rows == frame.height:
            pieces += tracer.close()
        parts.append(outlined(pieces, frame, frame.gsd_m).polygons)
    pixels = np.concatenate(parts)
    placed = _affine(pixels, Affine.scale(frame.x_m, -frame.y_m))
    kept: Outlines = placed[shapely.area(placed) >= SMALLEST_M2]
    return kept


def _support_of(
    raster: rasterio.DatasetReader,
    frame: Frame,
    blocks: list[AuditBlock],
    outlines: Outlines,
    places: NDArray[np.int64],
) -> Support:
    """Returns what is predicted within outlines, block by block."""
    values = np.zeros((3, len(outlines)))
    for number in np.unique(places):
        own = np.flatnonzero(places == number)
        support = BlockView(raster, frame, blocks[number]).support(outlines[own])
        values[:, own] = support.confidence, support.spread, support.imagery
    return Support(*values)


def _block_row(
    source: AuditSource, ground: MetricFrame, block: AuditBlock, shift: Shift, buildings: int, crs: str
) -> BlockShift:
    corners = [ground.frame.transform @ at for at in (
        (block.left, block.top), (block.right, block.top), (block.right, block.bottom), (block.left, block.bottom)
    )]  # fmt: skip
    x, y = zip(*corners, strict=True)
    east, north = ground.east_north(shift.x_m, shift.y_m)
    sigma_m = None if shift.sigma_m is None else round(shift.sigma_m, 3)
    reason = shift.reason if buildings else "no building"
    return BlockShift(
        f"{source.name}_b{block.row}_{block.column}", source.area, source.scene, min(x), min(y), max(x), max(y), crs,
        round(east, 3), round(north, 3), sigma_m, buildings, shift.trusted, reason,
    )  # fmt: skip
