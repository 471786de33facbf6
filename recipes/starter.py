"""lite0 for places that it was not trained on: the weights that come with kit.

kit sample; kit prepare sample/train_tier_1 --name drawn
kit run starter --data NAME --add drawn=0.25 --all --minutes 24

Against lite0, crops also take the colours of other crops, and some lose detail, as in coarser or compressed imagery.
Add the drawn city: with few scenes of your own, the colours alone lose on new ground (benchmarks/accuracy.md).

Needs nothing else: its weights come with kit. Measured on 2 CPU cores that other programs shared (AVX-512 bf16): 0.06 s
a crop in training, as lite0.
"""

import albumentations as A
import cv2
from fastai.vision import all as fv
from kit.recipes import lite0 as parent

from kit.data.dataset import Fold, dataloaders
from kit.training.mixing import MixStyle

COARSER = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR}
AUGMENT = A.Compose(
    [
        *parent.AUGMENT.transforms,
        A.OneOf(
            [
                A.Downscale(scale_range=(0.25, 0.6), interpolation_pair=COARSER),  # z19 tiles as if of 12 to 30 cm
                A.ImageCompression(quality_range=(30, 80)),
            ],
            p=0.25,
        ),
    ]
)

fit = parent.fit


def data(fold: Fold) -> fv.DataLoaders:
    return dataloaders(fold, AUGMENT, parent.BATCH)


def learner(dls: fv.DataLoaders) -> fv.Learner:
    return parent.learner(dls).add_cbs([MixStyle()])
