"""Folds: which tiles are held out together for validation, and the ground that they share."""
