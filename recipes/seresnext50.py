"""SE-ResNeXt-50 (32x4d): an encoder of both the 2nd-place and the winning system.

kit run seresnext50 --data tier1 --fold 3

The fastest of the large encoders.

Needs timm's weights, from its hub or by `--encoder-weights`, and a GPU. Measured on 2 CPU cores (AVX2, fp32;
benchmarks/README.md): 3.06 s per crop of 512 px in training and 0.65 s in prediction, 3.9 GB with 2 crops per step. One
pass over tier 1, 12,997 crops, would take 11 h there.
"""

from functools import partial

from kit.recipes import efficientnet_b4 as parent

ENCODER = "seresnext50_32x4d.racm_in1k"  # newer training than legacy_seresnext50_32x4d of the 2nd place

data = parent.data
learner = partial(parent.learner, encoder=ENCODER, attention="none")
fit = partial(parent.fit, epochs=27)  # as in the 2nd-place system's third training; the last two with Lovasz
