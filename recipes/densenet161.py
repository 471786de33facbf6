"""DenseNet-161: used in the seed's second training and among its final five.

kit run densenet161 --data tier1 --fold 4

For the final five the seed trained on all folds (`--all`), 27 epochs with pseudo-labels; kit does not make those yet.

Needs timm's weights, from its hub or by `--encoder-weights`, and a GPU. Measured on 2 CPU cores (AVX2, fp32;
benchmarks/README.md): 5.41 s a crop of 512 px in training and 1.12 s in prediction, 5.2 GB with 2 crops a step. One
pass over tier 1, 12,997 crops, would take 20 h there.
"""

from functools import partial

from kit.recipes import efficientnet_b4 as parent

ENCODER = "densenet161"

data = parent.data
learner = partial(parent.learner, encoder=ENCODER, attention="none")
fit = parent.fit
