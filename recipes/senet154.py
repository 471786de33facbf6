"""SENet-154: the largest of the 2nd-place system's final five encoders.

kit run senet154 --data tier1 --fold 4

It takes four times as long as EfficientNet-B4: train it last, on final labels.

Needs timm's weights, from its hub or by `--encoder-weights`, and a GPU. Measured on 2 CPU cores (AVX2, fp32;
benchmarks/README.md): 9.21 s per crop of 512 px in training and 1.80 s in prediction, 7.7 GB with 2 crops per step. One
pass over tier 1, 12,997 crops, would take 33 h there.
"""

from functools import partial

from kit.recipes import efficientnet_b4 as parent

ENCODER = "senet154.gluon_in1k"  # on the model hub; legacy_senet154, as in 2nd place, is on a single server

data = parent.data
learner = partial(parent.learner, encoder=ENCODER, attention="none")
fit = partial(parent.fit, epochs=27)  # as in the 2nd-place system's third training; the last two with Lovasz
