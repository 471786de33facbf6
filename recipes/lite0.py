"""EfficientNet-Lite0 at 0.15 m: a light encoder, for laptops.

kit run lite0 --data NAME --minutes 12

The network averages 2 x 2 pixels of a z19 tile to 0.15 m: in a short training the amount of ground seen per second
matters most.

Needs nothing else: its weights come with kit. Measured on 2 CPU cores (AVX2, fp32; benchmarks/README.md): 0.14 s a
crop of 512 px in training and 0.036 s in prediction, 1.4 GB with 2 crops per step.
"""

from functools import partial
from typing import Any

import albumentations as A
import cv2
import torch
from fastai.vision import all as fv

from kit.data.augment import D4, PadIfNeeded
from kit.data.dataset import Fold, dataloaders
from kit.models.losses import CrossEntropy
from kit.models.metrics import PooledJaccard
from kit.models.unet import split, unet
from kit.training.callbacks import EMA, BalancedSampler

ENCODER = "tf_efficientnet_lite0"
REDUCE = 2  # z19 tiles have 0.075 m per pixel, the encoder's input 0.15 m
CROP_PX = 256 * REDUCE  # of the tile: 256 px for the encoder, 38 m on the ground
WIDTHS = (128, 64, 32, 24)  # down to 0.3 m; a full-size last step would cost half as much again
BATCH = 8
BALANCE = 0.5  # half way between uniform and balanced: a scene of two tiles is soon overfitted
CROPS_PER_TILE = 8  # four cover a tile: an epoch covers each place about twice
EPOCHS = 12
LR = 3e-3

AUGMENT = A.Compose(
    [
        # crops from 0.7 to 1.4 times the size: chips of other resolutions, at the cost of one small resize
        PadIfNeeded(int(1.4 * CROP_PX), int(1.4 * CROP_PX), border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=255),
        A.RandomSizedCrop((int(0.7 * CROP_PX), int(1.4 * CROP_PX)), (CROP_PX, CROP_PX)),
        D4(),
        A.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.06, p=0.8),
        A.OneOf([A.GaussianBlur(sigma_limit=(0.5, 2.0)), A.GaussNoise(std_range=(0.02, 0.08))], p=0.15),
    ]
)


def data(fold: Fold) -> fv.DataLoaders:
    return dataloaders(fold, AUGMENT, BATCH)


def learner(
    dls: fv.DataLoaders,
    encoder: str = ENCODER,
    loss: torch.nn.Module | None = None,
    crops_per_tile: float = CROPS_PER_TILE,
    **decoder: Any,
) -> fv.Learner:
    return fv.Learner(
        dls,
        unet(encoder, **{"widths": WIDTHS, "reduce": REDUCE, **decoder}),
        loss or CrossEntropy(),
        opt_func=partial(fv.OptimWrapper, opt=torch.optim.AdamW, fused=True),  # fastai's own takes three times as long
        splitter=split,
        metrics=PooledJaccard(),
        cbs=[BalancedSampler(temperature=BALANCE, crops_per_tile=crops_per_tile), EMA(0.99)],
    )


def fit(learn: fv.Learner, epochs: int = EPOCHS) -> None:
    learn.fit_one_cycle(epochs, slice(LR / 3, LR), wd=0.01)
