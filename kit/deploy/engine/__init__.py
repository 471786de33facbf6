"""Runs frozen weights: backends, tuning to the machine, prediction of one image."""
