"""MobileNetV4-Conv-M at 0.15 m: the modern light encoder, for a laptop.

kit run mobilenetv4 --data NAME --minutes 30

Why this one: it was searched for low latency on CPUs as much as on accelerators (arXiv 2404.10518), has plain
convolutions and no squeeze-and-excitation, and Apache-2.0 weights of 83.0 % on ImageNet, where EfficientNet-Lite0 has
75.5 %. Where no model hub can be reached, take lite0: its weights come with kit.
"""

from functools import partial

import recipes.lite0 as parent

ENCODER = "mobilenetv4_conv_medium.e250_r384_in12k_ft_in1k"

data = parent.data
learner = partial(parent.learner, encoder=ENCODER)
fit = parent.fit
