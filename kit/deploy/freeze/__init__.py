"""Freezing trained networks: the ensemble as one module, and the file formats."""
