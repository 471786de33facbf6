"""The 2nd-place system: three rounds with pseudo-labels, ten networks.

kit run open_cities --data tier1 --test test

Round 1 trains EfficientNet-B4, labels the test chips with it, round 2 trains two other encoders on both, labels again,
and round 3 trains the submission's five networks on all tiles. As 2nd place did, chips without building are left out
and every pixel is labelled. Unlike there, chips keep the mosaic they belong to as their group.

Needs tier 1 in five folds, the test chips, timm's weights of all six encoders, and GPUs: `kit run open_cities --plan`.
"""

from kit.solutions.rounds import Pseudo, Round, Training

ALL = ("all",)
LABELS = {"ignore": None, "drop_empty": True}

ROUNDS = [
    Round("round1", [Training("efficientnet_b4", folds=(0, 1, 2))]),
    Round(
        "round2",
        [Training("dpn92", folds=(3,)), Training("densenet161", folds=(4,))],
        learns=[Pseudo("round1", **LABELS)],
    ),
    Round(
        "round3",
        [
            Training("inception_v4", ALL),
            Training("senet154", ALL),
            Training("seresnext50", ALL),
            Training("densenet161", ALL, epochs=27),
            Training("efficientnet_b4", ALL, epochs=27),
        ],
        learns=[Pseudo("round2", **LABELS)],
    ),
]
