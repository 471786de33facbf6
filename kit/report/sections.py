"""The sections of the report."""

import base64
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations, pairwise
from pathlib import Path

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray

from kit import __version__
from kit.console import say
from kit.data.dataset import read_tile
from kit.data.masks import IGNORE
from kit.data.rasters import without_notice
from kit.errors import KitError
from kit.measures.object_counts import pool_objects
from kit.paths import Paths
from kit.pipeline.best_ensemble import read_pixels
from kit.pipeline.runs import run_folder
from kit.pipeline.vote_search import VoteSearch
from kit.report.evidence import KINDS, Evidence
from kit.report.figures import bars, curves, svg
from kit.report.intervals import estimate, ratio
from kit.report.page import grid, paragraph, picture, plots
from kit.report.tile_counts import EDGES_PX, SIZES_M2
from kit.report.view_gains import energy_line, some_tiles, view_gains
from kit.training.oof import best_threshold
from kit.training.overlays import overlay
from kit.training.run_files import read_result, read_settings

Section = tuple[str, list[str]]

BINS = 10  # of the reliability curve
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)  # between classes of the share of building in a tile
WORST = 6  # tiles in pictures
MOSTLY = 0.5  # share of imagery in a tile that is shown, where there are such tiles
PICTURE_PX = 1280  # width of a tile's four panels
THRESHOLDS = np.arange(256) / 255


def scores_section(evidence: Sequence[Evidence]) -> Section:
    """Returns the scores with intervals, by what training saw of a place, by area, by scene."""
    rows: list[list[object]] = []
    for each in evidence:
        tiles = each.tiles.reset_index(drop=True)
        scenes = tiles["area"] + "/" + tiles["scene"]
        groups = [("pooled", np.ones(len(tiles), bool))]
        for column in (tiles["kind"], tiles["area"], scenes):
            order = KINDS if column is tiles["kind"] else sorted(set(column))
            groups += [(name, (column == name).to_numpy()) for name in order if (column == name).any()]
        rows += [[each.name, *_score_cells(each, name, chosen)] for name, chosen in groups]
    columns = ["run", "on", "tiles", "blocks", "Jaccard", "F1 of buildings", "PQ", "boundary IoU", "count error"]
    body = [
        paragraph(
            "Each validation tile is predicted by the network that was not trained on it, with one view and a "
            "threshold of 0.5. On a new area: no tile of it trained. New scene: other scenes of its area trained. Same "
            "scene: other tiles of it trained."
        ),
        grid([*columns, "merges", "splits"], rows),
        paragraph(
            f"In brackets: 95 % intervals by resampling blocks of ground ({_block_sides(evidence)}); none for a single "
            "block, rough for few. They are about other places like these, not about other seeds. docs/scores.md has "
            "the measures of buildings.",
            soft=True,
        ),
        *(paragraph(notice) for each in evidence for notice in each.notices),
    ]
    return "Scores", body


def _block_sides(evidence: Sequence[Evidence]) -> str:
    return ", ".join(sorted({f"{each.block_m:.0f} m wide" if each.block_m else "a scene each" for each in evidence}))


def _score_cells(each: Evidence, name: str, chosen: NDArray[np.bool_]) -> list[object]:
    blocks = each.tiles["block"].to_numpy()[chosen]
    hit, *wrong = each.pixels[chosen].T
    objects = [counts.objects for counts, kept in zip(each.counts, chosen, strict=True) if kept]
    matches = np.array([(2 * counts.matched[0], counts.true + counts.predicted) for counts in objects])
    whole = pool_objects(objects)
    error = None if whole.count_error is None else f"{whole.count_error:+.1%}"
    return [
        name,
        int(chosen.sum()),
        len(np.unique(blocks)),
        str(estimate(np.stack([hit, hit + sum(wrong)], 1), blocks)),
        str(estimate(matches, blocks)),
        whole.panoptic_quality,
        whole.boundary_iou,
        error,
        whole.merges,
        whole.splits,
    ]


