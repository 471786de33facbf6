"""EfficientNet-B3 distilled from an ensemble, at a fifth of its cost (in the 2nd-place system it scored 0.8502).

kit run efficientnet_b3 --data tier1 --teacher weights/ensemble.pt

The loss is 0.4 x label loss + 0.6 x T^2 x KL divergence from the teacher's softened members, T = 20. Each step also
runs the teacher. Export it with `--views none`, since every view costs time.

Needs an exported teacher, timm's weights, from its hub or by `--encoder-weights`, and a GPU. Measured on 2 CPU cores
(AVX2, fp32; benchmarks/README.md), the teacher aside: 1.58 s per crop of 512 px in training and 0.34 s in prediction,
3.7 GB with 2 crops per step. One pass over tier 1, 12,997 crops, would take 6 h there.
"""

from fastai.vision import all as fv
from kit.recipes import efficientnet_b4 as parent

from kit.training.distillation import Distillation

ENCODER = "tf_efficientnet_b3.ns_jft_in1k"

data = parent.data
fit = parent.fit


def learner(dls: fv.DataLoaders) -> fv.Learner:
    learn = parent.learner(dls, ENCODER, attention="none")
    return learn.add_cb(Distillation(share=0.6, temperature=20.0))
