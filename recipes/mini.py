"""The 2nd-place system in small: three rounds of EfficientNet-Lite0, from nothing to a submission.

kit run mini

Draws and prepares the sample city if there is no data set. With your own: kit run mini --data tier1 --test test

Every round holds each fold out once, so that rounds can be compared. Trained by equal steps. Needs nothing else: the
encoder's weights come with kit.
"""

from kit.solutions.rounds import Pseudo, Round, Training

SAMPLE = True
LENGTH = {"epochs": 1, "steps": 160}  # of 8 crops: about a minute and a half a network on 2 idle cores

ROUNDS = [
    Round("round1", [Training("lite0", **LENGTH)]),
    Round("round2", [Training("lite0", seed=1, **LENGTH)], learns=[Pseudo("round1")]),
    Round("round3", [Training("lite0", **LENGTH), Training("lite0", seed=1, **LENGTH)], learns=[Pseudo("round2")]),
]
