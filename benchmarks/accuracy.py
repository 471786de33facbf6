"""Levers of accuracy, judged on areas that were held out. Tables: accuracy.md.

kit prepare CATALOG --name mini --by area --root ROOT           # each area is a fold
kit prepare sample/train_tier_1 --name drawn --root ROOT        # only for the arm `drawn`
python benchmarks/accuracy.py train --root ROOT --steps 300 lite0:0 mixstyle:0 ...   # ARM:SEED; rerun to resume
python benchmarks/accuracy.py views RUN ... --root ROOT         # ways to predict, without training
python benchmarks/accuracy.py table --root ROOT
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from kit.data.added import parse_added
from kit.data.dataset import read_tile
from kit.data.index import read_index
from kit.data.masks import count, pool
from kit.deploy.freeze.ensemble import VIEWS, Core, portable, unview, view
from kit.paths import Paths
from kit.pipeline.run import RunOptions, run
from kit.training.fit import Setup, load_best, rebuild
from kit.training.length import LengthOptions
from kit.training.recipe import load_recipe
from kit.training.run_files import read_result

DATA = "mini"
COLUMNS = ("arm", "seed", "steps", "fold", "jaccard", "seconds")
HEAD = '''"""lite0 with one change: {arm}."""

import albumentations as A
import cv2
import numpy as np
import torch

from kit.data.augment import D4, PadIfNeeded
from kit.data.dataset import dataloaders
from kit.recipes import {parent} as parent
from kit.models.losses import CrossEntropy, Lovasz, Sum
from kit.training.mixing import MixStyle, _Mixing

data, learner, fit = parent.data, parent.learner, parent.fit


def crops(low, high):
    side = parent.CROP_PX
    return [
        PadIfNeeded(int(high * side), int(high * side), border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=255),
        A.RandomSizedCrop((int(low * side), int(high * side)), (side, side)),
        D4(),
    ]


def with_augment(*transforms):
    augment = A.Compose(list(transforms))
    return lambda fold: dataloaders(fold, augment, parent.BATCH)


class Paste(_Mixing):
    """Pastes the buildings of one crop onto another one's ground, for half of the crops."""

    order, stream = -16, 7

    def before_batch(self):
        random = self.random()
        partners = self.partners(random)
        chosen = torch.from_numpy(random.uniform(size=len(partners)) < 0.5).view(-1, 1, 1)
        pasted = (self.y[partners] == 1) & chosen
        self.learn.xb = (torch.where(pasted[:, None], self.x[partners], self.x),)
        self.learn.yb = (torch.where(pasted, torch.ones_like(self.y), self.y),)


class Fourier(_Mixing):
    """Mixes the low-frequency amplitudes of one crop into another one, for half of the crops (Yang 2020, FDA)."""

    order, stream = -17, 8

    def before_batch(self):
        random = self.random()
        partners = self.partners(random)
        share = random.uniform(size=len(partners)) * (random.uniform(size=len(partners)) < 0.5)
        share = torch.from_numpy(share.astype(np.float32)).view(-1, 1, 1, 1)
        spectrum = torch.fft.fftshift(torch.fft.fft2(self.x.float()), dim=(2, 3))
        amplitude, phase = spectrum.abs(), spectrum.angle()
        middle, half = self.x.shape[-1] // 2, max(1, round(self.x.shape[-1] * 0.01))
        low = (..., slice(middle - half, middle + half + 1), slice(middle - half, middle + half + 1))
        amplitude[low] = torch.lerp(amplitude[low], amplitude[partners][low], share)
        mixed = torch.fft.ifft2(torch.fft.ifftshift(torch.polar(amplitude, phase), dim=(2, 3))).real
        self.learn.xb = (mixed.round().clamp(0, 255).to(self.x.dtype),)


