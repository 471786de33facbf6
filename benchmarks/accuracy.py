"""Levers of accuracy, judged on areas that were held out. Tables: accuracy.md.

kit prepare CATALOG --name mini --by area --root ROOT           # each area is a fold
kit prepare CATALOG --name mk --by block -k 4 --root ROOT       # or: blocks of the large scene ...
python benchmarks/accuracy.py hold-out kam --data mk --root ROOT  # ... and a whole area, in fold 0
kit prepare sample/train_tier_1 --name drawn --root ROOT        # only for the lever `drawn`
python benchmarks/accuracy.py train --root ROOT --steps 300 lite0:0 walls+mixstyle:0 ...  # ARM:SEED; rerun to resume
python benchmarks/accuracy.py views RUN ... --root ROOT         # ways to predict, without training
python benchmarks/accuracy.py table --root ROOT
"""

import argparse
import csv
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
from kit.data.index import read_index, read_table, write_table
from kit.data.masks import count, pool
from kit.deploy.freeze.ensemble import VIEWS, Core, portable, unview, view
from kit.paths import Paths
from kit.pipeline.run import RunOptions, run
from kit.training.fit import Setup, load_best, rebuild
from kit.training.length import LengthOptions
from kit.training.recipe import load_recipe

COLUMNS = ("arm", "seed", "steps", "data", "fold", "area", "jaccard", "seconds")
RECIPE = '''"""lite0 with changes: {levers}."""

import albumentations as A
import cv2
import numpy as np
import torch
from fastai.callback.training import BnFreeze

from kit.data.augment import D4, PadIfNeeded
from kit.data.dataset import dataloaders
from kit.models.losses import BCE, CrossEntropy, Lovasz, Sum
from kit.recipes import {parent} as parent
from kit.recipes.lite0_instances import WALLS
from kit.training.mixing import CutMix, MixStyle, _Mixing

LEVERS = {levers}


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


MIXING = {{"mixstyle": MixStyle, "fourier": Fourier, "paste": Paste, "cutmix": CutMix}}
COARSER = A.Downscale(
    scale_range=(0.25, 0.6), interpolation_pair={{"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR}}
)
STRONG = [
    A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.5, hue=0.1, p=0.8),
    A.RandomToneCurve(scale=0.3, per_channel=True, p=0.4),
    A.ToGray(p=0.1),
    A.RandomGamma((60, 160), p=0.3),
    A.OneOf([A.GaussianBlur(sigma_limit=(0.5, 3.0)), A.GaussNoise(std_range=(0.02, 0.1))], p=0.25),
]
SIDE, BATCH = (3 * parent.CROP_PX // 2, 4) if "context" in LEVERS else (parent.CROP_PX, parent.BATCH)
LOW, HIGH = (0.45, 2.0) if "scale" in LEVERS else (0.7, 1.4)
AUGMENT = A.Compose(
    [
        PadIfNeeded(int(HIGH * SIDE), int(HIGH * SIDE), border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=255),
        A.RandomSizedCrop((int(LOW * SIDE), int(HIGH * SIDE)), (SIDE, SIDE)),
        D4(),
        *(STRONG if "strong" in LEVERS else parent.AUGMENT.transforms[3:]),
        *([A.OneOf([COARSER, A.ImageCompression(quality_range=(30, 80))], p=0.25)] if "coarse" in LEVERS else []),
    ]
)


def data(fold):
    return dataloaders(fold, AUGMENT, BATCH, layers=WALLS if "walls" in LEVERS else False)


def learner(dls):
    options = {{}}
    if "walls" in LEVERS:
        options = {{"loss": BCE(), "n_out": 3}}
    if "lovasz" in LEVERS:
        options["loss"] = Sum((0.5, options.get("loss", CrossEntropy())), (0.5, Lovasz(per_image=True)))
    if "wide" in LEVERS:
        options["widths"] = (256, 128, 64, 48)
    learn = parent.learner(dls, **options)
    learn.add_cbs([make() for name, make in MIXING.items() if name in LEVERS])
    if "frozen" in LEVERS:  # stem and the first two of seven groups of blocks, batch norm statistics included
        encoder = learn.model.encoder
        for part in (encoder.conv_stem, encoder.bn1, *list(encoder.blocks)[:2]):
            part.requires_grad_(False)
        learn.add_cb(BnFreeze())
    return learn


def fit(learn, epochs=parent.EPOCHS):
    slowest = parent.LR / (10 if "encoder_rate" in LEVERS else 3)
    learn.fit_one_cycle(epochs, slice(slowest, parent.LR), wd=0.1 if "decay" in LEVERS else 0.01)
'''
LEVERS = {
    "walls",  # footprint, boundary and contact, as lite0_instances
    "drawn",  # the drawn city added, a group of it drawn a quarter as often as a real one
    "lite2",  # another encoder
    *("mixstyle", "fourier", "paste", "cutmix", "strong", "coarse", "scale", "context"),  # of the data
    *("lovasz", "wide", "frozen", "encoder_rate", "decay"),  # of the network and its training
}
PLAIN = "lite0"  # the arm without levers


