"""EfficientNet-B1 with strong augmentation: the winner's light encoder, at 0.1 m.

kit prepare train_tier_1 --name tier1_10cm --grid 0.1m && kit run efficientnet_b1 --data tier1_10cm

Dice loss, learning rate 1e-4, 50 epochs. Crops are resized by 0.6 to 1.6, because 58 % of the challenge's test chips
are not at the training resolution. Ten U-Nets of this kind scored about 0.8497 after the winner's first stage.

Needs timm's weights, from its hub or by `--encoder-weights`, and a GPU. Measured on 2 CPU cores (AVX2, fp32;
benchmarks/README.md): 1.26 s per crop of 512 px in training and 0.26 s in prediction, 3.2 GB with 2 crops per step. One
pass over tier 1, 12,997 crops, would take 5 h there.
"""

from functools import partial

import albumentations as A
import cv2
from fastai.vision import all as fv
from kit.recipes import efficientnet_b4 as parent

from kit.data.augment import D4, PadIfNeeded
from kit.data.dataset import Fold, dataloaders
from kit.models.losses import Dice
from kit.training.callbacks import LossSwitch

ENCODER = "tf_efficientnet_b1.ns_jft_in1k"
CROP_PX = 512  # 51 m at 0.1 m
LARGEST_PX = int(1.6 * CROP_PX)
EPOCHS = 50

HARD = A.Compose(
    [
        PadIfNeeded(LARGEST_PX, LARGEST_PX, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=255),
        A.RandomSizedCrop((int(0.6 * CROP_PX), LARGEST_PX), (CROP_PX, CROP_PX)),
        D4(),
        A.Affine(rotate=(-20, 20), shear=(-6, 6), fill=0, fill_mask=255, p=0.3),
        A.OneOf([A.ElasticTransform(alpha=30, sigma=8, fill_mask=255), A.GridDistortion(fill_mask=255)], p=0.1),
        A.OneOf(
            [
                A.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.4, hue=0.08, p=1.0),
                A.RandomGamma((60, 160), p=1.0),
                A.CLAHE(p=1.0),
                A.RGBShift(p=1.0),
                A.ToGray(p=0.3),
            ],
            p=0.9,
        ),
        A.OneOf(
            [
                A.GaussianBlur(sigma_limit=(0.5, 2.5)),
                A.MotionBlur(blur_limit=(3, 9)),
                A.GaussNoise(std_range=(0.02, 0.12)),
                A.Sharpen(),
                A.ImageCompression(quality_range=(40, 90)),  # chips of the test set were compressed
            ],
            p=0.4,
        ),
        A.RandomShadow(p=0.1),
        A.CoarseDropout(num_holes_range=(1, 6), hole_height_range=(16, 64), hole_width_range=(16, 64), p=0.1),
    ]
)


def data(fold: Fold) -> fv.DataLoaders:
    return dataloaders(fold, HARD, parent.BATCH)


def learner(dls: fv.DataLoaders, encoder: str = ENCODER) -> fv.Learner:
    learn = parent.learner(dls, encoder, attention="none", loss=Dice())
    return learn.remove_cb(LossSwitch)


fit = partial(parent.fit, epochs=EPOCHS)
