"""EfficientNet-Lite0 that tells neighbours apart: footprint, boundary and contact.

kit run lite0_instances --data NAME --minutes 12

Its weights let `kit map` split buildings that touch. Layers are drawn in each crop from the ids of buildings that `kit
prepare` keeps. Needs nothing else.

Measured on 2 CPU cores (benchmarks/README.md): a step takes 1.09 times that of lite0. The distance to walls was tried
as a target in place of the walls, and split no better.
"""

from functools import partial

from fastai.vision import all as fv
from kit.recipes import lite0 as parent

from kit.data.dataset import Fold, dataloaders
from kit.data.instances import Walls
from kit.models.losses import BCE

WALLS = Walls(boundary_px=13, contact_px=17)  # 0.45 m inside and 0.6 m outside: 1.5 to 2 px of the network's output

fit = parent.fit
learner = partial(parent.learner, loss=BCE(), n_out=3)


def data(fold: Fold) -> fv.DataLoaders:
    return dataloaders(fold, parent.AUGMENT, parent.BATCH, layers=WALLS)
