"""Where images and labels come from: STAC catalogues, folders, tables, web addresses; test chips."""
