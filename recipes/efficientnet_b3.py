"""EfficientNet-B3 taught by an ensemble: one network for the price of a fifth (the seed's scored 0.8502).

kit run efficientnet_b3 --data tier1 --teacher weights/ensemble.pt

The loss is 0.4 x label loss + 0.6 x T^2 x KL to the teacher's softened members, T = 20. Each step runs the teacher,
too: export it with `--views none`, or every view costs its time.

Needs an exported teacher, timm's weights, from its hub or by `--encoder-weights`, and a GPU. Measured on 2 CPU cores
(AVX2, fp32; benchmarks/README.md), the teacher aside: 1.58 s a crop of 512 px in training and 0.34 s in prediction,
3.7 GB with 2 crops a step. One pass over tier 1, 12,997 crops, would take 6 h there.
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
