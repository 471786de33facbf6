"""DenseNet-161: the seed's second training, and one of its final five.

kit run densenet161 --data tier1 --fold 4

For the final five: `--all`, 27 epochs with pseudo-labels.
"""

from functools import partial

import recipes.efficientnet_b4 as parent

ENCODER = "densenet161"

data = parent.data
learner = partial(parent.learner, encoder=ENCODER, attention="none")
fit = parent.fit
