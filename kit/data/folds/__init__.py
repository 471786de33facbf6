"""Folds: which tiles are held out together, and which overlap on the ground."""
