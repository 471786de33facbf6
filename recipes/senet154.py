"""SENet-154: the heaviest of the seed's final five.

kit run senet154 --data tier1 --fold 4

It costs seven times EfficientNet-B4: train it last, on labels that are settled.
"""

from functools import partial

import recipes.efficientnet_b4 as parent

ENCODER = "senet154.gluon_in1k"  # weights of the model hub; the seed's own (legacy_senet154) lie on one server

data = parent.data
learner = partial(parent.learner, encoder=ENCODER, attention="none")
fit = partial(parent.fit, epochs=27)  # as the seed's third training; the last two with Lovasz
