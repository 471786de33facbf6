"""Expected quality of pseudo-labels: the same labels of validation tiles, compared with the truth."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit.data.masks import BUILDING, IGNORE, Counts, count
from kit.deploy.weights.card import Card
from kit.errors import KitError, RunError
from kit.paths import Paths
from kit.pipeline.postprocess import held_out_tiles, read_tiles
from kit.pipeline.pseudo_labels import PseudoOptions, hard_labels
from kit.pipeline.runs import run_folder, tile_weights
from kit.system.files import sha256_of
from kit.training.run_files import BEST

MOST_PX = 100 * 1024**2  # compared, of evenly spread tiles: about ten seconds on one core


@dataclass(frozen=True)
class PseudoQuality:
    """How pseudo-labels of validation tiles compare with the truth.

    Each network predicts only tiles that it was not trained on, in one view: the ensemble should do a little better on
    the same ground. Chips of another place may be harder.
    """

    runs: tuple[str, ...]  # whose out-of-fold predictions were compared
    members: int  # of the weights
    tiles: int  # that were compared
    held_out: int  # validation tiles there are
    kept_tiles: int  # of the compared ones, not left out by the options
    kept_fraction: float  # share of the pixels with imagery that have a label, 0..1
    agreement: float  # share of the labels that are as the truth, 0..1
    jaccard: float  # index of building between labels and truth, where there is a label, 0..1

    def __str__(self) -> str:
        some = "" if self.tiles == self.held_out else f" of {self.held_out}"
        left_out = "" if self.kept_tiles == self.tiles else f"{self.kept_tiles} tiles kept, "
        runs = "" if len(self.runs) == self.members else f", {len(self.runs)} of {self.members} networks"
        return (
            f"expected quality, from {self.tiles}{some} validation tiles{runs}: {left_out}{self.kept_fraction:.1%} of "
            f"the pixels labelled, {self.agreement:.1%} of these as the truth, Jaccard {self.jaccard:.4f}"
        )


def expected_quality(card: Card, paths: Paths, options: PseudoOptions) -> PseudoQuality:
    """Returns how often pseudo-labels made with these options agree with the truth on validation tiles.

    Args:
        card: of the weights; its members name the runs.
        paths: of the working root, with the runs and their data sets.
        options: `ignore`, `min_confidence` and `drop_empty` count.

    Raises:
        RunError: no run of a member is here with its out-of-fold predictions, or tiles were cut again after the run.
        DataError: a data set is missing.
    """
    names = [member.run_name for member in card.members]
    runs = member_runs(card, paths)
    if not runs:
        listed = ", ".join(dict.fromkeys(names))
        raise RunError(f"no out-of-fold predictions of the runs that made the weights are here ({listed})")
    weights = dict(zip(names, tile_weights(names, card.weights), strict=False))
    tiles = held_out_tiles(list(runs.values()), paths, [weights[run] for run in runs] if weights else ())
    some = tiles[:: max(1, -(-sum(tile.pixels for tile in tiles) // MOST_PX))]
    imagery_px = labelled_px = agreeing_px = kept = 0
    counts = Counts()
    for _, probability, truth in read_tiles(some, "compare with the truth"):
        shown = truth != IGNORE
        imagery_px += int(shown.sum())
        labels = hard_labels(probability, shown, options.ignore)
        confidence = float(np.maximum(probability, 1 - probability)[shown].mean()) if shown.any() else 0.0
        if confidence < options.min_confidence or (options.drop_empty and not (labels == BUILDING).any()):
            continue
        kept += 1
        labelled_px += int((labels != IGNORE).sum())
        agreeing_px += int(((labels == truth) & shown).sum())
        counts += count(labels == BUILDING, np.where(labels == IGNORE, IGNORE, truth))
    agreement = agreeing_px / max(labelled_px, 1)
    return PseudoQuality(
        tuple(runs), len(card.members), len(some), len(tiles), kept, labelled_px / max(imagery_px, 1), agreement,
        counts.jaccard,
    )  # fmt: skip


def quality_line(card: Card, paths: Paths, options: PseudoOptions) -> str:
    """Returns the expected quality in one line, or why it is not known."""
    try:
        return str(expected_quality(card, paths, options))
    except KitError as cause:
        return f"expected quality unknown: {cause.message}"


def member_runs(card: Card, paths: Paths) -> dict[str, Path]:
    """Returns the folders of the members' runs that are here, held tiles out, and were not trained again since."""
    runs = {}
    for member in card.members:
        folder = run_folder(member.run_name, paths)
        best = folder / BEST
        if (folder / "oof.csv").is_file() and best.is_file() and sha256_of(best) == member.sha256:
            runs[member.run_name] = folder
    return runs
