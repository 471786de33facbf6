"""Sources of images and labels: STAC catalogues, folders, tables, addresses; test chips."""
