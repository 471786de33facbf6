"""EfficientNet-B4 with scSE attention: the 2nd-place system's first training, and parent of the larger recipes.

kit run efficientnet_b4 --data tier1 --fold 0,1,2

The 2nd-place system made its first pseudo-labels (`kit pseudo`) with the mean of these folds. It applied a sigmoid
before the softmax; kit computes softmax and cross-entropy on the network's own outputs.

Needs timm's weights, from its hub or by `--encoder-weights`, and a GPU. Measured on 2 CPU cores (AVX2, fp32;
benchmarks/README.md): 2.30 s per crop of 512 px in training and 0.55 s in prediction, 4.7 GB with 2 crops per step. One
pass over tier 1, 12,997 crops, would take 8 h there.
"""

from functools import partial

import albumentations as A
import cv2
import torch
from fastai.vision import all as fv

from kit.data.augment import D4, PadIfNeeded
from kit.data.dataset import Fold, dataloaders
from kit.models.losses import CrossEntropy, Lovasz
from kit.models.metrics import PooledJaccard
from kit.models.unet import Attention, split, unet
from kit.training.callbacks import EMA, BalancedSampler, LossSwitch

ENCODER = "tf_efficientnet_b4.ns_jft_in1k"  # noisy student: 2 points more on ImageNet than 2nd place's weights
CROP_PX = 512  # of a tile of 1024 px: 38 m at zoom 19
BATCH = 8
EPOCHS = 60  # of one crop per tile, as in the 2nd-place system
LOVASZ_FROM = 25  # epoch from which Lovasz-softmax replaces cross-entropy
LR = 1e-4
EMA_DECAY = 0.999  # a memory of 1,000 steps: two thirds of an epoch of 1,600

AUGMENT = A.Compose(
    [
        PadIfNeeded(CROP_PX, CROP_PX, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=255),
        A.RandomCrop(CROP_PX, CROP_PX),
        D4(),  # from above, every flip and quarter turn is as plausible
        A.OneOf([A.RandomBrightnessContrast(), A.RandomGamma()], p=0.5),
        A.OneOf([A.GaussianBlur(sigma_limit=(0.5, 2.0)), A.GaussNoise(std_range=(0.02, 0.08))], p=0.2),
    ]
)


def data(fold: Fold) -> fv.DataLoaders:
    return dataloaders(fold, AUGMENT, BATCH)


def learner(
    dls: fv.DataLoaders, encoder: str = ENCODER, attention: Attention = "scse", loss: torch.nn.Module | None = None
) -> fv.Learner:
    return fv.Learner(
        dls,
        unet(encoder, attention=attention),
        loss or CrossEntropy(),
        opt_func=partial(fv.OptimWrapper, opt=torch.optim.AdamW, fused=True),
        splitter=split,
        metrics=PooledJaccard(),
        cbs=[BalancedSampler(), LossSwitch(LOVASZ_FROM, Lovasz()), EMA(EMA_DECAY)],
    )


def fit(learn: fv.Learner, epochs: int = EPOCHS, lr: float = LR, wd: float = 0.01) -> None:
    learn.fit_one_cycle(epochs, lr, pct_start=0.05, wd=wd)  # a short warm-up, then a cosine
