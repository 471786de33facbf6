"""Maps of whole scenes: blended windows, resumable strips, rasters and polygons on the scene's grid."""
