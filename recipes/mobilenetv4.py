"""MobileNetV4-Conv-M at 0.15 m: a modern light encoder, for laptops.

kit run mobilenetv4 --data NAME --minutes 30

It was designed for low latency on CPUs as well as accelerators (arXiv 2404.10518). It has plain convolutions without
squeeze-and-excitation, and its weights (Apache-2.0) reach 83.0 % on ImageNet, those of EfficientNet-Lite0 74.8 %.
Without access to a model hub use lite0: its weights come with kit.

Needs timm's weights, from its hub or by `--encoder-weights`. Measured on 2 CPU cores (AVX2, fp32;
benchmarks/README.md): 0.16 s per crop of 512 px in training and 0.046 s in prediction, 1.3 GB with 2 crops per step.
"""

from functools import partial

from kit.recipes import lite0 as parent

ENCODER = "mobilenetv4_conv_medium.e250_r384_in12k_ft_in1k"

data = parent.data
learner = partial(parent.learner, encoder=ENCODER)
fit = parent.fit
