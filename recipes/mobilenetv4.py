"""MobileNetV4-Conv-M at 0.15 m: the modern light encoder, for a laptop.

kit run mobilenetv4 --data NAME --minutes 30

Why this one: it was searched for low latency on CPUs as much as on accelerators (arXiv 2404.10518), has plain
convolutions and no squeeze-and-excitation, and Apache-2.0 weights of 83.0 % on ImageNet, where EfficientNet-Lite0 has
74.8 %. Where no model hub can be reached, take lite0: its weights come with kit.

Needs timm's weights, from its hub or by `--encoder-weights`. Measured on 2 CPU cores (AVX2, fp32;
benchmarks/README.md): 0.16 s a crop of 512 px in training and 0.046 s in prediction, 1.3 GB with 2 crops a step.
"""

from functools import partial

from kit.recipes import lite0 as parent

ENCODER = "mobilenetv4_conv_medium.e250_r384_in12k_ft_in1k"

data = parent.data
learner = partial(parent.learner, encoder=ENCODER)
fit = parent.fit
