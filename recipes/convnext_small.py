"""ConvNeXt-S: the modern heavy encoder, for one GPU box.

kit run convnext_small --data tier1

Why this one: in the largest comparison of backbones over tasks, plain convolutions with supervised pretraining on a set
larger than ImageNet-1k come first, ConvNeXt before all (Battle of the Backbones, arXiv 2310.19909). It takes any image
size, as windowed transformers do not; its weights are Apache-2.0, those of ConvNeXt V2 and DINOv3 are not. In cost it
stands between DPN-92 and DenseNet-161.

Needs timm's weights, from its hub or by `--encoder-weights`, and a GPU. Measured on 2 CPU cores (AVX2, fp32;
benchmarks/README.md): 3.95 s a crop of 512 px in training and 1.06 s in prediction, 4.5 GB with 2 crops a step. One
pass over tier 1, 12,997 crops, would take 14 h there.
"""

from functools import partial

from kit.recipes import efficientnet_b4 as parent

ENCODER = "convnext_small.in12k_ft_in1k_384"  # 12k classes first, then 1k at 384 px: 86.2 %

data = parent.data
learner = partial(parent.learner, encoder=ENCODER, attention="none")
fit = partial(parent.fit, epochs=40, wd=0.05)  # its authors' decay; their rate on ADE20K is the seed's 1e-4
