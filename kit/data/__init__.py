"""Imagery to tiles: catalogue, scenes, footprints, masks, folds, data loaders; and the embedded sample city."""
