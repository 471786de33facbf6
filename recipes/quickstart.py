"""The whole workflow in minutes: EfficientNet-Lite0 on the embedded sample city, two folds.

kit run quickstart && kit submit && kit score submissions/quickstart-test sample/test_labels

Draws the sample if no data set is prepared. A fold of the sample takes about 60 steps of 8 crops, a little more than a
minute on 2 cores; drawing, cutting, scores and export take as long again.
"""

from functools import partial

from kit.recipes import lite0 as parent

SAMPLE = True  # draw the sample city if there is no data set
EPOCHS = 2  # each ends with the validation of all held-out tiles, 7 s
CROPS_PER_TILE = 12  # 21 tiles train: 252 crops an epoch

data = parent.data
learner = partial(parent.learner, crops_per_tile=CROPS_PER_TILE)
fit = partial(parent.fit, epochs=EPOCHS)
