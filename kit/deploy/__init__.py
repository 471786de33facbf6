"""Everything after training: weights, prediction, submissions, maps. Never imports fastai."""
