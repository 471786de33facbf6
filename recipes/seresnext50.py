"""SE-ResNeXt-50 (32x4d): one of the seed's final five, and of the winner's.

kit run seresnext50 --data tier1 --fold 3

The best ratio of speed to score among the heavy ones on hardware that likes plain convolutions.
"""

from functools import partial

import recipes.efficientnet_b4 as parent

ENCODER = "seresnext50_32x4d.racm_in1k"  # 82.2 % on ImageNet; the seed's legacy weights 79.1 %

data = parent.data
learner = partial(parent.learner, encoder=ENCODER, attention="none")
fit = partial(parent.fit, epochs=27)  # as the seed's third training; the last two with Lovasz
