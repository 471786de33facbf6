"""Scenes cut to tiles: jobs, warping, cutting, the ledger of what is done."""
