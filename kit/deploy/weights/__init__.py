"""Weights files: the card, the store, fetching, loading."""
