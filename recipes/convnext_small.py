"""ConvNeXt-S: a large modern encoder, for GPUs.

kit run convnext_small --data tier1

In the largest comparison of backbones over several tasks, convolutional networks with supervised pretraining on more
than ImageNet-1k came first, with ConvNeXt at the top (Battle of the Backbones, arXiv 2310.19909). Unlike transformers
with windows it takes any image size. Its weights are Apache-2.0; those of ConvNeXt V2 and DINOv3 are not. Its cost is
between DPN-92's and DenseNet-161's.

Needs timm's weights, from its hub or by `--encoder-weights`, and a GPU. Measured on 2 CPU cores (AVX2, fp32;
benchmarks/README.md): 3.95 s per crop of 512 px in training and 1.06 s in prediction, 4.5 GB with 2 crops per step. One
pass over tier 1, 12,997 crops, would take 14 h there.
"""

from functools import partial

from kit.recipes import efficientnet_b4 as parent

ENCODER = "convnext_small.in12k_ft_in1k_384"  # 12k classes first, then 1k at 384 px: 86.2 %

data = parent.data
learner = partial(parent.learner, encoder=ENCODER, attention="none")
fit = partial(parent.fit, epochs=40, wd=0.05)  # its authors' weight decay; their rate on ADE20K is the parent's 1e-4
