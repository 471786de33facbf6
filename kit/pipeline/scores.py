"""The out-of-fold scores of finished runs: per scene, per area, pooled."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kit.console import say, table
from kit.data.masks import Counts, pool
from kit.measures.object_counts import pool_objects
from kit.training.oof import best_threshold, read_levels
from kit.training.run_files import Result, read_objects


def show_scores(results: Sequence[Result], folders: Sequence[Path]) -> None:
    """Prints the out-of-fold Jaccard index per scene, area and pooled; reports buildings and the best threshold."""
    held_out = [result for result in results if result.scenes]
    if not held_out:
        say("no validation tiles: no out-of-fold score")
        return
    rows: list[tuple[object, ...]] = []
    areas: dict[str, list[Counts]] = {}
    for result in held_out:
        for scene, counts in sorted(result.scenes.items()):
            rows.append((f"fold {result.fold}", scene, counts.jaccard))
            areas.setdefault(scene.partition("/")[0], []).append(counts)
    rows.extend(("all", area, pool(counts).jaccard) for area, counts in sorted(areas.items()))
    pooled = pooled_score(held_out)
    assert pooled is not None
    rows.append(("all", "pooled", pooled))
    table(("out of", "scene", "jaccard"), rows)
    objects = [counts for folder in folders for counts in (read_objects(folder) or {}).values()]
    if objects:
        found = pool_objects(objects)
        say(
            f"buildings: F1 {found.f1:.4f} at IoU 0.5, {found.predicted} predicted for {found.true}, "
            f"{found.merges} merges, {found.splits} splits"
        )
    levels = [level for folder in folders if (level := read_levels(folder)) is not None]
    if levels:
        threshold, score = best_threshold(np.sum(levels, axis=0))
        say(f"best threshold {threshold:.2f}: {score:.4f}, {score - pooled:+.4f} compared with 0.5")


def pooled_score(results: Sequence[Result]) -> float | None:
    """Returns the Jaccard index over the validation pixels of all folds; None if there are none."""
    counts = [counts for result in results for counts in result.scenes.values()]
    return pool(counts).jaccard if counts else None
