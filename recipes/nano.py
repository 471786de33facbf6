"""Three rounds in two minutes, to try out how a solution runs; its scores mean nothing.

kit run nano
"""

from kit.solutions.rounds import Pseudo, Round, Training

SAMPLE = True
LENGTH = {"epochs": 1, "steps": 3}

ROUNDS = [
    Round("round1", [Training("lite0", folds=(0,), **LENGTH)], views="none"),
    Round("round2", [Training("lite0", folds=(1,), **LENGTH)], learns=[Pseudo("round1", ignore=None)], views="none"),
    Round(
        "round3", [Training("lite0", folds=("all",), **LENGTH)], learns=[Pseudo("round2", ignore=None)], views="none"
    ),
]
