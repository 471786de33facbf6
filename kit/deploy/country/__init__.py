"""Maps of many scenes: a plan of cells, each cell mapped by itself on any machine, and one merged layer."""
