"""The winner's system: three stages at 0.1 m with pseudo-labels, 10 + 10 + 5 networks.

kit prepare train_tier_1 --name tier1_10cm --grid 0.1m && kit run open_cities_first_place --data tier1_10cm --test test

Two encoders on five folds in each of the first two stages, one in the last, votes over eight views. The published
account does not say which encoders were trained in which stage, and its FPN is a U-Net here.

Needs tier 1 at 0.1 m in five folds, the test chips, timm's weights, and GPUs: `kit run open_cities_first_place --plan`.
"""

from kit.solutions.rounds import Pseudo, Round, Training

ROUNDS = [
    Round("stage1", [Training("efficientnet_b1"), Training("seresnext50", epochs=50)], views="d4"),
    Round(
        "stage2",
        [Training("efficientnet_b4", epochs=50), Training("inception_resnet_v2")],
        learns=[Pseudo("stage1")],
        views="d4",
    ),
    Round("stage3", [Training("efficientnet_b4", epochs=50, seed=1)], learns=[Pseudo("stage2")], views="d4"),
]
