"""Where scenes come from: STAC catalogues, folders, stores afar, chips."""
