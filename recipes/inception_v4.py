"""Inception-v4: one of the 2nd-place system's final five encoders.

kit run inception_v4 --data tier1 --fold 3

Its convolutions have valid padding in timm; kit pads them, so that feature maps are aligned with the image.

Needs timm's weights, from its hub or by `--encoder-weights`, and a GPU. Measured on 2 CPU cores (AVX2, fp32;
benchmarks/README.md): 4.26 s per crop of 512 px in training and 1.05 s in prediction, 3.7 GB with 2 crops per step. One
pass over tier 1, 12,997 crops, would take 15 h there.
"""

from functools import partial

from kit.recipes import efficientnet_b4 as parent

ENCODER = "inception_v4"

data = parent.data
learner = partial(parent.learner, encoder=ENCODER, attention="none")
fit = partial(parent.fit, epochs=27)  # as in the 2nd-place system's third training; the last two with Lovasz
