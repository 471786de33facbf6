"""Predicts a test set: masks, tables and the archive to hand in. Checks and scores such masks."""
