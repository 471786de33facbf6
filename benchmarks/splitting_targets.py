"""What tells neighbours apart: lite0 without splitting, with walls (boundary and contact), with the distance to walls.

    kit prepare CATALOG --name mini --by area --root ROOT            # each area is a fold
    python benchmarks/splitting_targets.py --root ROOT --fold 1 --steps 300 --seeds 0 1      # rerun to resume

All arms train by equal steps on the same crops; fold 1 is held out. `distance` learns, in place of boundary and
contact, how deep a pixel lies in its building: 1 minus its distance to the nearest wall by the largest one of the
building, a soft target. Markers of the watershed are then the inner parts of buildings, whatever their size.

Printed of the held-out tiles: the Jaccard index; F1 of buildings at IoU 0.5 with kit's standard markers (0.5, from
3 m2); F1 with the markers that score best on these tiles, as `kit export` chooses them.
"""

import argparse
import time
from pathlib import Path

import pandas as pd

from kit.measures.object_counts import pool_objects
from kit.paths import Paths
from kit.pipeline.postprocess import choose
from kit.pipeline.run import RunOptions, run
from kit.training.fit import Setup
from kit.training.length import LengthOptions
from kit.training.run_files import read_objects, read_result

PARENT = '''"""{arm}, seed {seed}, {steps} steps."""

from kit.recipes import {arm} as parent

data, learner, fit = parent.data, parent.learner, parent.fit
'''
DISTANCE = '''"""lite0 with the distance to walls, seed {seed}, {steps} steps."""

from functools import partial

import cv2
import numpy as np
from kit.recipes import lite0 as parent

from kit.data.dataset import dataloaders
from kit.data.instances import Walls
from kit.data.masks import BUILDING, IGNORE, SOFT_STEPS
from kit.models.losses import BCE


class Depth(Walls):
    """Draws footprint; how near a building's pixel is to its walls, x 254; and nothing in place of contact."""

    def draw(self, packed):
        mask, low, high = cv2.split(packed)
        building = mask == BUILDING
        ids = (low.astype(np.uint16) | high.astype(np.uint16) << 8) * building
        square = np.ones((3, 3), np.uint8)
        inner = building & (cv2.erode(ids, square) == cv2.dilate(ids, square))
        depth = cv2.distanceTransform(inner.astype(np.uint8), cv2.DIST_L2, 5)
        deepest = np.ones(int(ids.max()) + 1, np.float32)
        np.maximum.at(deepest, ids.ravel(), depth.ravel())
        near = np.rint((1 - depth / deepest[ids]) * SOFT_STEPS).astype(np.uint8)
        layers = np.stack([building.astype(np.uint8), near * building, np.zeros_like(mask)])
        layers[:, mask == IGNORE] = IGNORE
        return layers


class SoftBCE(BCE):
    """BCE whose second layer is x 254."""

    def forward(self, logits, target):
        soft = target.float()
        soft[:, 1] = soft[:, 1].where(target[:, 1] == IGNORE, soft[:, 1] / SOFT_STEPS)
        return super().forward(logits, soft)


fit = parent.fit
learner = partial(parent.learner, loss=SoftBCE(), n_out=3)


def data(fold):
    return dataloaders(fold, parent.AUGMENT, parent.BATCH, layers=Depth())
'''
ARMS = {"lite0": PARENT, "lite0_instances": PARENT, "distance": DISTANCE}


def trained(paths: Paths, arm: str, seed: int, steps: int, fold: int, data: str) -> dict[str, object]:
    """Trains what is missing, and returns the row of the table."""
    recipe = paths.recipes / f"{arm}_{steps}_s{seed}.py"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(ARMS[arm].format(arm=arm, seed=seed, steps=steps))
    folder, start = paths.run(recipe.stem, fold), time.perf_counter()
    if read_result(folder) is None:
        setup = Setup(LengthOptions(steps=steps))
        run(str(recipe), paths, RunOptions(data, (), (fold,), seed, setup=setup, export=False))
    result, objects = read_result(folder), pool_objects((read_objects(folder) or {}).values())
    choice = choose([folder], paths)
    split = choice.splitting if choice else None
    return {
        "arm": arm, "seed": seed, "steps": steps, "Jaccard": result.score if result else None, "F1": objects.f1,
        "F1 chosen": split.f1_after if split else None, "markers": (split.inside, split.smallest_m2) if split else "",
        "true": objects.true, "predicted": objects.predicted, "merges": objects.merges, "splits": objects.splits,
        "seconds": round(time.perf_counter() - start),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--data", default="mini")
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    given = parser.parse_args()
    paths = Paths(given.root)
    rows = [
        trained(paths, arm, seed, given.steps, given.fold, given.data) for seed in given.seeds for arm in given.arms
    ]
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.4f}"))


if __name__ == "__main__":
    main()
