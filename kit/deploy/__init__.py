"""The weights that are shipped: card, soft vote, export, prediction, submission, score. Never imports fastai."""