def calibration(levels: NDArray[np.int64]) -> tuple[list[float], list[float], float]:
    """Returns mean probability and share of building of each class of probability, and the expected calibration error.

    Args:
        levels: pixels of background, of building by probability x 255, (2, 256).

    Source:
        Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017.
    """
    place = np.minimum(np.arange(256) * BINS // 255, BINS - 1)
    pixels = np.bincount(place, weights=levels.sum(axis=0), minlength=BINS)
    predicted = np.bincount(place, weights=levels.sum(axis=0) * THRESHOLDS, minlength=BINS)
    built = np.bincount(place, weights=levels[1], minlength=BINS)
    filled = pixels > 0
    error = float(np.abs(predicted - built).sum() / max(1.0, pixels.sum()))
    return list(predicted[filled] / pixels[filled]), list(built[filled] / pixels[filled]), error


def calibration_section(evidence: Sequence[Evidence]) -> Section:
    """Returns how far the probabilities can be believed."""
    series, rows = {}, []
    for each in evidence:
        predicted, built, error = calibration(each.levels)
        series[each.name] = (predicted, built)
        between = each.levels * ((THRESHOLDS > 0.05) & (THRESHOLDS < 0.95))
        share = f"{between.sum() / max(1, each.levels.sum()):.1%}"
        rows.append([each.name, error, calibration(between)[2], share])
    drawn = svg(curves(series, "probability", "share of building", diagonal=True), "Reliability curve")
    body = [
        paragraph("Of all pixels with a probability of 0.7, seven tenths should be building: the dashed line."),
        plots([(drawn, "Reliability: share of building among the pixels of a probability")]),
        grid(["run", "ECE", "ECE between 0.05 and 0.95", "pixels between"], rows),
        paragraph(
            "ECE, the expected calibration error, is the mean distance from that line over all pixels, in ten classes. "
            "Most pixels are certain background, which hides the uncertain ones: hence the second figure.",
            soft=True,
        ),
    ]
    return "Calibration", body


def where_section(evidence: Sequence[Evidence]) -> Section:
    """Returns the Jaccard index by building size, density and distance from the tile's edge."""

    def jaccards(parts: NDArray[np.int64]) -> list[float]:
        scores = ratio(np.stack([parts[:, 0], parts.sum(axis=1)], axis=1))
        return [float(score) if total else float("nan") for score, total in zip(scores, parts.sum(axis=1), strict=True)]

    sizes = {each.name: jaccards(np.sum([counts.sizes for counts in each.counts], axis=0)) for each in evidence}
    edges = {each.name: jaccards(np.sum([counts.edges for counts in each.counts], axis=0)) for each in evidence}
    densities = {}
    for each in evidence:
        place = np.searchsorted(DENSITIES, each.tiles["building_fraction"].to_numpy(float), side="right")
        parts = [np.bincount(place, weights=column, minlength=len(DENSITIES) + 1) for column in each.pixels.T]
        densities[each.name] = jaccards(np.stack(parts, axis=1).astype(np.int64))
    drawn = [
        (sizes, SIZES_M2, "size, m²", "Jaccard by size of the true building; wrong pixels count for the nearest one"),
        (densities, [f"{100 * at:.0f}" for at in DENSITIES], "building, %", "Jaccard by share of building in the tile"),
        (edges, EDGES_PX, "distance, px", "Jaccard by distance from the tile's edge"),
    ]
    figures = [(svg(bars(_classes(at), series, x, "Jaccard"), caption), caption) for series, at, x, caption in drawn]
    return "Where it fails", [plots(figures)]


def _classes(bounds: Sequence[object]) -> list[str]:
    """Returns the labels of the classes between bounds."""
    pairs = pairwise(bounds)
    return [f"< {bounds[0]}", *(f"{low}-{high}" for low, high in pairs), f"> {bounds[-1]}"]


def thresholds_section(evidence: Sequence[Evidence]) -> Section:
    """Returns the Jaccard index at all thresholds."""
    series, rows = {}, []
    for each in evidence:
        fp, hit = each.levels[:, ::-1].cumsum(axis=1)[:, ::-1]  # at this value and above
        scores = ratio(np.stack([hit, fp + each.levels[1].sum()], axis=1))
        series[each.name] = (list(THRESHOLDS[::5]), [float(score) for score in scores[::5]])
        threshold, best = best_threshold(each.levels)
        rows.append([each.name, float(scores[128]), f"{threshold:.2f}", best, f"{best - float(scores[128]):+.4f}"])
    body = [
        plots([(svg(curves(series, "threshold", "Jaccard"), "Jaccard by threshold"), "Jaccard by threshold")]),
        grid(["run", "at 0.5", "best threshold", "at the best", "gain"], rows),
        paragraph("The best threshold is chosen on the tiles that it is scored on: expect less elsewhere.", soft=True),
    ]
    return "What a threshold changes", body


def members_section(evidence: Sequence[Evidence]) -> Section:
    """Returns what votes of several recipes score."""
    heading = "What a member changes"
    folds = paragraph(
        "The folds of a recipe count as one member here: each validation tile is predicted by one of them alone. What "
        "their mean gains in the exported file cannot be measured on these tiles."
    )
    common = set.intersection(*(set(each.tiles["tile"]) for each in evidence))
    if len(evidence) < 2 or not common:
        which = "one member" if len(evidence) < 2 else "no validation tile in common"
        return heading, [folds, paragraph(f"These runs have {which}: there is no vote to score.")]
    tiles = evidence[0].tiles
    tiles = tiles[tiles["tile"].isin(common)].drop(columns="tile")
    search = VoteSearch(read_pixels([each.candidate for each in evidence], tiles), [1.0] * len(evidence))
    chosen: list[int] = []
    rows: list[list[object]] = []
    before: float | None = None
    while len(chosen) < len(evidence):
        rest = [place for place in range(len(evidence)) if place not in chosen]
        scored = {place: search.score(_votes([*chosen, place], len(evidence))) for place in rest}
        best = max(rest, key=lambda place: scored[place])
        chosen.append(best)
        alone = search.score(_votes([best], len(evidence)))
        gain = None if before is None else f"{scored[best] - before:+.4f}"
        rows.append([len(chosen), evidence[best].name, alone, scored[best], gain])
        before = scored[best]
    pairs = [
        [f"{evidence[one].name} + {evidence[two].name}", search.score(_votes([one, two], len(evidence)))]
        for one, two in combinations(range(len(evidence)), 2)
    ]
    body = [
        folds,
        grid(["members", "added", "alone", "vote", "gain"], rows),
        *([grid(["pair", "vote"], pairs)] if len(pairs) > 1 else []),
        paragraph(
            f"Jaccard on {len(common)} tiles that all held out, equal weights, each vote at its best threshold. The "
            "order is chosen on the same tiles. kit best chooses weights too, and checks the gain on tiles left out.",
            soft=True,
        ),
    ]
    return heading, body


def _votes(places: Sequence[int], members: int) -> tuple[int, ...]:
    return tuple(int(place in places) for place in range(members))


def views_section(evidence: Sequence[Evidence], paths: Paths, number: int) -> Section:
    """Returns what averaging over views scores, and what it costs."""
    heading = "What views change"
    if not number:
        return heading, [paragraph("Not measured: --view-tiles 0.")]
    rows: list[list[object]] = []
    notes: list[str] = []
    gains = []
    for each in evidence:
        try:
            gains = view_gains(some_tiles(each.tiles, number), paths)
        except KitError as error:
            notes.append(f"{each.name}: not measured: {error.message}")
            continue
        for gain in gains:
            joules = [] if gain.energy_j is None else [f"{gain.energy_j:.1f}"]
            more = f"{gain.jaccard - gains[0].jaccard:+.4f}"
            cells = [gain.views, gain.passes, gain.tiles, gain.jaccard, more, f"{gain.seconds:.2f}", *joules]
            rows.append([each.name, *cells])
    columns = ["run", "views", "passes", "tiles", "Jaccard", "gain", "seconds per tile here", "joules per tile"]
    columns = columns[: len(rows[0])] if rows else columns
    return heading, [
        *([grid(columns, rows)] if rows else []),
        *(paragraph(note) for note in notes),
        paragraph(f"Tiles with buildings, drawn at random; threshold 0.5. {energy_line(gains)}", soft=True),
    ]


def worst_section(evidence: Sequence[Evidence]) -> Section:
    """Returns pictures of the worst tiles."""
    body = [paragraph("Image, truth, prediction, errors: green is correct, red is a false positive, blue is missed.")]
    for each in evidence:
        hit, fp, fn = each.pixels.T
        scores = ratio(np.stack([hit, hit + fp + fn], axis=1))
        built = hit + fn > 0
        full = built & (each.tiles["valid_fraction"].to_numpy(float) >= MOSTLY)
        shown = np.flatnonzero(full if full.any() else built)
        for place in shown[np.argsort(scores[shown], kind="stable")][:WORST]:
            row = each.tiles.iloc[int(place)]
            caption = f"{each.name} on {row.tile} ({row.kind}): Jaccard {scores[place]:.3f}"
            try:
                body.append(picture(_picture(row.image, row["mask"], row.file), caption))
            except (KitError, rasterio.RasterioIOError) as error:
                say(f"no picture of {row.tile}: {error}")
                body.append(paragraph(f"{caption}: the tile cannot be read"))
    return "Worst tiles", body


def _picture(image: str, mask: str, prediction: Path) -> str:
    """Returns a tile's four panels as a JPEG in base64."""
    pixels, truth = read_tile(image, mask)
    with without_notice, rasterio.open(prediction) as source:
        predicted = (source.read(1) > 127) & (truth != IGNORE)
    panels = overlay(pixels, truth, predicted)
    scale = min(1.0, PICTURE_PX / panels.shape[1])
    small = cv2.resize(panels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    return base64.b64encode(data.tobytes()).decode()


def runs_section(evidence: Sequence[Evidence], paths: Paths) -> Section:
    """Returns cost and settings of the runs."""
    runs = [run for each in evidence for run in each.candidate.runs]
    costs, settings = [], {}
    for run in runs:
        folder = run_folder(run, paths)
        result = read_result(folder)
        known = asdict(read_settings(folder))
        settings[run] = {name: str(value) for name, value in known.items() if value not in (None, "", ())}
        if result is not None:
            minutes = f"{result.seconds / 60:.1f}"
            costs.append([run, result.score, result.epoch + 1, settings[run].get("epochs"), minutes])
    names = list(dict.fromkeys(name for values in settings.values() for name in values))
    rows = [[name, *(settings[run].get(name) for run in runs)] for name in names]
    return "Runs", [
        grid(["run", "Jaccard", "best epoch", "epochs", "minutes of training"], costs),
        paragraph("Energy of training was not recorded.", soft=True),
        grid(["setting", *runs], rows),
        paragraph(f"kit {__version__}", soft=True),
    ]
