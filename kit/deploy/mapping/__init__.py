"""Whole scenes to maps: windows, blended; kept strips; rasters and polygons on the scene's own grid."""
