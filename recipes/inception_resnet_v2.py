"""Inception-ResNet-v2 with strong augmentation: the winner's heavy encoder, at 0.1 m.

kit prepare train_tier_1 --name tier1_10cm --grid 0.1m && kit run inception_resnet_v2 --data tier1_10cm

Its convolutions have valid padding in timm; kit pads them, so that feature maps are aligned with the image.

Needs timm's weights, from its hub or by `--encoder-weights`, and a GPU. Measured on 2 CPU cores (AVX2, fp32;
benchmarks/README.md): 4.01 s per crop of 512 px in training and 1.04 s in prediction, 4.0 GB with 2 crops per step. One
pass over tier 1, 12,997 crops, would take 14 h there.
"""

from functools import partial

from kit.recipes import efficientnet_b1 as parent

ENCODER = "inception_resnet_v2.tf_ens_adv_in1k"

data = parent.data
learner = partial(parent.learner, encoder=ENCODER)
fit = parent.fit
