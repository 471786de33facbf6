"""Weights files: the card, the folder of weights, loading, downloading, cleaning of masks."""
