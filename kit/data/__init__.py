"""Imagery and labels to tiles, masks, folds and DataLoaders."""
