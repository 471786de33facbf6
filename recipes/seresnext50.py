"""SE-ResNeXt-50 (32x4d): one of the seed's final five, and of the winner's.

kit run seresnext50 --data tier1 --fold 3

The fastest of the heavy encoders.

Needs timm's weights, from its hub or by `--encoder-weights`, and a GPU. Measured on 2 CPU cores (AVX2, fp32;
benchmarks/README.md): 3.06 s a crop of 512 px in training and 0.65 s in prediction, 3.9 GB with 2 crops a step. One
pass over tier 1, 12,997 crops, would take 11 h there.
"""

from functools import partial

from kit.recipes import efficientnet_b4 as parent

ENCODER = "seresnext50_32x4d.racm_in1k"  # trained by a newer method than the seed's (legacy_seresnext50_32x4d)

data = parent.data
learner = partial(parent.learner, encoder=ENCODER, attention="none")
fit = partial(parent.fit, epochs=27)  # as the seed's third training; the last two with Lovasz