'''
STRONG = """A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.5, hue=0.1, p=0.8),
    A.RandomToneCurve(scale=0.3, per_channel=True, p=0.4), A.ToGray(p=0.1), A.RandomGamma((60, 160), p=0.3),
    A.OneOf([
        A.GaussianBlur(sigma_limit=(0.5, 3.0)), A.GaussNoise(std_range=(0.02, 0.1)),
        A.Downscale(scale_range=(0.25, 0.6),
                    interpolation_pair={"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR}),
        A.ImageCompression(quality_range=(30, 80)),
    ], p=0.4)"""
ARMS = {
    "lite0": "",
    "mixstyle": "def learner(dls):\n    return parent.learner(dls).add_cbs([MixStyle()])\n",
    "strong": f"data = with_augment(*crops(0.7, 1.4), {STRONG})\n",
    "scale": "data = with_augment(*crops(0.45, 2.0), *parent.AUGMENT.transforms[3:])\n",
    "decay": "def fit(learn, epochs=parent.EPOCHS):\n"
    "    learn.fit_one_cycle(epochs, slice(parent.LR / 3, parent.LR), wd=0.1)\n",
    "drawn": "",
    "lite2": "",  # recipes other than lite0: see PARENTS
    "instances": "",
    "paste": "def learner(dls):\n    return parent.learner(dls).add_cbs([Paste()])\n",
    "fourier": "def learner(dls):\n    return parent.learner(dls).add_cbs([Fourier()])\n",
    "lovasz": "def learner(dls):\n"
    "    return parent.learner(dls, loss=Sum((0.5, CrossEntropy()), (0.5, Lovasz(per_image=True))))\n",
    "wide": "def learner(dls):\n    return parent.learner(dls, widths=(256, 128, 64, 48))\n",
    "encoder_rate": "def fit(learn, epochs=parent.EPOCHS):\n"
    "    learn.fit_one_cycle(epochs, slice(parent.LR / 10, parent.LR), wd=0.01)\n",
}

PARENTS = {"lite2": "lite2", "instances": "lite0_instances"}


def train(paths: Paths, steps: int, wanted: list[str]) -> None:
    """Trains what is missing, one area held out after the other, and adds a row to accuracy.csv for each."""
    table = paths.root / "accuracy.csv"
    if not table.is_file():
        table.write_text(",".join(COLUMNS) + "\n")
    done = set(pd.read_csv(table, dtype=str)[["arm", "seed", "steps", "fold"]].itertuples(index=False, name=None))
    paths.recipes.mkdir(parents=True, exist_ok=True)
    for arm, seed in (each.split(":") for each in wanted):
        for fold in sorted(read_index(paths, DATA)[1]["fold"].unique()):
            if (arm, seed, str(steps), str(fold)) in done:
                continue
            recipe = paths.recipes / f"{arm}_{steps}_s{seed}.py"
            recipe.write_text(HEAD.format(arm=arm, parent=PARENTS.get(arm, "lite0")) + ARMS[arm])
            start = time.perf_counter()
            setup = Setup(LengthOptions(steps=steps), restart=True)
            added = parse_added(["drawn"] if arm == "drawn" else [])  # drawn city: a scene counts as a real one does
            run(str(recipe), paths, RunOptions(DATA, added, (int(fold),), int(seed), setup=setup, export=False))
            result = read_result(paths.run(recipe.stem, int(fold)))
            with table.open("a", newline="") as file:
                seconds = round(time.perf_counter() - start)
                row = (arm, seed, steps, fold, round(result.score, 4) if result and result.score else "", seconds)
                csv.writer(file, lineterminator="\n").writerow(row)


def show(paths: Paths) -> None:
    """Prints, for each length, the score of each area and the difference from lite0 of the same seed."""
    rows = pd.read_csv(paths.root / "accuracy.csv")
    areas = read_index(paths, DATA)[1].groupby("fold")["area"].first()
    print("| arm | seed | steps | " + " | ".join(areas) + " |\n|---|---|---|" + "---|" * len(areas))
    for (steps, arm, seed), own in rows.groupby(["steps", "arm", "seed"], sort=False):
        base = rows[(rows["steps"] == steps) & (rows["arm"] == "lite0") & (rows["seed"] == seed)]
        base = base.set_index("fold")["jaccard"]
        scores = own.set_index("fold")["jaccard"]
        plain = arm == "lite0"
        values = [scores.get(fold, np.nan) - (0 if plain else base.get(fold, np.nan)) for fold in areas.index]
        print(f"| {arm} | {seed} | {steps} | " + " | ".join(f"{v:{'' if plain else '+'}.3f}" for v in values) + " |")


# ways to predict

Probability = Callable[[Tensor], Tensor]  # float32 (1, 3, H, W), 0..255 -> float32 (1, 1, H, W), 0..1


def ways(network: Any, train: list[Any], held_out: list[Any]) -> Iterator[tuple[str, Probability]]:
    """Yields names and ways to predict with one network.

    Args:
        network: trained.
        train: pairs of image and mask that it was trained on.
        held_out: pairs of the area to predict.
    """
    core = Core(network)

    def once(x: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return torch.sigmoid(core(x)).float()

    def mean_of_views(x: Tensor, name: str) -> Tensor:
        codes = VIEWS[name]
        return torch.stack([unview(once(view(x, code)), code) for code in codes]).mean(0)

    def mean_of_scales(x: Tensor, *scales: float) -> Tensor:
        votes = []
        for scale in scales:
            side = round(x.shape[-1] * scale / 64) * 64
            resized = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
            votes.append(F.interpolate(once(resized), size=x.shape[-2:], mode="bilinear"))
        return torch.stack(votes).mean(0)

    (mean, spread), (own_mean, own_spread) = colours(train), colours(held_out)

    def recoloured(x: Tensor, share: float) -> Tensor:
        return once(torch.lerp(x, (x - own_mean) / own_spread * spread + mean, share).clamp(0, 255))

    yield "one view", once
    yield "flips", lambda x: mean_of_views(x, "flips")
    yield "d4", lambda x: mean_of_views(x, "d4")
    yield "scales 0.8, 1", lambda x: mean_of_scales(x, 0.8, 1.0)
    yield "scales 0.75, 1, 1.33", lambda x: mean_of_scales(x, 0.75, 1.0, 1.33)
    yield "half the colours of the training areas", lambda x: recoloured(x, 0.5)
    yield "the colours of the training areas", lambda x: recoloured(x, 1.0)


def colours(pairs: list[Any]) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of each channel, float32 (1, 3, 1, 1), of pixels that are not black."""
    pixels = np.concatenate([image[..., :3].reshape(-1, 3)[::97] for image, _ in pairs]).astype(np.float32)
    pixels = pixels[pixels.any(axis=1)]
    return tuple(torch.from_numpy(values).view(1, 3, 1, 1) for values in (pixels.mean(0), pixels.std(0)))  # type: ignore[return-value]


def predict_in_ways(paths: Paths, names: list[str]) -> None:
    """Prints the Jaccard index of each held-out area for each way to predict."""
    index = read_index(paths, DATA)[1]
    folder = paths.data(DATA)
    tiles = [read_tile(str(folder / row.image), str(folder / row.mask)) for row in index.itertuples()]
    print("| run | held out | way | Jaccard |\n|---|---|---|---|")
    for name in names:
        for fold, area in index.groupby("fold")["area"].first().items():
            network = rebuild(load_recipe(name, paths)).model
            load_best(network, paths.run(name, int(fold)))
            held_out = [pair for pair, own in zip(tiles, index["fold"] == fold, strict=True) if own]
            train = [pair for pair, own in zip(tiles, index["fold"] == fold, strict=True) if not own]
            for way, probability in ways(portable(network), train, held_out):
                counts = []
                for image, mask in held_out:
                    x = torch.from_numpy(image[..., :3].transpose(2, 0, 1).copy())[None].float()
                    counts.append(count(probability(x)[0, 0].numpy() > 0.5, mask))
                print(f"| {name} | {area} | {way} | {pool(counts).jaccard:.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "views", "table"])
    parser.add_argument("names", nargs="*", help="ARM:SEED to train, or runs to predict with")
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_intermixed_args()
    paths = Paths(given.root)
    if given.command == "train":
        train(paths, given.steps, given.names)
    elif given.command == "views":
        predict_in_ways(paths, given.names)
    else:
        show(paths)


if __name__ == "__main__":
    main()
