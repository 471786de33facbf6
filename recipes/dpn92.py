"""DPN-92: the encoder of the 2nd-place system's second training.

kit run dpn92 --data tier1 --fold 3

It combines a residual and a dense path, which makes it different from the other encoders, as an ensemble needs. The
2nd-place system trained it on tier 1 and on pseudo-labels (`kit pseudo`, then `kit run --add`).

Needs timm's weights, from its hub or by `--encoder-weights`, and a GPU. Measured on 2 CPU cores (AVX2, fp32;
benchmarks/README.md): 4.59 s per crop of 512 px in training and 0.91 s in prediction, 4.4 GB with 2 crops per step. One
pass over tier 1, 12,997 crops, would take 17 h there.
"""

from functools import partial

from kit.recipes import efficientnet_b4 as parent

ENCODER = "dpn92"

data = parent.data
learner = partial(parent.learner, encoder=ENCODER, attention="none")
fit = parent.fit
