"""Folds: assignment of tiles, and overlaps on the ground."""
