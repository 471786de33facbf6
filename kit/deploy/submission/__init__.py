"""A folder of chips to an archive: checks, masks, score."""
