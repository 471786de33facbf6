"""DPN-92: the seed's second training, on tier 1 and the first pseudo-labels.

kit run dpn92 --data tier1 --fold 3

A residual and a dense path in one: unlike the other encoders, which is what an ensemble wants.
"""

from functools import partial

import recipes.efficientnet_b4 as parent

ENCODER = "dpn92"

data = parent.data
learner = partial(parent.learner, encoder=ENCODER, attention="none")
fit = parent.fit
