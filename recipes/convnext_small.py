"""ConvNeXt-S: the modern heavy encoder, for one GPU box.

kit run convnext_small --data tier1

Why this one: in the largest comparison of backbones over tasks, plain convolutions with supervised pretraining on a set
larger than ImageNet-1k come first, ConvNeXt before all (Battle of the Backbones, arXiv 2310.19909). It takes any image
size, as windowed transformers do not; its weights are Apache-2.0, those of ConvNeXt V2 and DINOv3 are not. In cost it
stands between DPN-92 and DenseNet-161.
"""

from functools import partial

import recipes.efficientnet_b4 as parent

ENCODER = "convnext_small.in12k_ft_in1k_384"  # 12k classes first, then 1k at 384 px: 86.2 %

data = parent.data
learner = partial(parent.learner, encoder=ENCODER, attention="none")
fit = partial(parent.fit, epochs=40, wd=0.05)  # its authors' decay; their rate on ADE20K is the seed's 1e-4
