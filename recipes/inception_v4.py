"""Inception-v4: one of the seed's final five.

kit run inception_v4 --data tier1 --fold 3

Its convolutions have valid padding in timm; kit pads them, so that its maps lie on the image.
"""

from functools import partial

import recipes.efficientnet_b4 as parent

ENCODER = "inception_v4"

data = parent.data
learner = partial(parent.learner, encoder=ENCODER, attention="none")
fit = partial(parent.fit, epochs=27)  # as the seed's third training; the last two with Lovasz
