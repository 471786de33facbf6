"""The loss after equal numbers of crops: kit's network and harness against smp's U-Net in a plain loop.

    python benchmarks/training_curves.py [--recipe NAME] [--crops 800] [--png FILE]

Prints a table and writes benchmarks/training_curves.csv; half an hour on 2 cores, nearly all of it the plain side's.

Both sides see the same crops in the same order: the recipe's augmentation, the draws of its balanced sampler, 8 a step.
Both train on cross-entropy with AdamW at a constant rate of 1e-3 and wd 0.01, so that what differs is the network and
the harness, not the recipe's schedule or loss. lite0's encoders begin at the same ImageNet weights, others at random.

kit:          the recipe's network and callbacks, in fit.
kit averaged: the same run, with the averaged weights that `kit run` validates and keeps, where the recipe has EMA.
plain:        benchmarks/plain_loop.py: smp's U-Net over the same timm encoder.

train_loss is the mean over the steps since the row before; valid_loss (cross-entropy a pixel) and jaccard (pooled) are
of the held-out fold's whole tiles in eval mode.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelValidException
from plain_loop import PlainTraining, PlainUnet, start_of
from tiles import data_root, fold_of

from kit.data.dataset import TileDataset
from kit.data.masks import IGNORE, Counts, count
from kit.models.losses import CrossEntropy
from kit.paths import Paths
from kit.training.callbacks import EMA
from kit.training.fit import Setup, build, rebuild
from kit.training.recipe import load_recipe

BATCH, LR, WD, SEED = 8, 1e-3, 0.01, 0
TABLE = Path(__file__).with_suffix(".csv")


def held_out(predict: Callable, tiles: TileDataset) -> dict[str, float]:
    """Returns cross-entropy and Jaccard index over all pixels of whole tiles."""
    total, known, counts = 0.0, 0, Counts()
    for row in range(len(tiles)):
        image, mask = tiles[row]
        with torch.inference_mode():
            logits = predict(image[None]).float()
        total += F.cross_entropy(logits, mask[None].long(), ignore_index=IGNORE, reduction="sum").item()
        known += int((mask != IGNORE).sum())
        counts += count(logits[:, 1] > logits[:, 0], mask[None])
    return {"valid_loss": total / known, "jaccard": counts.jaccard}


class Watch(Callback):
    """Collects the training loss, and the held-out figures of the weights that are live, or averaged, at its order."""

    def __init__(self, side: str, order: int, every: int) -> None:
        self.side, self.order, self.every, self.losses, self.rows = side, order, every, [], []

    def before_fit(self) -> None:
        self.dls.train.n = self.every

    def after_loss(self) -> None:
        self.losses.append(self.loss.item())

    def before_validate(self) -> None:
        with self.learn.precision.context():
            validated = held_out(self.model, self.dls.valid.dataset)
        self.rows.append(row_of(self.side, (self.epoch + 1) * self.every, self.losses, validated))
        self.losses = []


class NoValidation(Callback):
    """Leaves fastai's own validation out."""

    order = EMA.order + 2

    def before_validate(self) -> None:
        raise CancelValidException


def row_of(side: str, crops: int, losses: list[float], validated: dict[str, float]) -> dict:
    return {"side": side, "crops": crops, "train_loss": sum(losses) / len(losses), **validated}


def kit_side(name: str, root: Path, crops: int, every: int) -> list[dict]:
    learn = build(load_recipe(name, Paths(Path())), fold_of(root, seed=SEED), Setup(source=start_of(name)))
    learn.dls.train.bs = BATCH
    learn.loss_func = CrossEntropy()
    watches = [Watch("kit", 0, every)]
    if hasattr(learn, "ema"):
        watches.append(Watch("kit averaged", EMA.order + 1, every))
    learn.add_cbs([*watches, NoValidation()])
    learn.fit(crops // every, LR, wd=WD)
    return [row for watch in watches for row in watch.rows]


def plain_side(name: str, root: Path, crops: int, every: int) -> list[dict]:
    recipe, fold = load_recipe(name, Paths(Path())), fold_of(root, seed=SEED)
    dls, learn = recipe.data(fold), rebuild(recipe)
    tiles, sampler = dls.train.dataset, learn.balanced_sampler
    torch.manual_seed(SEED)
    step = PlainTraining(PlainUnet(learn.model.encoder_name, start_of(name)), LR, WD)
    rows = []
    for epoch in range(crops // every):
        tiles.epoch = epoch
        keys = sampler.draw(tiles.rows, SEED, epoch, every)
        batches = [keys[first : first + BATCH] for first in range(0, every, BATCH)]
        step.model.train()
        losses = []
        for batch in batches:
            images, masks = map(torch.stack, zip(*(tiles[key] for key in batch), strict=True))
            losses.append(step(images, masks.long()))
        validated = held_out(step.model.eval(), dls.valid.dataset)
        rows.append(row_of("plain", (epoch + 1) * every, losses, validated))
    return rows


def in_own_process(side: str, options: argparse.Namespace, root: Path) -> list[dict]:
    flags_by_name = {
        "recipe": options.recipe,
        "crops": options.crops,
        "every": options.every,
        "data-root": root,
        "side": side,
    }
    flags = [f"--{key}={value}" for key, value in flags_by_name.items()]
    command = [sys.executable, "-W", "ignore", __file__, *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def draw(rows: list[dict], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for axis, column in zip(axes, ("train_loss", "valid_loss", "jaccard"), strict=True):
        for side in dict.fromkeys(row["side"] for row in rows):
            points = [(row["crops"], row[column]) for row in rows if row["side"] == side]
            axis.plot(*zip(*points, strict=True), marker="o", label=side)
        axis.set(title=column, xlabel="crops")
    axes[0].legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="lite0")
    parser.add_argument("--crops", type=int, default=800)
    parser.add_argument("--every", type=int, default=200, help=f"crops between two rows: a multiple of {BATCH}")
    parser.add_argument("--data-root", type=Path, help="with a prepared data set; drawn by default")
    parser.add_argument("--png", type=Path, help="draws the curves, too")
    parser.add_argument("--side", choices=("kit", "plain"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.every % BATCH or options.crops % options.every:
        parser.error(f"--crops is a multiple of --every, and that of {BATCH}")
    if options.side:
        train = {"kit": kit_side, "plain": plain_side}[options.side]
        print(json.dumps(train(options.recipe, options.data_root, options.crops, options.every)))
        return
    with data_root(options.data_root) as root:
        rows = [row for side in ("kit", "plain") for row in in_own_process(side, options, root)]
    print(f"{options.recipe}, torch {torch.__version__}\n")
    print("| side | crops | train_loss | valid_loss | jaccard |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['side']} | {row['crops']} | " + " | ".join(f"{v:.4f}" for v in list(row.values())[2:]) + " |")
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    if options.png:
        draw(rows, options.png)


if __name__ == "__main__":
    main()
