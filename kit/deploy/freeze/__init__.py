"""Networks frozen to one file: the ensemble and the file formats."""