def levers_of(arm: str) -> list[str]:
    """Returns the levers of an arm such as `lite0` or `walls+mixstyle`."""
    levers = [] if arm == PLAIN else arm.split("+")
    if unknown := set(levers) - LEVERS:
        raise SystemExit(f"no lever {', '.join(unknown)}: expected {PLAIN}, or some of {', '.join(sorted(LEVERS))}")
    return levers


def train(paths: Paths, data: str, folds: list[int], steps: int, wanted: list[str]) -> None:
    """Trains what is missing, one fold after the other, and adds a row to accuracy.csv for each area held out.

    The score is that of the last epoch, as in a training without validation: the best epoch would favour noisy runs.
    """
    table = paths.root / "accuracy.csv"
    if not table.is_file():
        table.write_text(",".join(COLUMNS) + "\n")
    paths.recipes.mkdir(parents=True, exist_ok=True)
    for arm, seed in (each.split(":") for each in wanted):
        levers = levers_of(arm)
        for fold in folds or sorted(set(read_index(paths, data)[1]["fold"]) - {-1}):
            done = pd.read_csv(table, dtype=str)[["arm", "seed", "steps", "data", "fold"]]
            if (arm, seed, str(steps), data, str(fold)) in set(done.itertuples(index=False, name=None)):
                continue
            recipe = paths.recipes / f"{arm.replace('+', '_')}_{steps}_{data}_s{seed}.py"
            recipe.write_text(RECIPE.format(levers=repr(levers), parent="lite2" if "lite2" in levers else "lite0"))
            setup = Setup(LengthOptions(steps=steps), restart=True)
            added = parse_added(["drawn=0.25"] if "drawn" in levers else [])
            run(str(recipe), paths, RunOptions(data, added, (int(fold),), int(seed), setup=setup, export=False))
            log = pd.read_csv(paths.run(recipe.stem, int(fold)) / "log.csv")
            with table.open("a", newline="") as file:
                for column in log.columns[log.columns.str.startswith("jaccard_")]:
                    row = (
                        arm,
                        seed,
                        steps,
                        data,
                        fold,
                        column.removeprefix("jaccard_"),
                        round(log[column].iloc[-1], 4),
                    )
                    csv.writer(file, lineterminator="\n").writerow((*row, log["seconds"].iloc[-1]))


def hold_out(paths: Paths, data: str, areas: list[str]) -> None:
    """Moves areas to fold 0, which has blocks of another area already, and all other folds to fold 1."""
    file = paths.data(data) / "index.csv"
    index = read_table(file)
    index.loc[index["fold"] > 0, "fold"] = 1
    index.loc[index["area"].isin(areas), "fold"] = 0
    write_table(file, index)


def show(paths: Paths) -> None:
    """Prints the score of each arm in each area and, for each number of steps, the effect of each lever.

    Effects are those of a linear model (least squares): the level of an area plus the effects of the levers, with
    standard errors. They are right if the arms are a balanced design, and effects add up.
    """
    rows = pd.read_csv(paths.root / "accuracy.csv")
    rows["area"] = rows["data"] + "/" + rows["area"]
    index = ["steps", "arm", "seed"]
    print(rows.pivot_table(index=index, columns="area", values="jaccard", sort=False).round(3).to_markdown())
    for steps, own in rows.groupby("steps", sort=False):
        levers = sorted({lever for arm in own["arm"] for lever in levers_of(arm)})
        chosen = np.array([[lever in levers_of(arm) for lever in levers] for arm in own["arm"]], float)
        x = np.hstack([chosen, pd.get_dummies(own["area"]).to_numpy(float)])
        free = len(x) - np.linalg.matrix_rank(x)
        if free < 1 or not levers:
            continue
        inverse = np.linalg.pinv(x.T @ x)
        solved = inverse @ x.T @ own["jaccard"].to_numpy()
        left = own["jaccard"].to_numpy() - x @ solved
        errors = np.sqrt(np.diag(inverse) * (left @ left) / free)
        print(f"\n| {steps} steps | effect |\n|---|---|")
        for lever, effect, error in zip(levers, solved, errors, strict=False):
            print(f"| {lever} | {effect:+.3f} ± {error:.3f} |")


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


def predict_in_ways(paths: Paths, data: str, names: list[str]) -> None:
    """Prints the Jaccard index of each held-out area for each way to predict."""
    index = read_index(paths, data)[1]
    folder = paths.data(data)
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
    parser.add_argument("command", choices=["hold-out", "train", "views", "table"])
    parser.add_argument("names", nargs="*", help="areas, ARM:SEED to train, or runs to predict with")
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--data", default="mini", help="data set; its folds are held out")
    parser.add_argument(
        "--fold", type=int, action="append", default=[], help="hold out this fold alone; may be repeated"
    )
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_intermixed_args()
    paths = Paths(given.root)
    if given.command == "hold-out":
        hold_out(paths, given.data, given.names)
    elif given.command == "train":
        train(paths, given.data, given.fold, given.steps, given.names)
    elif given.command == "views":
        predict_in_ways(paths, given.data, given.names)
    else:
        show(paths)


if __name__ == "__main__":
    main()
