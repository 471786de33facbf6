"""DenseNet-161: one of the 2nd-place system's final five encoders.

kit run densenet161 --data tier1 --fold 4

The 2nd-place system used it in its second training, too. Its final networks were trained on all folds (`--all`) for 27
epochs with pseudo-labels (`kit pseudo`, then `kit run --add`).

Needs timm's weights, from its hub or by `--encoder-weights`, and a GPU. Measured on 2 CPU cores (AVX2, fp32;
benchmarks/README.md): 5.41 s per crop of 512 px in training and 1.12 s in prediction, 5.2 GB with 2 crops per step. One
pass over tier 1, 12,997 crops, would take 20 h there.
"""

from functools import partial

from kit.recipes import efficientnet_b4 as parent

ENCODER = "densenet161"

data = parent.data
learner = partial(parent.learner, encoder=ENCODER, attention="none")
fit = parent.fit
