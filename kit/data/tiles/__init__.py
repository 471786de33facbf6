"""Cutting scenes into tiles: jobs, warping, workers, and the ledger that makes it resumable."""
